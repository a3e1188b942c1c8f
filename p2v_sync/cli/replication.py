"""What to copy, where to, and how: the arguments and options of ``sync`` and ``convert``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from p2v_sync.cli.options import (
    DURATION,
    SIZE,
    connection_options,
    json_option,
    places_argument,
    state_option,
    take_connection,
    take_places,
)
from p2v_sync.config import SyncConfig, check_block_size, check_rate
from p2v_sync.state.paths import default_state_dir


def replication_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """SOURCE... TARGET and the options that say how to copy; see ``take_sync_config``."""
    options = (
        places_argument,
        click.option(
            "--job",
            metavar="NAME",
            help="Name of the job. [default: the host's; of an image, its stem]",
        ),
        click.option(
            "--block-size",
            type=SIZE,
            metavar="SIZE",
            help="Unit of comparison, 4K to 4M. [default: as before, else 256K]",
        ),
        click.option(
            "--streams",
            type=click.IntRange(1, 16),
            default=2,
            show_default=True,
            help="Connections for each disk; in-band over ssh it is one.",
        ),
        click.option(
            "--rate",
            type=SIZE,
            metavar="SIZE",
            help="Bytes a second at most, all disks together: 50M.",
        ),
        click.option(
            "--compress",
            type=click.Choice(["auto", "zstd", "zlib", "none"]),
            default="auto",
            show_default=True,
            help="auto: where it makes this link faster.",
        ),
        click.option(
            "--digest",
            type=click.Choice(["auto", "xxh3", "blake2b"]),
            default="auto",
            show_default=True,
            help="auto: as before, else the fastest that both ends have.",
        ),
        click.option(
            "--verify",
            type=click.Choice(["auto", "sample", "full", "none"]),
            default="auto",
            show_default=True,
            help="auto: read back what was written, and a sample; full: everything, with BLAKE2b.",
        ),
        click.option(
            "--on-read-error",
            type=click.Choice(["skip", "fail"]),
            default="skip",
            show_default=True,
            help="skip: zeros for bad sectors, all are listed, exit status 13.",
        ),
        click.option(
            "--seed",
            is_flag=True,
            help="The source is in use: a first pass, never good for cutover.",
        ),
        click.option(
            "--used-only",
            is_flag=True,
            help="Take for zero what the file systems on it do not use (needs partclone, root).",
        ),
        click.option(
            "--retry-for",
            type=DURATION,
            default="24h",
            show_default=True,
            metavar="TIME",
            help="Reconnect for so long without progress.",
        ),
        connection_options,
        state_option,
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def take_sync_config(options: dict[str, Any]) -> SyncConfig:
    """What ``replication_options`` added but --json, taken out of a command's ``options``.

    Raises click.UsageError and ConfigError.
    """
    connection = take_connection(options)
    block_size = options.pop("block_size")
    digest = options.pop("digest")
    rate = options.pop("rate")
    state_dir: Path | None = options.pop("state_dir")
    sources, target = take_places(options)
    return SyncConfig(
        sources=sources,
        target=target,
        state_dir=state_dir or default_state_dir(),
        block_size=check_block_size(block_size) if block_size is not None else None,
        digest=None if digest == "auto" else digest,
        rate=check_rate(rate) if rate is not None else None,
        retry_for_s=options.pop("retry_for"),
        connection=connection,
        **options,
    )
