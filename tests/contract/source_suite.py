"""What every ``engine.ports.Source`` does: a suite to inherit from, with one's own ``make``."""

import pytest

from p2v_sync.engine.ports import Source
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

    def test_what_is_no_data_is_zero(self, source: Source) -> None:
        at = 0
        while at < len(CONTENT):
            data = source.next_data(at)
            assert at <= data <= len(CONTENT)
            assert not any(CONTENT[at:data])
            at = data + 97

    @pytest.mark.parametrize("beyond", [0, 1, PAGE])
    def test_there_is_no_data_beyond_the_end(self, source: Source, beyond: int) -> None:
        assert source.next_data(len(CONTENT) + beyond) == len(CONTENT)

    def test_all_of_a_full_source_is_data(self) -> None:
        full = self.make(block_of("x", 2 * PAGE))
        for at in (0, 1, PAGE, 2 * PAGE - 1):
            assert full.next_data(at) == at
