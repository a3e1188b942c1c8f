"""``p2v-sync demo``: see the main job done on a made-up disk, without touching a real one."""

import tempfile
from pathlib import Path

import click

from p2v_sync.cli.options import PATH
from p2v_sync.cli.render import PlainRenderer
from p2v_sync.demo import run_demo
from p2v_sync.errors import ConfigError


def _make_new(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"--keep {directory} is there already", hint="name a new one") from error
    except OSError as error:
        raise ConfigError(f"--keep {directory} can't be made: {error.strerror}") from error


@click.command()
@click.option("--keep", type=PATH, metavar="DIR", help="Work in DIR, a new one, and leave it.")
def demo(keep: Path | None) -> None:
    """Replicate a made-up disk, with a cut link, a second pass and a verification."""
    if keep is not None:
        _make_new(keep)
        run_demo(keep.absolute(), PlainRenderer(), click.echo)
        return
    with tempfile.TemporaryDirectory(prefix="p2v-demo-") as directory:
        run_demo(Path(directory), PlainRenderer(), click.echo)
