"""The rows about unreadable parts of a disk (P12): kept joined, with when each was first seen."""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlite_utils

from p2v_sync.extent import Extent, merged

_TOUCHING = "disk = ? AND start <= ? AND start + length >= ?"


def stored(tables: sqlite_utils.Database, disk: int) -> Sequence[Extent]:
    """All of them, in order."""
    rows = tables.execute(
        "SELECT start, length FROM unreadable WHERE disk = ? ORDER BY start", [disk]
    )
    return tuple(Extent(start, length) for start, length in rows.fetchall())


def add(tables: sqlite_utils.Database, disk: int, found: Iterable[Extent], now: str) -> None:
    """Note what was found ``now``; it joins what it touches."""
    for extent in merged(found):
        row = _joined_row(tables, disk, extent, now)
        tables.execute(f"DELETE FROM unreadable WHERE {_TOUCHING}", _place(disk, extent))
        _insert(tables, [row])


def replace(tables: sqlite_utils.Database, disk: int, extents: Iterable[Extent], now: str) -> None:
    """These were tried ``now`` and are all there are."""
    rows = [
        {
            "disk": disk,
            "start": extent.start,
            "length": extent.length,
            "first_seen": _known(tables, disk, extent)[2] or now,
            "last_tried": now,
        }
        for extent in merged(extents)
    ]
    tables.execute("DELETE FROM unreadable WHERE disk = ?", [disk])
    _insert(tables, rows)


def _place(disk: int, extent: Extent) -> list[int]:
    return [disk, extent.end, extent.start]


def _known(tables: sqlite_utils.Database, disk: int, extent: Extent) -> tuple[Any, Any, Any]:
    """Start, end and first sight of the rows that touch ``extent``; None where there are none."""
    row: tuple[Any, Any, Any] = tables.execute(
        "SELECT min(start), max(start + length), min(first_seen) FROM unreadable "
        f"WHERE {_TOUCHING}",
        _place(disk, extent),
    ).fetchone()
    return row


def _joined_row(
    tables: sqlite_utils.Database, disk: int, extent: Extent, now: str
) -> dict[str, Any]:
    start, end, first_seen = _known(tables, disk, extent)
    if start is None:
        start, end = extent
        end += start
    start, end = min(start, extent.start), max(end, extent.end)
    return {
        "disk": disk,
        "start": start,
        "length": end - start,
        "first_seen": first_seen or now,
        "last_tried": now,
    }


def _insert(tables: sqlite_utils.Database, rows: list[dict[str, Any]]) -> None:
    tables.table("unreadable", pk=("disk", "start")).insert_all(rows)
