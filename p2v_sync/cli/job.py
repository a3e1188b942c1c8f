"""What the commands for a job after its passes have in common."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

from p2v_sync.cli.ask import terminal_ask
from p2v_sync.cli.options import connection_options, json_option, state_option, take_connection
from p2v_sync.cli.render import make_renderer
from p2v_sync.cutover import IN_PLACE, QCOW2, JobCutover
from p2v_sync.state.paths import default_state_dir

apply_option = click.option(
    "--apply",
    "mode",
    type=click.Choice([IN_PLACE, QCOW2]),
    default=IN_PLACE,
    show_default=True,
    help="Fix-ups onto the image, what they overwrite is saved; or as an overlay above it.",
)


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """JOB, and the options that say how to reach its receiver; see ``opened_job``."""
    for option in (json_option, state_option, connection_options, click.argument("job")):
        command = option(command)
    return command


@contextmanager
def opened_job(options: dict[str, Any]) -> Iterator[JobCutover]:
    """What ``job_options`` added, taken out of a command's ``options``."""
    connection = take_connection(options)
    with (
        closing(make_renderer(as_json=options.pop("as_json"))) as renderer,
        JobCutover(
            options.pop("job"),
            options.pop("state_dir") or default_state_dir(),
            connection,
            renderer,
            terminal_ask(),
        ) as opened,
    ):
        yield opened
