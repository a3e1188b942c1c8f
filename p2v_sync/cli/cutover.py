"""``p2v-sync cutover``: apply the deltas of a job at the receiver, and start the machine."""

from pathlib import Path
from typing import Any

import click

from p2v_sync.cli.ask import terminal_ask
from p2v_sync.cli.options import connection_options, json_option, state_option, take_connection
from p2v_sync.cli.render import make_renderer
from p2v_sync.cutover import IN_PLACE, QCOW2, JobCutover
from p2v_sync.state.paths import default_state_dir


@click.command()
@click.argument("job")
@click.option(
    "--apply",
    "mode",
    type=click.Choice([IN_PLACE, QCOW2]),
    default=IN_PLACE,
    show_default=True,
    help="Onto the image, what it overwrites is saved; or as an overlay above the image.",
)
@click.option("--start", is_flag=True, help="Define and start the virtual machine, too.")
@click.option("--name", metavar="VM", help="Name of the virtual machine. [default: the job's]")
@connection_options
@state_option
@json_option
def cutover(job: str, state_dir: Path | None, as_json: bool, **options: Any) -> None:
    """Apply the delta of every disk of JOB at the receiver.

    The last pass must be complete, and none from a running system.  The next sync takes the deltas
    back by itself.
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
            opened.apply(options["mode"])
            if options["start"]:
                opened.start(options["name"] or job)
    finally:
        renderer.close()
