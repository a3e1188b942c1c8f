"""``p2v-sync wizard``: the questions of the live CD, and the run that follows from the answers."""

import logging
import os
import time
from pathlib import Path

import click

from p2v_sync import jobs
from p2v_sync.cli.ask import terminal_ask
from p2v_sync.cli.options import PATH
from p2v_sync.cli.render import describe, make_renderer
from p2v_sync.convert import convert
from p2v_sync.device.attributes import PROC, read_text
from p2v_sync.events import Event
from p2v_sync.state.paths import default_state_dir
from p2v_sync.wizard import hooks, job, live
from p2v_sync.wizard.answers import format_preseed
from p2v_sync.wizard.flow import Values
from p2v_sync.wizard.log import log_to
from p2v_sync.wizard.screens import Screens
from p2v_sync.wizard.settings import Value
from p2v_sync.wizard.situation import read_situation
from p2v_sync.wizard.stick import state_dir as state_directory

log = logging.getLogger(__name__)


@click.command()
@click.option(
    "--preseed",
    type=PATH,
    metavar="FILE",
    help=f"Answers that are not asked for. [default: {live.MEDIUM_PRESEED}, if there]",
)
@click.option(
    "--answers-only",
    is_flag=True,
    help="Write the answers to standard output as a preseed, and do nothing.",
)
@click.option(
    "--state",
    "state_dir",
    type=PATH,
    metavar="PLACE",
    help="Where the ledger is kept: a directory, or LABEL=… or UUID=… of a stick.",
)
def wizard(preseed: Path | None, answers_only: bool, state_dir: Path | None) -> None:
    """Ask what is to be done with this machine, and do it.

    What the kernel command line (p2v.KEY=VALUE) or a preseed answers is not asked.
    """
    began = time.time()
    log_file = Path(os.environ["P2V_LOG"]) if "P2V_LOG" in os.environ else None
    if log_file is not None:
        log_to(log_file)
    given = live.gather(preseed, read_text(PROC / "cmdline"), state_dir)
    session = live.Session(given, read_situation, _screens)
    if answers_only:
        click.echo(format_preseed(session.values()), nl=False)
        return

    def work(values: dict[str, Value]) -> None:
        session.require_own(values)
        copied = job.copied_disks(values, session.situation)
        with state_directory(str(values.get("state", default_state_dir())), copied) as directory:
            _run(session, values, directory)

    def keep_log(values: Values) -> None:
        if log_file is not None:
            session.keep_log(log_file, values, began)

    values = hooks.with_hooks(session.given, session.values, work, keep_log)
    click.echo(f"All went well.  {values['target']} has it as {values['name']}.")
    hooks.end(values)


def _screens() -> Screens | None:
    return None if terminal_ask() is None else Screens()


def _run(session: live.Session, values: dict[str, Value], state_dir: Path) -> None:
    """Start what ``action`` says; a cutover is a conversion of what was copied before."""
    renderer = make_renderer(as_json=False)

    def observe(event: Event) -> None:
        if text := describe(event):
            log.info("%s: %s", event.disk, text)
        renderer(event)

    try:
        with job.login(values) as connection:
            config = job.sync_config(values, session.situation, state_dir, connection)
            if values["action"] == "sync":
                jobs.sync(config, observe, session.screen)
            else:
                convert(job.convert_config(values, config), observe, session.screen)
    finally:
        renderer.close()
