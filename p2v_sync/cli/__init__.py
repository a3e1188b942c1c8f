"""The command line: one file a command, and here what they share: errors become exit codes."""

import logging
import sys

import click

from p2v_sync import __version__
from p2v_sync.cli.demo import demo
from p2v_sync.cli.disks import disks
from p2v_sync.cli.render import show_error
from p2v_sync.cli.status import status
from p2v_sync.cli.sync import sync
from p2v_sync.cli.verify import verify
from p2v_sync.errors import Interrupted, P2vError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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


for command in (sync, status, verify, disks, demo):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status; see EXIT STATUS in the man page."""
    try:
        cli.main(args=arguments, prog_name="p2v-sync", standalone_mode=False)
    except click.exceptions.Abort:
        return _explain(Interrupted("interrupted"))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except P2vError as error:
        return _explain(error)
    except KeyboardInterrupt:
        return _explain(Interrupted("interrupted"))
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        return 0
    return 0


def _explain(error: P2vError) -> int:
    if not error.is_reported:
        show_error(error)
    return error.exit_code
