"""Which segments a pass visits, and in which order.  Pure."""

from collections.abc import Callable, Iterator, Sequence, Set
from typing import NamedTuple, TypeVar

from p2v_receiver import codec
from p2v_receiver.wire import ENTRY_SIZE, SEGMENT_BLOCKS, UNKNOWN, ZERO, Layout, indices
from p2v_sync.extent import Extent, ranges

T = TypeVar("T")


class SegmentRun(NamedTuple):
    """``total`` segments from ``first``; without data all of it is a hole in the source."""

    first: int
    total: int
    has_data: bool


def segment_runs(next_data: Callable[[int], int], layout: Layout) -> Iterator[SegmentRun]:
    """The whole disk as runs with and without data, in order.

    ``next_data`` is the source's.  A segment with one allocated byte counts as data.
    """
    done = 0
    for first, total in ranges(_segments_with_data(next_data, layout)):
        if first > done:
            yield SegmentRun(done, first - done, False)
        yield SegmentRun(first, total, True)
        done = first + total
    if done < layout.segments:
        yield SegmentRun(done, layout.segments - done, False)


def _segments_with_data(next_data: Callable[[int], int], layout: Layout) -> Iterator[int]:
    segment_size = layout.block_size * SEGMENT_BLOCKS
    at = 0
    while (data := next_data(at)) < layout.size:
        segment = data // segment_size
        yield segment
        at = (segment + 1) * segment_size


def parts(run: SegmentRun, done: Set[int], is_done: bool, most: int) -> Iterator[SegmentRun]:
    """The parts of a run that are (or are not) in ``done``, of at most ``most`` segments."""
    end = run.first + run.total
    if not done:
        states = [] if is_done else [(run.first, end, False)]
    else:
        flags = [segment in done for segment in range(run.first, end)]
        states = [
            (run.first + first, run.first + last, flag)
            for first, last, flag in runs_where(flags)
            if flag == is_done
        ]
    for first, last, _ in states:
        for at in range(first, last, most):
            yield SegmentRun(at, min(most, last - at), run.has_data)


def length_of(layout: Layout, first: int, total: int) -> int:
    """Bytes of ``total`` segments from ``first``."""
    start, _ = layout.segment_extent(first)
    _, end = layout.segment_extent(first + total - 1)
    return end - start


def lengths(layout: Layout, first: int, total: int) -> Iterator[tuple[int, int]]:
    """``(segment, bytes)`` of ``total`` segments from ``first``; the last may be shorter."""
    last = first + total - 1
    for segment in range(first, last):
        yield segment, layout.block_size * SEGMENT_BLOCKS
    yield last, length_of(layout, last, 1)


def zero_digests(layout: Layout, first: int, total: int) -> list[bytes]:
    """The digests of the entries of segments that are all zero."""
    digests = [codec.entries_digest(ZERO * SEGMENT_BLOCKS)] * (total - 1)
    return [*digests, codec.entries_digest(layout.zero_entries(first + total - 1))]


def coarse(extents: Sequence[Extent], most: int) -> list[Extent]:
    """At most ``most`` extents that cover the given ones (in order): neighbours are joined."""
    kept = list(extents)
    while len(kept) > most:
        pairs = zip(kept[::2], kept[1::2], strict=False)
        joined = [Extent(a.start, b.end - a.start) for a, b in pairs]
        kept = joined + kept[len(joined) * 2 :]
    return kept


def forgotten(entries: bytes, bits: int) -> bytes:
    """Packed entries with those of the blocks in a bit set UNKNOWN."""
    changed = bytearray(entries)
    for index in indices(bits):
        changed[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE] = UNKNOWN
    return bytes(changed)


def blocks_of(extents: Sequence[Extent], layout: Layout) -> dict[int, set[int]]:
    """Extents → segment → the blocks (index in the segment) that they touch."""
    found: dict[int, set[int]] = {}
    for extent in extents:
        first = extent.start // layout.block_size
        end = -(-min(extent.end, layout.size) // layout.block_size)
        for block in range(first, end):
            found.setdefault(block // SEGMENT_BLOCKS, set()).add(block % SEGMENT_BLOCKS)
    return found


def runs_where(wanted: Sequence[T]) -> Iterator[tuple[int, int, T]]:
    """Neighbours of equal value → ``(first, end, value)``."""
    first = 0
    for index in range(1, len(wanted) + 1):
        if index == len(wanted) or wanted[index] != wanted[first]:
            yield first, index, wanted[first]
            first = index


def checkpoint_is_due(
    seconds: float, length: int, segments: int, *, every_s: float, every: int
) -> bool:
    """Since the last checkpoint: ``seconds``, ``length`` bytes sent, ``segments`` finished."""
    if not segments and not length:
        return False
    return seconds >= every_s or length >= every or segments >= 4096
