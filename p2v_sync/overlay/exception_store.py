"""Which chunks of a disk were changed: dm-snapshot's persistent exception store.  Pure.

drivers/md/dm-snap-persistent.c; all numbers are little endian:

  chunk 0           "SnAp", valid, version (1), chunk size in sectors: u32 each
  chunk 1           area 0: pairs of u64, old chunk (of the origin) and new chunk (of the store)
  the next n        the data of its n exceptions, n = chunk size / 16
  chunk 1 + (n + 1) area 1, and so on

A pair whose new chunk is 0 ends the list.  An area that is full has a successor: the kernel zeroes
that before it commits the last pair.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from p2v_sync.errors import OverlayError, OverlayFull

# (start, length) in the store → its bytes; fewer at its end.
Read = Callable[[int, int], bytes]

_SECTOR = 512
_MAGIC = 0x70416E53
_VERSION = 1
_HEADER = struct.Struct("<IIII")
_PAIR = struct.Struct("<QQ")
# A page is the least the kernel takes where pages are 4 KiB, but disks with smaller blocks exist;
# 16 MiB is beyond any use.
_CHUNK_LEAST, _CHUNK_MOST = _SECTOR, 16 * 1024 * 1024


@dataclass(frozen=True)
class ExceptionStore:
    """``exceptions``: chunk of the origin → the one of the store that replaces it."""

    chunk_size: int  # bytes
    exceptions: Mapping[int, int]


def read_store(read: Read, size: int, origin_size: int) -> ExceptionStore:
    """The exceptions of a store of ``size`` bytes, for an origin of ``origin_size``.

    Raises OverlayFull for one that the kernel gave up, OverlayError for what is no store or is
    damaged, and what ``read`` raises.
    """
    chunk_size = _read_header(read)
    exceptions: dict[int, int] = {}
    taken: set[int] = set()
    for old, new in _pairs(read, chunk_size, size):
        _check_pair(old, new, chunk_size, size, origin_size)
        if old in exceptions or new in taken:
            raise _damaged(f"chunk {old} of the disk or {new} of the store is there twice")
        exceptions[old] = new
        taken.add(new)
    return ExceptionStore(chunk_size, exceptions)


def _damaged(why: str) -> OverlayError:
    return OverlayError(
        f"the exception store is damaged: {why}",
        hint="remove the overlay and make a new one: nothing was written to the disk",
    )


def _read_header(read: Read) -> int:
    """The chunk size."""
    raw = read(0, _HEADER.size)
    if len(raw) < _HEADER.size:
        raise _damaged("it ends within its header")
    magic, valid, version, chunk_sectors = _HEADER.unpack(raw)
    if magic != _MAGIC:
        raise _damaged("it does not begin as one")
    if version != _VERSION:
        raise _damaged(f"version {version} is not known")
    if not valid:
        raise OverlayFull(
            "the overlay is invalid: its copy-on-write space overflowed",
            hint="remove it and make one with more space (--cow-size)",
        )
    chunk_size = int(chunk_sectors) * _SECTOR
    if chunk_size & (chunk_size - 1) or not _CHUNK_LEAST <= chunk_size <= _CHUNK_MOST:
        raise _damaged(f"its chunks would have {chunk_size} bytes")
    return chunk_size


def _pairs(read: Read, chunk_size: int, size: int) -> Iterator[tuple[int, int]]:
    """The pairs of all areas, up to the one that ends them."""
    stride = chunk_size // _PAIR.size + 1
    for location in range(1, size // chunk_size, stride):
        area = read(location * chunk_size, chunk_size)
        if len(area) < chunk_size:
            raise _damaged(f"it ends within the area at chunk {location}")
        for old, new in _PAIR.iter_unpack(area):
            if new == 0:
                return
            yield old, new
    raise _damaged("its list of chunks has no end")


def _check_pair(old: int, new: int, chunk_size: int, size: int, origin_size: int) -> None:
    stride = chunk_size // _PAIR.size + 1
    if old * chunk_size >= origin_size:
        raise _damaged(f"chunk {old} lies beyond the disk")
    if (new + 1) * chunk_size > size:
        raise _damaged(f"chunk {new} lies beyond the store")
    if new % stride == 1:
        raise _damaged(f"chunk {new} is data and a list at the same time")
