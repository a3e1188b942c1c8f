"""``p2v-sync disks``: which disks this machine has, and which are left out and why."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from p2v_sync.device.attributes import PROC, SYS
from p2v_sync.device.sysfs import Disk, scan
from p2v_sync.units import format_size

_HEADINGS = (
    "name", "size", "model", "serial/WWN", "bus", "sectors", "ro", "table", "in use",
)  # fmt: skip


def _held_by(disk: Disk) -> str:
    return f"(holds {', '.join(disk.holders)})" if disk.holders else ""


def _row(disk: Disk) -> tuple[str, ...]:
    return (
        disk.path,
        format_size(disk.size),
        disk.model or "-",
        disk.serial or disk.wwn or "-",
        disk.bus or "-",
        f"{disk.logical_sector_size}/{disk.physical_sector_size}",
        "yes" if disk.read_only else "no",
        disk.partition_table or "-",
        ", ".join(disk.mounted) or _held_by(disk) or "-",
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def format_disks(found: Sequence[Disk]) -> Iterator[str]:
    """The lines of the table and of the list of what was left out."""
    candidates = [disk for disk in found if disk.excluded is None]
    if candidates:
        yield from _aligned([_HEADINGS, *map(_row, candidates)])
    else:
        yield "No disk found that could be copied."
    left_out = [(f"  {disk.path}", disk.excluded) for disk in found if disk.excluded is not None]
    if left_out:
        yield ""
        yield "left out:"
        yield from _aligned(left_out)


def format_json(disk: Disk) -> str:
    """One disk as one line of JSON; what it does not say is null."""
    return json.dumps({key: None if value == "" else value for key, value in asdict(disk).items()})


@click.command("disks")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one for each disk.")
@click.option(
    "--sys-root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=SYS,
    help="Look at a copy of another machine's /sys (with its /proc beside it) instead.",
    metavar="DIR",
)
def disks(as_json: bool, sys_root: Path) -> None:
    """List the disks of this machine."""
    found = scan(sys_root, PROC if sys_root == SYS else sys_root.parent / "proc")
    for line in map(format_json, found) if as_json else format_disks(found):
        click.echo(line)
