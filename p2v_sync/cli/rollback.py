"""``p2v-sync rollback``: take the deltas of a job back, so that its images are replicas again."""

from pathlib import Path
from typing import Any

import click

from p2v_sync.cli.ask import terminal_ask
from p2v_sync.cli.options import connection_options, json_option, state_option, take_connection
from p2v_sync.cli.render import make_renderer
from p2v_sync.cutover import JobCutover
from p2v_sync.state.paths import default_state_dir


@click.command()
@click.argument("job")
@connection_options
@state_option
@json_option
def rollback(job: str, state_dir: Path | None, as_json: bool, **options: Any) -> None:
    """Take the deltas of JOB back: every image is the replica again, byte for byte.

    Stop the virtual machine first.  A qcow2 overlay is kept under another name.
    """
    renderer = make_renderer(as_json=as_json)
    try:
        with JobCutover(
            job,
            state_dir or default_state_dir(),
            take_connection(options),
            renderer,
            terminal_ask(),
        ) as opened:
            opened.roll_back()
    finally:
        renderer.close()
