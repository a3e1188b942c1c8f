"""What every ``engine.ports.Source`` does: a suite to inherit from, with one's own ``make``."""

from itertools import pairwise

import pytest

from p2v_sync.engine.ports import Source
from p2v_sync.extent import Extent
from p2v_sync.units import KIB
from tests.contract.lab import block_of

PAGE = 4 * KIB
CONTENT = block_of("a", PAGE) + bytes(3 * PAGE) + block_of("b", PAGE) + bytes(PAGE) + b"tail"


class SourceSuite:
    """``make`` gives a source with just this content, sparse where it can be."""

    def make(self, content: bytes) -> Source:
        raise NotImplementedError

    @pytest.fixture
    def source(self) -> Source:
        return self.make(CONTENT)

    def test_it_has_the_size_of_its_content(self, source: Source) -> None:
        assert source.size == len(CONTENT)

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, 1), (0, len(CONTENT)), (PAGE - 1, 2), (2 * PAGE, PAGE), (len(CONTENT) - 4, 4)],
    )
    def test_any_part_can_be_read(self, source: Source, start: int, length: int) -> None:
        buffer = bytearray(b"\xee" * length)
        assert list(source.read_into(memoryview(buffer), start)) == []
        assert buffer == CONTENT[start : start + length]

    @pytest.mark.parametrize(
        ("start", "end"), [(0, len(CONTENT)), (PAGE, 4 * PAGE), (10, 20), (PAGE + 1, 5 * PAGE)]
    )
    def test_what_is_no_data_is_zero(self, source: Source, start: int, end: int) -> None:
        extents = list(source.data_extents(start, end))
        assert all(a.end <= b.start for a, b in pairwise(extents))
        assert all(start <= each.start and each.end <= end and each.length for each in extents)
        rest = bytearray(CONTENT)
        for each in extents:
            rest[each.start : each.end] = bytes(each.length)
        assert not any(rest[start:end])

    def test_there_is_no_data_in_nothing(self, source: Source) -> None:
        assert list(source.data_extents(PAGE, PAGE)) == []

    def test_all_of_a_full_source_is_data(self) -> None:
        full = block_of("x", 2 * PAGE)
        extents = list(self.make(full).data_extents(0, len(full)))
        assert extents[0].start == 0
        assert extents[-1].end == len(full)
        assert sum(each.length for each in extents) == len(full)

    def test_extents_are_extents(self, source: Source) -> None:
        assert all(isinstance(each, Extent) for each in source.data_extents(0, source.size))
