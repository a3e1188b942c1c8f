"""``p2v-sync sync``: replicate disks; run it again to resume or to bring the replica up to date."""

import sys
from pathlib import Path
from typing import Any

import click

from p2v_sync import jobs
from p2v_sync.cli.ask import terminal_ask
from p2v_sync.cli.options import (
    DURATION,
    PATH,
    SIZE,
    connection_options,
    json_option,
    state_option,
)
from p2v_sync.cli.render import make_renderer
from p2v_sync.config import Connection, SyncConfig, check_block_size
from p2v_sync.errors import Interrupted
from p2v_sync.state.paths import default_state_dir


@click.command()
@click.argument("sources", nargs=-1, required=True, type=PATH, metavar="SOURCE...")
@click.argument("target")
@click.option("--job", metavar="NAME", help="Default: the host's name; of an image, its stem.")
@click.option("--block-size", type=SIZE, metavar="SIZE", help="Default: as before, else 256K.")
@click.option("--streams", type=click.IntRange(1, 16), default=2, help="Connections for each disk.")
@click.option("--rate", type=SIZE, metavar="SIZE", help="Bytes a second at most, as in 50M.")
@click.option("--compress", type=click.Choice(["auto", "zstd", "zlib", "none"]), default="auto")
@click.option("--digest", type=click.Choice(["auto", "xxh3", "blake2b"]), default="auto")
@click.option("--verify", type=click.Choice(["auto", "sample", "full", "none"]), default="auto")
@click.option("--on-read-error", type=click.Choice(["skip", "fail"]), default="skip")
@click.option("--seed", is_flag=True, help="The source is in use: a first pass, no cutover.")
@click.option(
    "--retry-for", type=DURATION, default="24h", metavar="TIME", help="Reconnect for so long."
)
@connection_options
@state_option
@json_option
def sync(**options: Any) -> None:
    """Replicate each SOURCE (block device or image file) to TARGET.

    TARGET is a directory, user@host:/dir, ssh://user@host:port/dir or tcp://host:port.  The image
    is kept there as JOB/DISK.img.  Running the same command again resumes an unfinished pass, or
    else sends what has changed.
    """
    as_json = options.pop("as_json")
    config = _config(options)
    renderer = make_renderer(as_json=as_json)
    try:
        jobs.sync(config, renderer, terminal_ask())
    except Interrupted as error:
        command = " ".join(sys.argv[1:]) or "sync"
        raise Interrupted(error.message, hint=f"go on with: p2v-sync {command}") from error
    finally:
        renderer.close()


def _config(options: dict[str, Any]) -> SyncConfig:
    connection = Connection(options.pop("token_file"), options.pop("identity"), options.pop("sudo"))
    block_size = options.pop("block_size")
    digest = options.pop("digest")
    state_dir: Path | None = options.pop("state_dir")
    return SyncConfig(
        sources=tuple(path.absolute() for path in options.pop("sources")),
        state_dir=state_dir or default_state_dir(),
        block_size=check_block_size(block_size) if block_size is not None else None,
        digest=None if digest == "auto" else digest,
        retry_for_s=options.pop("retry_for"),
        connection=connection,
        **options,
    )
