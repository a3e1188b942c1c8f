"""``p2v-sync cutover``: apply the deltas of a job at the receiver, and start the machine."""

from typing import Any

import click

from p2v_sync.cli.job import apply_option, job_options, opened_job


@click.command()
@apply_option
@click.option("--start", is_flag=True, help="Define and start the virtual machine, too.")
@click.option("--name", metavar="VM", help="Name of the virtual machine. [default: the job's]")
@job_options
def cutover(mode: str, start: bool, name: str | None, **options: Any) -> None:
    """Apply the delta of every disk of JOB at the receiver.

    The last pass must be complete, and none from a running system.  The next sync takes the deltas
    back by itself.
    """
    with opened_job(options) as job:
        job.apply(mode)
        if start:
            job.start(name or job.name)
