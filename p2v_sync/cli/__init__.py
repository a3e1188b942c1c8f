"""The command line: one file a command, and here what they share: errors become exit codes."""

import contextlib
import difflib
import importlib
import logging
import shlex
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import click

from p2v_sync import __version__
from p2v_sync.cli.render import show_error
from p2v_sync.errors import Interrupted, P2vError, Terminated

# In the order of --help; each is the function of its name in the module of its name.
_COMMANDS = (
    *("convert", "sync", "status", "verify", "cutover", "rollback"),
    *("disks", "inspect", "fixup", "overlay", "wizard", "demo"),
)


class _Commands(click.Group):
    """Imports the one command that runs: all of them together take longer than a small pass."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"p2v_sync.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]}?", ctx) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="p2v-sync")
@click.option("--debug", is_flag=True, help="Log every step on standard error.")
def cli(debug: bool) -> None:
    """Replicate the disks of a physical server to a virtual machine's host.

    The source disks are never written to.  Running the same command again goes on where it was.
    """
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    # paramiko reports each connection's end with a traceback; ours says it in one line.
    logging.getLogger("paramiko").setLevel(logging.DEBUG if debug else logging.CRITICAL)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status; see EXIT STATUS in the man page."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with _signals() as received:
        try:
            return _run(arguments)
        except (KeyboardInterrupt, click.exceptions.Abort, Interrupted) as error:
            kind = Interrupted if signal.SIGINT in received or not received else Terminated
            message = error.message if isinstance(error, Interrupted) else "interrupted"
            command = shlex.join(["p2v-sync", *arguments])
            return _explain(kind(message, hint=f"go on with: {command}"))


def _run(arguments: list[str]) -> int:
    try:
        cli.main(args=arguments, prog_name="p2v-sync", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Interrupted:
        raise
    except P2vError as error:
        return _explain(error)
    return 0


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """All that ask us to end do it as Ctrl-C does; yields those that came.

    SIGINT also where it is inherited as ignored, as in the background of a script: there it can
    only be meant for us.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup(1)
        numbers.append(signal.SIGHUP)
    before = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _explain(error: P2vError) -> int:
    if not error.is_reported:
        show_error(error)
    return error.exit_code
