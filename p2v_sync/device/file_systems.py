"""May the free space of this file system be believed?  Pure judgements of what stands on the disk.

partclone reads allocation maps, but it looks at few signs that they are out of date: it maps an
ext4 or XFS whose journal has not been replayed, and a btrfs with a log tree, although these hold
files whose blocks still count as free.  So each file system is judged here first.  Layouts:
Documentation/filesystems/ext4/super.rst; xfs_format.h; btrfs_tree.h; fatgen103; layout.h (ntfs-3g).
"""

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from p2v_sync.units import MIB

# (start, length) in the file system → its bytes; raises DeviceError where they can't be read.
Read = Callable[[int, int], bytes]


class Judgement(NamedTuple):
    """``refusal``: why its free space is not believed, or ''.

    ``least_used``: bytes that it says are in use at least, so that a map of less is wrong.
    """

    refusal: str
    least_used: int = 0


def _u16(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<H", data, offset)[0])


def _u32(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", data, offset)[0])


def _u64(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", data, offset)[0])


_UNCLEAN = "it was not cleanly unmounted"
_EXT_VALID, _EXT_ERROR = 0x1, 0x2
_EXT_RECOVER, _EXT_64BIT = 0x4, 0x80  # incompatible features
_EXT_BIGALLOC = 0x200  # compatible for readers


def judge_ext(read: Read) -> Judgement:
    """ext2, ext3, ext4.  A crash leaves the state *valid* where there is a journal to replay."""
    block = read(1024, 1024)
    state, incompatible = _u16(block, 58), _u32(block, 96)
    if state & _EXT_ERROR:
        return Judgement("it has errors: e2fsck repairs them")
    if not state & _EXT_VALID or incompatible & _EXT_RECOVER:
        return Judgement(_UNCLEAN)
    if _u32(block, 100) & _EXT_BIGALLOC:
        return Judgement("it is made with bigalloc, which partclone may take for something else")
    blocks, free = _u32(block, 4), _u32(block, 12)
    if incompatible & _EXT_64BIT:
        blocks += _u32(block, 0x150) << 32
        free += _u32(block, 0x158) << 32
    return Judgement("", (blocks - free) * (1024 << min(_u32(block, 24), 16)))


# Incompatible features that leave the free space trees as they are: ftype, sparse inodes, meta
# uuid, bigtime, large extent counts, exchange range, parent pointers.
_XFS_KNOWN = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80


def judge_xfs(read: Read) -> Judgement:
    """XFS, but for its log: that is for ``xfs_log_refusal``."""
    block = read(0, 512)
    block_size, blocks = struct.unpack_from(">IQ", block, 4)
    (free,) = struct.unpack_from(">Q", block, 144)
    (features,) = struct.unpack_from(">I", block, 216)
    (version,) = struct.unpack_from(">H", block, 100)
    if version & 0xF == 5 and features & ~_XFS_KNOWN:
        return Judgement(f"it has features that are not known here ({features:#x})")
    return Judgement("", (blocks - free) * block_size)


def xfs_log_refusal(report: bytes) -> str:
    """From the first lines of ``xfs_logprint -t``: why the free space is not believed, or ''."""
    if b"state: <CLEAN>" in report:
        return ""
    return _UNCLEAN if b"state: <DIRTY>" in report else "the state of its log is not known"


_BTRFS_AT = 65536
_BTRFS_SEEDING = 1 << 32


def judge_btrfs(read: Read) -> Judgement:
    """btrfs.  Its trees are always of one moment; what was fsynced after it is in the log tree."""
    block = read(_BTRFS_AT, 4096)
    if _u64(block, 0x60):
        return Judgement(f"{_UNCLEAN}: it has a log tree")
    devices = _u64(block, 0x88)
    if devices != 1 or _u64(block, 0x38) & _BTRFS_SEEDING:
        return Judgement(f"it has other devices too ({devices})")
    return Judgement("", _u64(block, 0x78))


_FAT_DIRTY = 0x1  # as Linux and Windows set it in the boot sector; partclone looks into the FAT


def judge_fat(read: Read) -> Judgement:
    """FAT12, FAT16, FAT32.

    The whole first FAT is read: partclone takes an entry that it can't read for a free one.
    """
    boot = read(0, 512)
    sector_size, reserved, fat_sectors = _u16(boot, 11), _u16(boot, 14), _u16(boot, 22)
    is_fat32 = not fat_sectors
    if is_fat32:
        fat_sectors = _u32(boot, 36)
    if boot[65 if is_fat32 else 37] & _FAT_DIRTY:
        return Judgement(_UNCLEAN)
    for start, length in _pieces((reserved + fat_sectors) * sector_size):
        read(start, length)
    return Judgement("", (reserved + boot[16] * fat_sectors) * sector_size)


def _pieces(length: int) -> Iterator[tuple[int, int]]:
    return ((at, min(MIB, length - at)) for at in range(0, length, MIB))


_NTFS_RESTART_BYTES = 8192
_NTFS_NO_CLIENT = 0xFFFF
_NTFS_IS_CLEAN = 0x2


def judge_ntfs(read: Read) -> Judgement:
    """NTFS, but for its journal and hibernation: they are for the two functions below."""
    read(0, 512)
    return Judgement("")


def ntfs_log_refusal(log: bytes) -> str:
    """From the start of $LogFile: why the free space is not believed, or ''.

    The first two pages each say in which state the volume was left; the newer one counts.  A log
    of 0xFF alone is an empty one.  A volume of a hibernated Windows is in use here as well.
    """
    if log and not log.strip(b"\xff"):
        return ""
    try:
        pages = [log, log[_u32(log, 16) :]] if log.startswith(b"RSTR") else []
        areas = [page[_u16(page, 24) :] for page in pages if page.startswith(b"RSTR")]
        newest = max(areas, key=lambda area: _u64(area, 0))
        is_idle = _u16(newest, 12) == _NTFS_NO_CLIENT or _u16(newest, 14) & _NTFS_IS_CLEAN
    except (struct.error, ValueError):
        return "its journal can't be understood"
    return "" if is_idle else f"{_UNCLEAN}, or Windows is hibernated"


def hibernation_refusal(start: bytes) -> str:
    """From the first bytes of hiberfil.sys: why the free space is not believed, or ''.

    Windows overwrites them with zeros, or with "wake", when it resumed.
    """
    is_over = not start.strip(b"\0") or start[:4].lower() == b"wake"
    return "" if is_over else "Windows is hibernated on it: shut it down completely"


_COMPLAINT = re.compile(
    r"\b(error|fail(ed|ure)?|bad|invalid|corrupt(ed|ion)?|damaged|mismatch|unable|missing|bug)\b"
    r"|couldn't|can't|cannot|could not",
    re.IGNORECASE,
)


def complaint_in(text: str) -> str:
    """The first line in which partclone, or a library below it, complains, or ''.

    btrfs trees that it can't read it leaves out with no more than that: what they use would count
    as free.
    """
    return next((line.strip() for line in text.splitlines() if _COMPLAINT.search(line)), "")
