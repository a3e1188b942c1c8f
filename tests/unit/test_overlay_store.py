"""The parser of dm-snapshot's exception store, and the delta made of it."""

import struct
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.errors import OverlayError, OverlayFull
from p2v_sync.overlay.delta import Delta
from p2v_sync.overlay.exception_store import ExceptionStore, read_store

SECTOR = 512
ORIGIN = 1 << 30


def write_store(pairs: list[tuple[int, int]], chunk_size: int, chunks: int) -> bytearray:
    """As the kernel does: pairs in order of their making, whatever they say."""
    store = bytearray(chunks * chunk_size)
    struct.pack_into("<IIII", store, 0, 0x70416E53, 1, 1, chunk_size // SECTOR)
    per_area = chunk_size // 16
    for number, pair in enumerate(pairs):
        area, index = divmod(number, per_area)
        location = 1 + (per_area + 1) * area
        struct.pack_into("<QQ", store, location * chunk_size + index * 16, *pair)
    return store


def allocate(count: int, chunk_size: int) -> list[int]:
    """The new chunks the kernel takes, one after the other, past the areas."""
    stride = chunk_size // 16 + 1
    free = 2
    found: list[int] = []
    while len(found) < count:
        if free % stride != 1:
            found.append(free)
        free += 1
    return found


def reader(store: bytes | bytearray) -> Callable[[int, int], bytes]:
    return lambda start, length: bytes(store[start : start + length])


@st.composite
def stores(draw: st.DrawFn) -> tuple[bytearray, int, Mapping[int, int]]:
    chunk_size = draw(st.sampled_from([512, 1024, 4096]))
    old = draw(st.lists(st.integers(0, ORIGIN // chunk_size - 1), unique=True, max_size=100))
    new = allocate(len(old), chunk_size)
    room = (new[-1] if new else 1) + 2 + draw(st.integers(0, 3))
    pairs = list(zip(old, new, strict=True))
    return write_store(pairs, chunk_size, room + 40), chunk_size, dict(pairs)


@given(stores())
def test_what_is_written_is_read(made: tuple[bytearray, int, Mapping[int, int]]) -> None:
    store, chunk_size, pairs = made
    assert read_store(reader(store), len(store), ORIGIN) == ExceptionStore(chunk_size, pairs)


def test_the_second_area_is_where_the_kernel_has_it() -> None:
    """drivers/md/dm-snap-persistent.c, area_location: 1 + (256 + 1) * 1 for 4 KiB."""
    pairs = list(enumerate(allocate(257, 4096)))
    assert pairs[-1] == (256, 259)
    store = write_store(pairs, 4096, 300)
    assert struct.unpack_from("<QQ", store, 258 * 4096) == (256, 259)
    assert read_store(reader(store), len(store), ORIGIN).exceptions == dict(pairs)


@given(stores(), st.data())
def test_damage_and_truncation_are_errors_and_nothing_else(
    made: tuple[bytearray, int, Mapping[int, int]], data: st.DataObject
) -> None:
    store, chunk_size, _ = made
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(store), 4 * chunk_size) - 1))
        store[at] = data.draw(st.integers(0, 255))
    cut = store[: data.draw(st.integers(0, len(store)))]
    size = data.draw(st.sampled_from([len(store), len(cut)]))
    try:
        found = read_store(reader(cut), size, ORIGIN)
    except OverlayError:
        return
    stride = found.chunk_size // 16 + 1
    for old, new in found.exceptions.items():
        assert old * found.chunk_size < ORIGIN
        assert (new + 1) * found.chunk_size <= size
        assert new > 1
        assert new % stride != 1


@pytest.mark.parametrize("length", range(0, 16, 5))
def test_a_store_that_ends_within_its_header(length: int) -> None:
    store = write_store([], 4096, 4)[:length]
    with pytest.raises(OverlayError, match="ends within its header"):
        read_store(reader(store), len(store), ORIGIN)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ((0x70416E54, 1, 1, 8), "does not begin"),
        ((0, 0, 0, 0), "does not begin"),
        ((0x70416E53, 1, 2, 8), "version 2"),
        ((0x70416E53, 1, 1, 0), "0 bytes"),
        ((0x70416E53, 1, 1, 12), "6144 bytes"),
        ((0x70416E53, 1, 1, 1 << 16), "33554432 bytes"),
    ],
)
def test_headers_that_are_refused(header: tuple[int, ...], said: str) -> None:
    store = write_store([], 4096, 4)
    struct.pack_into("<IIII", store, 0, *header)
    with pytest.raises(OverlayError, match=said):
        read_store(reader(store), len(store), ORIGIN)


