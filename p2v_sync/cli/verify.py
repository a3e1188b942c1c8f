"""``p2v-sync verify``: read the whole replica back and compare it with the source."""

from pathlib import Path
from typing import Any

import click

from p2v_sync import jobs
from p2v_sync.cli.ask import terminal_ask
from p2v_sync.cli.options import connection_options, json_option, state_option, take_connection
from p2v_sync.cli.render import make_renderer
from p2v_sync.state.paths import default_state_dir


@click.command()
@click.argument("job")
@connection_options
@state_option
@json_option
def verify(job: str, state_dir: Path | None, as_json: bool, **options: Any) -> None:
    """Compare every disk of JOB with its replica, byte for byte, by BLAKE2b.

    What differs is named and repaired by the next sync.
    """
    renderer = make_renderer(as_json=as_json)
    connection = take_connection(options)
    try:
        jobs.verify(job, state_dir or default_state_dir(), connection, renderer, terminal_ask())
    finally:
        renderer.close()
