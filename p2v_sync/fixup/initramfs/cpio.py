"""cpio archives of the "newc" kind: what an initramfs is made of.

Source: Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c of the
kernel.  A header is ``070701`` (or ``070702``, with sums that nobody checks) and thirteen numbers
of eight hexadecimal digits; name and data are padded to four bytes.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace

MAGICS = (b"070701", b"070702")
TRAILER = "TRAILER!!!"
HEADER = 110
NAME_MOST = 4096  # PATH_MAX: what the kernel takes
ENTRIES_MOST = 200_000


class BadArchive(ValueError):
    """What is there can't be read.  The text says why, in few words."""


@dataclass(frozen=True)
class Entry:
    """A member.  ``name`` as it stands there (latin-1); ``data`` of a link: where it points."""

    name: str
    mode: int
    data: memoryview
    inode: tuple[int, int, int] = (0, 0, 0)  # with its device's two numbers
    links: int = 1

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


def is_archive(data: memoryview, start: int) -> bool:
    return bytes(data[start : start + 6]) in MAGICS


def read(data: memoryview, start: int, most: int = ENTRIES_MOST) -> tuple[list[Entry], int]:
    """One archive from ``start`` on: its members, and where its trailer ends.

    Members share ``data``.  Raises BadArchive.
    """
    entries: list[Entry] = []
    at = start
    while True:
        entry, at = _member(data, at)
        if entry.name == TRAILER:
            return _linked(entries), at
        entries.append(entry)
        if len(entries) > most:
            raise BadArchive("it has too many members")


def _member(data: memoryview, at: int) -> tuple[Entry, int]:
    if not is_archive(data, at):
        raise BadArchive(f"no cpio header at {at}")
    fields = _numbers(bytes(data[at + 6 : at + HEADER]))
    inode, mode, _, _, links, _, size, major, minor, _, _, name_size, _ = fields
    if not 0 < name_size <= NAME_MOST:
        raise BadArchive(f"a name of {name_size} bytes at {at}")
    name_end = at + HEADER + name_size
    start = _aligned(name_end)
    if start + size > len(data):
        raise BadArchive("it ends within a member")
    name = bytes(data[at + HEADER : name_end]).partition(b"\0")[0].decode("latin-1")
    entry = Entry(name, mode, data[start : start + size], (major, minor, inode), links)
    # The last one's padding may be missing.
    return entry, min(_aligned(start + size), len(data))


def _numbers(digits: bytes) -> list[int]:
    if len(digits) != HEADER - 6 or not all(each in b"0123456789abcdefABCDEF" for each in digits):
        raise BadArchive("a header that is cut short or has no numbers")
    return [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]


def _aligned(offset: int) -> int:
    return -(-offset // 4) * 4


def _linked(entries: list[Entry]) -> list[Entry]:
    """Only one name of a file with several comes with the data."""
    found = {
        entry.inode: entry.data
        for entry in entries
        if entry.is_file and entry.links > 1 and entry.data
    }
    return [
        replace(entry, data=found.get(entry.inode, entry.data))
        if entry.is_file and entry.links > 1
        else entry
        for entry in entries
    ]


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | mode, memoryview(data))


def directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755, memoryview(b""))


def link(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, memoryview(target.encode("latin-1")))


def write(entries: Iterable[Entry]) -> bytes:
    """An archive of these, in this order: owner root, no times, so that it is always the same."""
    parts: list[bytes] = []
    for number, entry in enumerate([*entries, Entry(TRAILER, 0, memoryview(b""))], 1):
        name = entry.name.encode("latin-1") + b"\0"
        links = 2 if entry.is_directory else 1
        numbers = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        head = MAGICS[0] + b"".join(b"%08X" % each for each in numbers) + name
        parts += [head, bytes(-len(head) % 4), bytes(entry.data), bytes(-len(entry.data) % 4)]
    return b"".join(parts)
