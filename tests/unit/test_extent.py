"""Byte ranges."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.extent import Extent, merged, ranges

EXTENTS = st.lists(st.builds(Extent, st.integers(0, 60), st.integers(0, 12)))


def covered(extents: list[Extent]) -> set[int]:
    return {at for extent in extents for at in range(extent.start, extent.end)}


def test_an_extent_knows_its_end_and_how_it_is_written() -> None:
    assert Extent(512, 1024).end == 1536
    assert f"{Extent(512, 1024)}" == "512+1024"


@given(EXTENTS)
def test_merged_covers_the_same_bytes_in_order_and_apart(extents: list[Extent]) -> None:
    joined = list(merged(extents))
    assert covered(joined) == covered(extents)
    assert all(extent.length for extent in joined)
    assert all(a.end < b.start for a, b in pairwise(joined))


def test_merged_joins_what_touches_and_keeps_what_lies_inside() -> None:
    assert list(merged([Extent(10, 5), Extent(0, 10), Extent(2, 3)])) == [Extent(0, 15)]
    assert list(merged([])) == []
    assert list(merged([Extent(7, 0)])) == []


@given(st.sets(st.integers(0, 200)))
def test_ranges_are_the_numbers_again(numbers: set[int]) -> None:
    runs = list(ranges(numbers))
    assert [at for first, count in runs for at in range(first, first + count)] == sorted(numbers)
    assert all(a + n < b for (a, n), (b, _) in pairwise(runs))


def test_ranges_takes_numbers_in_any_order() -> None:
    assert list(ranges([7, 2, 1, 3])) == [(1, 3), (7, 1)]
