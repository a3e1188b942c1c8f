"""``p2v-sync overlay``: snapshots in memory above the disks, for changes that no disk sees."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from p2v_sync.cli.options import PATH, SIZE, json_option
from p2v_sync.overlay import mapper
from p2v_sync.overlay.snapshot import (
    Overlay,
    Usage,
    create_overlays,
    list_overlays,
    remove_overlays,
    usage_of,
)
from p2v_sync.units import format_size


@click.group()
def overlay() -> None:
    """Put disks under overlays, so that changes stay in memory and off the disks."""


@overlay.command()
@click.argument("disks", nargs=-1, required=True, type=PATH, metavar="DISK...")
@click.option(
    "--cow-size",
    type=SIZE,
    metavar="SIZE",
    help="Room for the changes of each disk; without it half of the free memory for all.",
)
@click.option(
    "--cow-dir", type=PATH, metavar="DIR", help="Keep the changes in files there, not in memory."
)
def create(disks: tuple[Path, ...], cow_size: int | None, cow_dir: Path | None) -> None:
    """Set each DISK read-only and put an overlay over it."""
    for one in create_overlays(disks, cow_size=cow_size, cow_dir=cow_dir):
        room = format_size(one.cow_size)
        click.echo(f"{one.origin} is read-only; {one.device} is its overlay, with room for {room}")


@overlay.command()
@click.argument("disks", nargs=-1, metavar="[DISK...]")
@json_option
def status(disks: tuple[str, ...], as_json: bool) -> None:
    """Show the overlays, or those of each DISK, and how full they are."""
    mapper.check_support()
    found = [(one, usage_of(one)) for one in list_overlays(disks)]
    if not found and not as_json:
        click.echo("No overlays.")
    for one, usage in found:
        for line in [json.dumps(_as_json(one, usage))] if as_json else _text_lines(one, usage):
            click.echo(line)


def _as_json(one: Overlay, usage: Usage) -> dict[str, Any]:
    """Sizes in bytes.  Stable."""
    return {
        "disk": one.disk,
        "origin": str(one.origin),
        "overlay": str(one.device),
        "size": one.size,
        "chunk_size": one.chunk_size,
        "cow": str(one.cow),
        "state": usage.state,
        "used": usage.used,
        "total": usage.total or one.cow_size,
        "metadata": usage.metadata,
        "percent": round(usage.percent, 1),
    }


def _text_lines(one: Overlay, usage: Usage) -> Iterator[str]:
    yield f"{one.origin} -> {one.device}: {_STATES.get(usage.state, usage.state)}"
    if usage.state == "active":
        total = format_size(usage.total)
        yield f"  {format_size(usage.used)} of {total} used, {usage.percent:.0f} %"
    if usage.is_nearly_full:
        yield "  NEARLY FULL: when it overflows all changes are lost"


_STATES = {
    "invalid": "INVALID, its space ran full and its changes are lost",
    "missing": "left by a run that was killed; remove it",
}


@overlay.command()
@click.argument("disks", nargs=-1, metavar="[DISK...]")
def remove(disks: tuple[str, ...]) -> None:
    """Drop the overlays, or those of each DISK, with all changes.

    The disks are writable again where they were before.
    """
    removed = remove_overlays(disks)
    click.echo(f"removed: {', '.join(removed)}" if removed else "No overlays.")
