"""Which segments a pass visits, and in which order."""

from collections.abc import Callable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2v_receiver import codec
from p2v_receiver.wire import SEGMENT_BLOCKS, Layout
from p2v_sync.engine import plan
from p2v_sync.engine.plan import SegmentRun
from p2v_sync.extent import Extent, merged
from p2v_sync.units import GIB, KIB, MIB
from tests.contract.lab import BLOCK, SEGMENT

LAYOUT = Layout(10 * SEGMENT + 5 * BLOCK + 17, BLOCK)

SIZES = st.integers(1, 12 * SEGMENT)
EXTENTS = st.lists(st.builds(Extent, st.integers(0, 12 * SEGMENT), st.integers(1, 3 * SEGMENT)))


def source_of(extents: list[Extent], size: int) -> Callable[[int], int]:
    """``Source.next_data`` of a disk of ``size`` bytes with these allocated."""

    def next_data(start: int) -> int:
        places = [max(start, extent.start) for extent in extents if extent.end > start]
        return min([*places, size])

    return next_data


@given(SIZES, EXTENTS)
def test_segment_runs_cover_the_disk_once_and_know_where_data_is(
    size: int, extents: list[Extent]
) -> None:
    layout = Layout(size, BLOCK)
    runs = list(plan.segment_runs(source_of(extents, size), layout))
    segments = [at for run in runs for at in range(run.first, run.first + run.total)]
    assert segments == list(range(layout.segments))
    with_data = {
        at for run in runs if run.has_data for at in range(run.first, run.first + run.total)
    }
    assert with_data == {
        segment
        for segment in range(layout.segments)
        for start, end in [layout.segment_extent(segment)]
        if any(extent.start < end and extent.end > start for extent in extents)
    }


def test_segment_runs_of_the_plain_cases() -> None:
    def runs(*data: Extent) -> list[SegmentRun]:
        return list(plan.segment_runs(source_of([*data], LAYOUT.size), LAYOUT))

    assert runs() == [SegmentRun(0, 11, False)]
    assert runs(Extent(0, LAYOUT.size)) == [SegmentRun(0, 11, True)]
    touching = [Extent(1, 1), Extent(SEGMENT - 1, 2), Extent(2 * SEGMENT, 1)]
    assert runs(*touching) == [SegmentRun(0, 3, True), SegmentRun(3, 8, False)]


@given(
    st.integers(0, 20),
    st.integers(1, 40),
    st.booleans(),
    st.sets(st.integers(0, 60)),
    st.integers(1, 9),
)
def test_parts_are_those_done_or_not_in_pieces_of_at_most(
    first: int, total: int, has_data: bool, done: set[int], most: int
) -> None:
    run = SegmentRun(first, total, has_data)
    for is_done in (True, False):
        pieces = list(plan.parts(run, done, is_done, most))
        assert all(1 <= piece.total <= most and piece.has_data == has_data for piece in pieces)
        assert [at for piece in pieces for at in range(piece.first, piece.first + piece.total)] == [
            at for at in range(first, first + total) if (at in done) == is_done
        ]


@given(SIZES, st.data())
def test_lengths_add_up(size: int, data: st.DataObject) -> None:
    layout = Layout(size, BLOCK)
    first = data.draw(st.integers(0, layout.segments - 1))
    total = data.draw(st.integers(1, layout.segments - first))
    each = list(plan.lengths(layout, first, total))
    assert [segment for segment, _ in each] == list(range(first, first + total))
    assert sum(length for _, length in each) == plan.length_of(layout, first, total)
    assert plan.length_of(layout, 0, layout.segments) == size


def test_zero_digests_are_those_of_zero_entries() -> None:
    expected = [codec.entries_digest(LAYOUT.zero_entries(segment)) for segment in range(9, 11)]
    assert plan.zero_digests(LAYOUT, 9, 2) == expected
    assert plan.zero_digests(LAYOUT, 10, 1) == expected[1:]
    assert expected[0] != expected[1]


@given(EXTENTS, st.integers(1, 5))
def test_coarse_covers_with_few(extents: list[Extent], most: int) -> None:
    given_extents = list(merged(extents))
    kept = plan.coarse(given_extents, most)
    assert len(kept) <= max(most, 1)
    assert all(any(k.start <= e.start and e.end <= k.end for k in kept) for e in given_extents)
    assert all(a.end < b.start for a, b in pairwise(kept))
    if given_extents:
        assert (kept[0].start, kept[-1].end) == (given_extents[0].start, given_extents[-1].end)


def test_coarse_leaves_few_alone() -> None:
    extents = [Extent(0, 512), Extent(4096, 512)]
    assert plan.coarse(extents, 2) == extents
    assert plan.coarse([], 4) == []


@given(EXTENTS)
def test_blocks_of_are_those_the_extents_touch(extents: list[Extent]) -> None:
    found = plan.blocks_of(extents, LAYOUT)
    assert {s * SEGMENT_BLOCKS + block for s, blocks in found.items() for block in blocks} == {
        block
        for block in range(LAYOUT.blocks)
        for start, end in [LAYOUT.extent(block, 1)]
        if any(extent.start < end and extent.end > start for extent in extents)
    }
    assert all(found.values())


@given(st.lists(st.sampled_from("ab")))
def test_runs_where_are_the_values_again(values: list[str]) -> None:
    runs = list(plan.runs_where(values))
    assert [value for first, end, value in runs for _ in range(first, end)] == values
    assert all(a != b for (_, _, a), (_, _, b) in pairwise(runs))


def due(seconds: float, length: int, segments: int) -> bool:
    return plan.checkpoint_is_due(seconds, length, segments, every_s=5.0, every=GIB)


def test_a_checkpoint_is_due_after_a_while_or_much_and_never_for_nothing() -> None:
    assert not due(100.0, 0, 0)
    assert not due(4.9, 1, 1)
    assert due(5.0, 0, 1)
    assert due(5.0, MIB, 0)
    assert due(0.0, GIB, 0)
    assert not due(0.0, GIB - KIB, 4095)
    assert due(0.0, 0, 4096)
