"""Digests that are the same everywhere, compression that can't be made to explode, zeros."""

import hashlib
import mmap
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_receiver import codec
from p2v_receiver.wire import ENTRY_SIZE, ZERO

MIB = 1 << 20


def test_xxh3_is_the_same_from_the_module_and_from_the_library() -> None:
    module, library = codec._xxh3_from_module(), codec._xxh3_from_library()
    assert module is not None
    assert library is not None, "libxxhash0 is not installed"
    for length in (0, 1, 16, 17, 240, 241, 4096, 100_000):
        data = bytes(range(256)) * (length // 256 + 1)
        assert module(7)(data[:length]) == library(7)(data[:length])


def test_the_digests_stay() -> None:
    data = memoryview(b"p2v-sync" * 512)
    assert codec.digest_function("xxh3", 1)(data).hex() == "df0e59bc88422516c910426e15414e78"
    key = (1).to_bytes(8, "big")
    expected = hashlib.blake2b(data, digest_size=16, key=key).digest()
    assert codec.digest_function("blake2b", 1)(data) == expected
    assert codec.strong_digest(1)(data) != expected


def test_the_digests_of_pages_are_the_same_from_the_module_and_from_the_library() -> None:
    module, library = codec._pages_from_module(), codec._pages_from_library()
    assert module is not None
    assert library is not None, "libxxhash0 is not installed"
    for length in (1, 240, 4095, 4096, 4097, 3 * 4096 + 5, 262_144):
        for data in (memoryview(bytes(range(256)) * 1024), memoryview(bytearray(262_144))):
            digests = library(7)(data[:length])
            assert module(7)(data[:length]) == digests
            assert len(digests) == -(-length // 4096) * 8


def test_the_digests_of_pages_stay() -> None:
    data = memoryview(b"p2v-sync" * 512 + b"tail")
    expected = hashlib.blake2b(data[4096:], digest_size=8, key=(1).to_bytes(8, "big")).digest()
    assert codec.page_digests_function("blake2b", 1)(data)[8:] == expected
    assert codec.page_digests_function("xxh3", 1)(data).hex() == "c910426e15414e78e6768734ae0ef486"


def test_a_seed_makes_other_digests_of_pages() -> None:
    page = memoryview(b"x" * 4096)
    for name in codec.digest_names():
        of_pages = [codec.page_digests_function(name, seed)(page) for seed in (1, 2)]
        assert of_pages[0] != of_pages[1]


def test_a_seed_makes_other_digests() -> None:
    for name in codec.digest_names():
        assert codec.digest_function(name, 1)(b"x") != codec.digest_function(name, 2)(b"x")


@pytest.mark.parametrize("name", ["zstd", "zlib"])
class TestCompression:
    @given(data=st.binary(min_size=1, max_size=5000))
    def test_it_comes_back(self, name: str, data: bytes) -> None:
        chosen = codec.codec_by_name(name)
        packed = memoryview(chosen.compress(memoryview(data)))
        assert bytes(codec.decompress(chosen.number, packed, len(data))) == data

    @pytest.mark.parametrize("change", [-1, 1])
    def test_another_length_is_refused(self, name: str, change: int) -> None:
        chosen = codec.codec_by_name(name)
        packed = memoryview(chosen.compress(memoryview(bytes(5000))))
        with pytest.raises(codec.CodecError):
            codec.decompress(chosen.number, packed, 5000 + change)

    @given(data=st.binary(max_size=300))
    def test_damaged_data_is_an_error(self, name: str, data: bytes) -> None:
        with pytest.raises(codec.CodecError):
            codec.decompress(codec.codec_by_name(name).number, memoryview(data), 65536)

    def test_a_bomb_takes_no_more_memory_than_announced(self, name: str) -> None:
        chosen = codec.codec_by_name(name)
        bomb = memoryview(chosen.compress(memoryview(bytes(256 * MIB))))
        tracemalloc.start()
        with pytest.raises(codec.CodecError):
            codec.decompress(chosen.number, bomb, MIB)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * MIB


def test_raw_data_must_have_its_length() -> None:
    assert bytes(codec.decompress(codec.RAW, memoryview(b"abc"), 3)) == b"abc"
    with pytest.raises(codec.CodecError):
        codec.decompress(codec.RAW, memoryview(b"abc"), 4)


def test_an_unknown_compression_is_an_error() -> None:
    with pytest.raises(codec.CodecError):
        codec.decompress(99, memoryview(b"abc"), 3)


def test_zlib_reads_nothing_behind_its_end() -> None:
    packed = zlib.compress(b"abc") + b"more"
    with pytest.raises(codec.CodecError):
        codec.decompress(codec.ZLIB, memoryview(packed), 3)


@pytest.mark.parametrize("length", [1, 511, 4095, 4096, 4097, 262144, 4 * MIB, 4 * MIB + 1])
def test_zeros_and_one_byte_among_them(length: int) -> None:
    block = memoryview(mmap.mmap(-1, length))
    assert codec.is_zero(block)
    for at in {0, length // 2, length - 1}:
        block[at] = 1
        assert not codec.is_zero(block)
        block[at] = 0


def test_p4_entries_of_whole_and_cut_blocks() -> None:
    data = memoryview(bytes(4096) + b"x" * 4096 + b"y")
    digest = codec.digest_function("xxh3", 5)
    entries = codec.entries_of(data, 4096, digest)
    assert entries == [ZERO, digest(data[4096:8192]), digest(data[8192:])]
    assert all(len(entry) == ENTRY_SIZE for entry in entries)
