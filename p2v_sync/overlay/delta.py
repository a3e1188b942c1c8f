"""The delta: what in an overlay differs from its origin, chunk by chunk.

A dm-snapshot copies a chunk at the first write to it, whatever is written, so some of its chunks
equal the origin's: those are left out.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from p2v_sync.device.source import open_read_only
from p2v_sync.errors import OverlayBusy, OverlayError
from p2v_sync.overlay import mapper
from p2v_sync.overlay.exception_store import ExceptionStore, Read, read_store
from p2v_sync.overlay.snapshot import Overlay, check_usable


@dataclass
class Counts:
    """Of the chunks seen so far."""

    changed: int = 0
    unchanged: int = 0  # copied by the snapshot, but as the origin has them
    length: int = 0  # bytes of the changed ones


@dataclass
class Delta:
    """Iterate, as often as wanted: ``(offset, content)`` in the order of the disk.

    ``counts`` is complete when an iteration has ended.
    """

    store: ExceptionStore
    read_cow: Read
    read_origin: Read
    size: int  # of the origin, bytes
    counts: Counts = field(default_factory=Counts)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Raises OverlayError when the store gives less than it should.

        What can't be read of the origin differs from what the overlay has there.
        """
        self.counts = counts = Counts()
        chunk_size = self.store.chunk_size
        for old, new in sorted(self.store.exceptions.items()):
            start = old * chunk_size
            length = min(chunk_size, self.size - start)  # the disk may end within a chunk
            content = self.read_cow(new * chunk_size, length)
            if len(content) != length:
                raise OverlayError(f"chunk {old} is not whole in the copy-on-write space")
            if content == self.read_origin(start, length):
                counts.unchanged += 1
                continue
            counts.changed += 1
            counts.length += length
            yield start, content


@contextmanager
def open_delta(overlay: Overlay) -> Iterator[Delta]:
    """The delta of an overlay on which nothing stands any more.

    Raises OverlayBusy while something does, because it would change under our eyes; OverlayFull for
    an invalid overlay, which has none; OverlayError for a damaged store.
    """
    mapper.settle()
    if mapper.open_count(overlay.map_name):
        raise OverlayBusy(
            f"{overlay.device} is in use, so its changes are not final",
            hint="unmount what is on it, and stop what was assembled from it",
        )
    check_usable(overlay)
    # The file and not the loop device above it, past whose page cache device-mapper writes.
    with _reader(overlay.cow) as read_cow, _reader(overlay.origin) as read_origin:
        store = read_store(read_cow, overlay.cow_size, overlay.size)
        yield Delta(store, read_cow, read_origin, overlay.size)


@contextmanager
def _reader(path: Path) -> Iterator[Read]:
    """Reads less where it can't read."""
    fd = open_read_only(path)

    def read(start: int, length: int) -> bytes:
        parts = []
        try:
            while length and (part := os.pread(fd, length, start)):
                parts.append(part)
                start, length = start + len(part), length - len(part)
        except OSError:
            return b""
        return b"".join(parts)

    try:
        yield read
    finally:
        os.close(fd)