def test_p8_a_store_the_kernel_gave_up_has_no_delta() -> None:
    store = write_store([(5, 2)], 4096, 4)
    struct.pack_into("<I", store, 4, 0)
    with pytest.raises(OverlayFull, match="overflowed"):
        read_store(reader(store), len(store), ORIGIN)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([(5, 2), (5, 3)], "twice"),
        ([(5, 2), (6, 2)], "twice"),
        ([(5, 1)], "a list at the same time"),
        ([(5, 258)], "a list at the same time"),
        ([(5, 300)], "beyond the store"),
        ([(5, (1 << 64) - 1)], "beyond the store"),
        ([(ORIGIN // 4096, 2)], "beyond the disk"),
        ([((1 << 64) - 1, 2)], "beyond the disk"),
    ],
)
def test_pairs_that_are_refused(pairs: list[tuple[int, int]], said: str) -> None:
    store = write_store(pairs, 4096, 300)
    with pytest.raises(OverlayError, match=said):
        read_store(reader(store), len(store), ORIGIN)


def test_the_last_chunk_of_a_disk_may_be_replaced() -> None:
    store = write_store([(2, 2)], 4096, 4)
    assert read_store(reader(store), len(store), 2 * 4096 + 512).exceptions == {2: 2}


def test_a_full_area_without_a_successor_is_an_error() -> None:
    store = write_store(list(enumerate(allocate(32, 512))), 512, 34)
    with pytest.raises(OverlayError, match="no end"):
        read_store(reader(store), len(store), ORIGIN)


# The delta.


def delta_of(pairs: Mapping[int, int], store: bytes, origin: bytes) -> Delta:
    found = ExceptionStore(512, pairs)
    return Delta(found, reader(store), reader(origin), len(origin))


def test_the_delta_has_what_differs_in_the_order_of_the_disk() -> None:
    origin = b"a" * 512 + b"b" * 512 + b"c" * 512 + b"d" * 100
    store = bytes(1024) + b"D" * 512 + b"b" * 512 + b"A" * 512
    delta = delta_of({3: 2, 1: 3, 0: 4}, store, origin)
    assert list(delta) == [(0, b"A" * 512), (1536, b"D" * 100)]
    counts = delta.counts
    assert (counts.changed, counts.unchanged, counts.length) == (2, 1, 612)
    assert list(delta) == [(0, b"A" * 512), (1536, b"D" * 100)], "again"
    assert delta.counts.changed == 2


def test_what_cannot_be_read_of_the_origin_differs() -> None:
    delta = Delta(ExceptionStore(512, {0: 1}), reader(bytes(1024)), lambda *_: b"", 512)
    assert list(delta) == [(0, bytes(512))]


def test_a_short_store_is_an_error() -> None:
    with pytest.raises(OverlayError, match="not whole"):
        list(delta_of({0: 1}, bytes(700), bytes(512)))


@given(
    st.binary(min_size=1, max_size=3000),
    st.dictionaries(st.integers(0, 5), st.binary(min_size=512, max_size=512)),
)
def test_origin_and_delta_are_the_overlay(origin: bytes, changes: dict[int, bytes]) -> None:
    changes = {old: data for old, data in changes.items() if old * 512 < len(origin)}
    new = dict(zip(changes, allocate(len(changes), 512), strict=True))
    store = bytearray(512 * 64)
    shown, result = bytearray(origin), bytearray(origin)
    for old, data in changes.items():
        store[new[old] * 512 : new[old] * 512 + 512] = data
        length = min(512, len(origin) - old * 512)
        shown[old * 512 : old * 512 + length] = data[:length]
    for start, content in delta_of(new, bytes(store), origin):
        assert result[start : start + len(content)] != content
        result[start : start + len(content)] = content
    assert result == shown
