"""``p2v-sync sync``: replicate disks; run it again to resume or to bring the replica up to date."""

from typing import Any

import click

from p2v_sync import jobs
from p2v_sync.cli.ask import terminal_ask
from p2v_sync.cli.render import make_renderer
from p2v_sync.cli.replication import replication_options, take_sync_config


@click.command()
@replication_options
def sync(as_json: bool, **options: Any) -> None:
    """Replicate each SOURCE (block device or image file) to TARGET.

    TARGET is a directory, user@host:/dir, ssh://user@host:port/dir or tcp://host:port.  The image
    is kept there as JOB/DISK.img.  Running the same command again resumes an unfinished pass, or
    else sends what has changed.
    """
    config = take_sync_config(options)
    renderer = make_renderer(as_json=as_json)
    try:
        jobs.sync(config, renderer, terminal_ask())
    finally:
        renderer.close()
