"""Byte ranges ``[start, start + length)`` and the few operations everything else needs on them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """A byte range of a disk: ``[start, start + length)``, both in bytes."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    def __str__(self) -> str:
        return f"{self.start}+{self.length}"


def merged(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The same bytes, sorted, with touching and overlapping ranges joined; empty ones dropped."""
    pending: Extent | None = None
    for extent in sorted(e for e in extents if e.length):
        if pending is not None and extent.start <= pending.end:
            pending = Extent(pending.start, max(pending.end, extent.end) - pending.start)
        else:
            if pending is not None:
                yield pending
            pending = extent
    if pending is not None:
        yield pending


def ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Integers → ``(first, count)`` runs, in order: 1 2 3 7 → (1, 3) (7, 1)."""
    for run in merged(Extent(number, 1) for number in numbers):
        yield run.start, run.length
