"""cpio archives: what is written is read again, and no bytes make the reader fail otherwise."""

import contextlib
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.fixup.initramfs import cpio
from p2v_sync.fixup.initramfs.cpio import BadArchive, Entry

NAMES = st.text(
    st.characters(codec="latin-1", exclude_characters="\0"), min_size=1, max_size=30
).filter(lambda name: name != cpio.TRAILER)
MODES = st.sampled_from([stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777])
ENTRIES = st.builds(
    lambda name, mode, data: Entry(name, mode, memoryview(data)), NAMES, MODES, st.binary()
)

# struct cpio_newc_header: two names of inode 7, the second with the data.
LINKED = "".join(
    f"070701{7:08X}{0o100644:08X}{0:08X}{0:08X}{2:08X}{0:08X}{size:08X}"
    f"{8:08X}{1:08X}{0:08X}{0:08X}{2:08X}{0:08X}{name}\0{data}"
    for name, size, data in (("a", 0, ""), ("b", 4, "data"))
).encode() + cpio.write([])


@given(st.lists(ENTRIES), st.integers(0, 3))
def test_what_is_written_is_read_again(entries: list[Entry], before: int) -> None:
    data = bytes(4 * before) + cpio.write(entries) + b"rest"
    found, end = cpio.read(memoryview(data), 4 * before)
    assert [(each.name, each.mode, bytes(each.data)) for each in found] == [
        (each.name, each.mode, bytes(each.data)) for each in entries
    ]
    assert data[end:] == b"rest"
    assert len(data) % 4 == 0


@given(st.binary(max_size=300), st.integers(0, 500))
def test_a_broken_archive_is_a_bad_archive_and_nothing_else(junk: bytes, at: int) -> None:
    whole = cpio.write([cpio.file("init", b"#!/bin/sh\n"), cpio.link("lib", "usr/lib")])
    broken = whole[:at] + junk + whole[at + len(junk) :]
    with contextlib.suppress(BadArchive):
        cpio.read(memoryview(broken), 0)


@pytest.mark.parametrize("length", [0, 5, 109, 115, 200])
def test_an_archive_that_is_cut_short(length: int) -> None:
    whole = cpio.write([cpio.file("init", bytes(300))])
    with pytest.raises(BadArchive, match="within a member" if length == 200 else None):
        cpio.read(memoryview(whole)[:length], 0)


def test_sizes_beyond_the_end_and_names_without_end_are_refused() -> None:
    whole = cpio.write([cpio.file("init", b"data")])
    for field in (6, 11):  # the size of the data, of the name
        at = 6 + 8 * field
        for size in (b"FFFFFFFF", b"00100000", b" 0000001", b"0x000001"):
            with pytest.raises(BadArchive):
                cpio.read(memoryview(whole[:at] + size + whole[at + 8 :]), 0)


def test_all_names_of_a_file_have_its_data() -> None:
    found, _ = cpio.read(memoryview(LINKED), 0)
    assert [(each.name, bytes(each.data)) for each in found] == [("a", b"data"), ("b", b"data")]


def test_members_are_counted() -> None:
    with pytest.raises(BadArchive, match="too many"):
        cpio.read(memoryview(cpio.write([cpio.file("a", b"")] * 4)), 0, most=3)


def test_the_same_files_make_the_same_archive() -> None:
    assert cpio.write([cpio.file("a", b"1")]) == cpio.write([cpio.file("a", b"1")])
