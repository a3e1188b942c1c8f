"""``p2v-sync rollback``: take the deltas of a job back, so that its images are replicas again."""

from typing import Any

import click

from p2v_sync.cli.job import job_options, opened_job


@click.command()
@job_options
def rollback(**options: Any) -> None:
    """Take the deltas of JOB back: every image is the replica again, byte for byte.

    Stop the virtual machine first.  A qcow2 overlay is kept under another name.
    """
    with opened_job(options) as job:
        job.roll_back()
