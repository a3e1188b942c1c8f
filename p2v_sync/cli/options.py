"""Option types and options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from p2v_sync.config import Connection
from p2v_sync.units import parse_duration_s, parse_size


class _Parsed(click.ParamType[Any]):
    """An option value that a function of units understands."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = _Parsed("size", parse_size)
DURATION = _Parsed("duration", parse_duration_s)
PATH = click.Path(path_type=Path)

state_option = click.option(
    "--state", "state_dir", type=PATH, metavar="DIR", help="Where the ledger is kept."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line on standard output."
)


# Not two arguments: click would take the only one for the target, and miss a source.
places_argument = click.argument("places", nargs=-1, required=True, metavar="SOURCE... TARGET")


def take_places(options: dict[str, Any]) -> tuple[tuple[Path, ...], str]:
    """(sources, target) out of a command's ``options``.  Raises click.UsageError."""
    *sources, last = options.pop("places")
    if not sources:
        raise click.UsageError(
            f"{last} is one place, and two are needed: what to copy, and where to (a directory,"
            " user@host:/dir, ssh://user@host:port/dir or tcp://host:port)"
        )
    return tuple(Path(source).absolute() for source in sources), last


disks_argument = click.argument("disks", nargs=-1, type=PATH, metavar="[DISK...]")
root_option = click.option(
    "--root",
    type=PATH,
    metavar="DIR",
    help="Instead of disks: the directory where the guest's root file system is.",
)


key_files_option = click.option(
    "--key-file",
    "key_files",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="A key or passphrase of encrypted volumes (LUKS); may be given several times.",
)


def check_guest(disks: tuple[Path, ...], root: Path | None) -> None:
    """Either disks or a directory.  Raises click.UsageError."""
    if bool(disks) == (root is not None):
        raise click.UsageError("name the guest's disks, or its files' directory with --root DIR")


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how to reach the receiver."""
    options = (
        click.option("--token-file", type=PATH, metavar="FILE", help="Token of a tcp:// receiver."),
        click.option("--identity", type=PATH, metavar="FILE", help="Private key for ssh."),
        click.option(
            "--data",
            type=click.Choice(["auto", "direct", "inband"]),
            default="auto",
            show_default=True,
            help="Beside ssh over TLS, or through it; auto: direct where the port is reachable.",
        ),
        click.option("--sudo", is_flag=True, help="Start the receiver with sudo -n (ssh)."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def take_connection(options: dict[str, Any]) -> Connection:
    """What ``connection_options`` added, taken out of a command's ``options``."""
    return Connection(
        token_file=options.pop("token_file"),
        identity_file=options.pop("identity"),
        sudo=options.pop("sudo"),
        data=options.pop("data"),
    )
