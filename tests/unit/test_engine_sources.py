"""The sources of the tests behave as the real one does."""

import os
from pathlib import Path

import pytest

from p2v_sync.device.source import DiskSource
from p2v_sync.engine.ports import Source
from p2v_sync.errors import SourceReadError
from p2v_sync.extent import Extent
from tests.contract.faults import SECTOR, FaultySource
from tests.contract.lab import BLOCK, MemorySource
from tests.contract.source_suite import PAGE, SourceSuite


class TestMemorySource(SourceSuite):
    def make(self, content: bytes) -> Source:
        return MemorySource(content)


class TestSparseMemorySource(SourceSuite):
    def make(self, content: bytes) -> Source:
        return MemorySource(content, sparse=True)


class TestDiskSource(SourceSuite):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    def make(self, content: bytes) -> Source:
        path = self.directory / "disk.img"
        with path.open("wb") as file:
            for at in range(0, len(content), PAGE):
                if any(content[at : at + PAGE]):
                    file.seek(at)
                    file.write(content[at : at + PAGE])
        os.truncate(path, len(content))
        return DiskSource(path)


def test_a_faulty_source_narrows_to_the_sector_and_fills_with_zeros() -> None:
    source = FaultySource("AE")
    buffer = bytearray(2 * BLOCK)
    assert source.read_into(memoryview(buffer), 0) == [Extent(BLOCK + SECTOR, SECTOR)]
    assert not any(buffer[BLOCK + SECTOR : BLOCK + 2 * SECTOR])
    assert all(buffer[BLOCK : BLOCK + SECTOR])
    assert source.read_into(memoryview(buffer)[:BLOCK], 0) == []
    source.repair()
    assert source.read_into(memoryview(buffer), 0) == []
    assert all(buffer)


def test_a_faulty_source_can_fail_instead() -> None:
    with pytest.raises(SourceReadError):
        FaultySource("E", fails=True).read_into(memoryview(bytearray(BLOCK)), 0)
