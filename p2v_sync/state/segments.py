"""The rows that hold packed block entries, one a segment; a segment of zeros has no row."""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping

import sqlite_utils

from p2v_receiver.codec import entries_digest
from p2v_receiver.wire import ENTRY_SIZE, UNKNOWN
from p2v_sync.extent import ranges

_BATCH = 4096
_NUMBER = struct.Struct("!Q")


def store(tables: sqlite_utils.Database, disk: int, segments: Mapping[int, bytes | None]) -> None:
    """Put entries in place of what is there; None takes the row away."""
    zero = (number for number, entries in segments.items() if entries is None)
    _delete(tables, disk, zero)
    # One prepared statement: sqlite-utils' own upsert builds the SQL anew for every hundred rows.
    tables.conn.executemany(
        "INSERT INTO segments (disk, segment, digest, entries) VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET digest = excluded.digest, entries = excluded.entries",
        (
            (disk, number, entries_digest(entries), entries)
            for number, entries in segments.items()
            if entries is not None
        ),
    )


def forget(tables: sqlite_utils.Database, disk: int) -> None:
    tables.execute("DELETE FROM segments WHERE disk = ?", [disk])


def _delete(tables: sqlite_utils.Database, disk: int, numbers: Iterable[int]) -> None:
    # By runs: a mostly empty disk has a hundred thousand of these in its first checkpoint.
    tables.conn.executemany(
        "DELETE FROM segments WHERE disk = ? AND segment >= ? AND segment < ?",
        ((disk, first, first + count) for first, count in ranges(numbers)),
    )


def load_between(
    tables: sqlite_utils.Database, disk: int, first: int, total: int
) -> tuple[dict[int, bytes], list[int]]:
    """Entries of the segments that are not all zero, and which of them are damaged (unknown)."""
    rows = tables.execute(
        "SELECT segment, digest, entries FROM segments "
        "WHERE disk = ? AND segment >= ? AND segment < ? ORDER BY segment",
        [disk, first, first + total],
    ).fetchall()
    broken = [number for number, digest, entries in rows if entries_digest(entries) != digest]
    found = {number: entries for number, _, entries in rows}
    found.update((number, UNKNOWN * (len(found[number]) // ENTRY_SIZE)) for number in broken)
    return found, broken


def digests(tables: sqlite_utils.Database, disk: int, after: int = -1) -> list[tuple[int, bytes]]:
    """The next few thousand ``(segment, digest)``, in order; empty at the end."""
    rows: list[tuple[int, bytes]] = tables.execute(
        "SELECT segment, digest FROM segments WHERE disk = ? AND segment > ? "
        "ORDER BY segment LIMIT ?",
        [disk, after, _BATCH],
    ).fetchall()
    return rows


def total_digest(tables: sqlite_utils.Database, disk: int) -> str:
    """One digest (hex) over all of them, so that a row that vanished is noticed."""
    total = hashlib.blake2b(digest_size=ENTRY_SIZE)
    for batch in _batches(tables, disk):
        total.update(b"".join(_NUMBER.pack(segment) + digest for segment, digest in batch))
    return total.hexdigest()


def _batches(tables: sqlite_utils.Database, disk: int) -> Iterator[list[tuple[int, bytes]]]:
    after = -1
    while batch := digests(tables, disk, after):
        yield batch
        after = batch[-1][0]
