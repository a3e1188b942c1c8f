"""An initramfs as the kernel sees it: zeros, archives and compressed archives, one after another.

As unpack_to_rootfs in init/initramfs.c: an archive that is not compressed starts at a multiple of
four; what comes later replaces what came before.  Images come from the guest: whatever is in them
ends in a Image with a reason, never in an exception.
"""

from dataclasses import dataclass, field

from p2v_sync.fixup.initramfs import compression, cpio
from p2v_sync.fixup.initramfs.compression import Compression
from p2v_sync.fixup.initramfs.cpio import BadArchive, Entry
from p2v_sync.units import GIB, MIB

UNPACKED_MOST = GIB
_RATIO_MOST, _ALWAYS = 100, 64 * MIB  # an image shrinks to a third or so

# What is at the start of images that are none of cpio.
_OTHER_KINDS = (
    (0, b"MZ", "it is a unified kernel image (EFI program)"),
    (0, b"\x45\x3d\xcd\x28", "it is a cramfs image"),
    (0, b"\x28\xcd\x3d\x45", "it is a cramfs image"),
    (0, b"-rom1fs-", "it is a romfs image"),
    (0, b"hsqs", "it is a squashfs image"),
    (1080, b"\x53\xef", "it is an ext2 image"),
)


@dataclass(frozen=True)
class Segment:
    """``start`` to ``end``: bytes in the image; ``unpacked``: how many they are uncompressed."""

    compression: Compression
    start: int
    end: int
    unpacked: int
    entries: tuple[Entry, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Image:
    """``reason``: why it was not understood to its end, '' when it was."""

    length: int
    segments: tuple[Segment, ...] = ()
    reason: str = ""


def parse(data: bytes) -> Image:
    """What an initramfs consists of."""
    view, found = memoryview(data), list[Segment]()
    at = unpacked = 0
    most = min(UNPACKED_MOST, _ALWAYS + _RATIO_MOST * len(data))
    try:
        while (at := _after_zeros(view, at)) < len(view):
            segment = _segment(view, at, most - unpacked)
            unpacked += segment.unpacked
            found.append(segment)
            at = segment.end
    except BadArchive as error:
        return Image(len(data), tuple(found), str(error))
    return Image(len(data), tuple(found), "" if found else "it is empty")


def _after_zeros(data: memoryview, at: int) -> int:
    while at < len(data):
        piece = bytes(data[at : at + 4096])
        rest = piece.lstrip(b"\0")
        if rest:
            return at + len(piece) - len(rest)
        at += len(piece)
    return at


def _segment(data: memoryview, at: int, most: int) -> Segment:
    if cpio.is_archive(data, at):
        if at % 4:
            raise BadArchive(f"an archive at {at}, which is no multiple of 4")
        entries, end = cpio.read(data, at)
        return Segment(Compression.NONE, at, end, end - at, tuple(entries))
    kind = compression.recognised(data, at)
    if kind is None:
        raise BadArchive(_other_kind(data) or f"what stands at {at} is not known")
    unpacked, end = compression.decompress(kind, data, at, most)
    return Segment(kind, at, end, len(unpacked), tuple(_archives(unpacked)))


def _other_kind(data: memoryview) -> str:
    for offset, magic, reason in _OTHER_KINDS:
        if bytes(data[offset : offset + len(magic)]) == magic:
            return reason
    return ""


def _archives(data: memoryview) -> list[Entry]:
    found: list[Entry] = []
    at = 0
    while (at := _after_zeros(data, at)) < len(data):
        if not cpio.is_archive(data, at) or at % 4:
            raise BadArchive(_other_kind(data) or "there is no archive in its compressed data")
        entries, at = cpio.read(data, at, cpio.ENTRIES_MOST - len(found))
        found += entries
    return found
