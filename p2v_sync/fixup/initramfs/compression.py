"""The compressions the kernel knows for an initramfs (lib/decompress.c), recognised and undone.

gzip, bzip2, xz and lzma by the standard library; zstd, lz4 and lzo by the shared libraries that
systemd, dpkg, rpm and btrfs-progs need, so that they are there: looked for once, by ctypes.
"""

import bz2
import ctypes
import lzma
import zlib
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from p2v_sync.fixup.initramfs.cpio import BadArchive
from p2v_sync.units import KIB, MIB

_STEP = 256 * KIB
_XZ_MEMORY_MOST = 256 * MIB
_LZ4_BLOCK = 8 * MIB  # of the legacy format
_LZO_BLOCK = 256 * KIB  # as the kernel takes them
_LZ4_MAGIC = b"\x02\x21\x4c\x18"


class Compression(StrEnum):
    """What a segment is packed with."""

    NONE = "none"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    LZMA = "lzma"
    LZO = "lzo"
    LZ4 = "lz4"
    ZSTD = "zstd"


_MAGICS = (
    (b"\x1f\x8b", Compression.GZIP),
    (b"BZh", Compression.BZIP2),
    (b"\xfd7zXZ\x00", Compression.XZ),
    (b"\x5d\x00\x00", Compression.LZMA),
    (b"\x89LZO\x00", Compression.LZO),
    (_LZ4_MAGIC, Compression.LZ4),
    (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
)


def recognised(data: memoryview, start: int) -> Compression | None:
    head = bytes(data[start : start + 8])
    return next((kind for magic, kind in _MAGICS if head.startswith(magic)), None)


class _Decoder(Protocol):
    """What bz2 and lzma have."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer of zstd.h."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("position", ctypes.c_size_t),
    )


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


_zstd = _library("libzstd.so.1")
_lz4 = _library("liblz4.so.1")
_lzo = _library("liblzo2.so.2")
if _zstd is not None:
    _zstd.ZSTD_createDStream.restype = ctypes.c_void_p
    _zstd.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
    _zstd.ZSTD_decompressStream.restype = ctypes.c_size_t
    _zstd.ZSTD_decompressStream.argtypes = [ctypes.c_void_p] + [ctypes.POINTER(_Buffer)] * 2
    _zstd.ZSTD_isError.argtypes = [ctypes.c_size_t]


class _Zstd:
    """One frame, as the others do it.  Its window is 128 MiB at most: the library sees to it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._stream = library.ZSTD_createDStream()
        self._kept = b""
        self._room = ctypes.create_string_buffer(_STEP)
        self.eof = False

    def __del__(self) -> None:
        self._library.ZSTD_freeDStream(self._stream)

    @property
    def unused_data(self) -> bytes:
        return self._kept

    @property
    def needs_input(self) -> bool:
        return not self._kept

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        given = self._kept + data
        source = ctypes.create_string_buffer(given, len(given))
        before = _Buffer(ctypes.addressof(source), len(given), 0)
        after = _Buffer(ctypes.addressof(self._room), min(max_length, _STEP), 0)
        left = self._library.ZSTD_decompressStream(self._stream, after, before)
        if self._library.ZSTD_isError(left):
            raise ValueError("damaged")
        self.eof = left == 0
        self._kept = given[before.position :]
        return self._room.raw[: after.position]


_DECODERS: dict[Compression, Callable[[], _Decoder]] = {
    Compression.GZIP: _Gzip,
    Compression.BZIP2: bz2.BZ2Decompressor,
    Compression.XZ: lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY_MOST),
    Compression.LZMA: lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, _XZ_MEMORY_MOST),
}
if _zstd is not None:
    _found = _zstd
    _DECODERS[Compression.ZSTD] = lambda: _Zstd(_found)


def decompress(
    kind: Compression, data: memoryview, start: int, most: int
) -> tuple[memoryview, int]:
    """The stream at ``start`` → what it holds, and where it ends.

    Raises BadArchive, also when it would be longer than ``most`` bytes.
    """
    if kind is Compression.LZ4 and _lz4 is not None:
        return _from_lz4(_lz4, data, start, most)
    if kind is Compression.LZO and _lzo is not None:
        return _from_lzo(_lzo, data, start, most)
    if kind not in _DECODERS:
        raise BadArchive(f"{kind} can't be decompressed here")
    try:
        return _pumped(_DECODERS[kind](), data, start, most)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise BadArchive(f"its {kind} data is not in order: {error}") from error


def _pumped(decoder: _Decoder, data: memoryview, start: int, most: int) -> tuple[memoryview, int]:
    found = bytearray()
    at = start
    while not decoder.eof:
        given = b""
        if decoder.needs_input:
            given = bytes(data[at : at + _STEP])
            at += len(given)
        made = decoder.decompress(given, _STEP)
        found += made
        if len(found) > most:
            raise BadArchive(f"more than {most} bytes in it")
        if not (made or given or decoder.eof):
            raise BadArchive("it ends too early")
    return memoryview(found).toreadonly(), at - len(decoder.unused_data)


def _from_lz4(
    library: ctypes.CDLL, data: memoryview, start: int, most: int
) -> tuple[memoryview, int]:
    """The legacy format: the magic, then blocks with their length before them, without an end.

    As lib/decompress_unlz4.c: another magic just goes on, a length of zero ends it.
    """
    found = bytearray()
    room = ctypes.create_string_buffer(_LZ4_BLOCK)
    at = start
    while at + 4 <= len(data):
        head = bytes(data[at : at + 4])
        length = int.from_bytes(head, "little")
        if length == 0:
            break
        at += 4
        if head == _LZ4_MAGIC:
            continue
        block = bytes(data[at : at + length])
        made = library.LZ4_decompress_safe(block, room, len(block), _LZ4_BLOCK)
        if len(block) < length or made < 0:
            raise BadArchive("its lz4 data is not in order")
        found += memoryview(room)[:made]
        at += length
        if len(found) > most:
            raise BadArchive(f"more than {most} bytes in it")
    return memoryview(found).toreadonly(), at


def _from_lzo(
    library: ctypes.CDLL, data: memoryview, start: int, most: int
) -> tuple[memoryview, int]:
    """The format of lzop: a header, then blocks with both lengths and sums before them.

    As lib/decompress_unlzo.c; a length of zero ends it.  The sums are not looked at.
    """
    found = bytearray()
    room = ctypes.create_string_buffer(_LZO_BLOCK)
    at, sums, sums_of_packed = _lzop_header(data, start)
    while length := _number(data, at, 4):
        packed = _number(data, at + 4, 4)
        at += 8 + 4 * sums + (4 * sums_of_packed if packed < length else 0)
        block = bytes(data[at : at + packed])
        at += packed
        made = ctypes.c_size_t(_LZO_BLOCK)
        if not 0 < packed <= length <= _LZO_BLOCK or len(block) < packed:
            raise BadArchive("its lzo data is not in order")
        if packed < length:
            if library.lzo1x_decompress_safe(
                block, ctypes.c_size_t(packed), room, ctypes.byref(made), None
            ):
                raise BadArchive("its lzo data is not in order")
            block = room.raw[: made.value]
        found += block
        if len(found) > most:
            raise BadArchive(f"more than {most} bytes in it")
    return memoryview(found).toreadonly(), at + 4


def _lzop_header(data: memoryview, start: int) -> tuple[int, int, int]:
    """Where the first block starts, and how many sums of data and of packed data each has."""
    has_level = _number(data, start + 9, 2) >= 0x0940
    at = start + (17 if has_level else 14)
    flags = _number(data, at, 4)
    at += 8 if flags & 0x800 else 4  # a filter
    at += 12 if has_level else 8  # permissions and times
    at += 1 + _number(data, at, 1) + 4  # the name, and a sum
    return at, bool(flags & 0x001) + bool(flags & 0x100), bool(flags & 0x002) + bool(flags & 0x200)


def _number(data: memoryview, at: int, length: int) -> int:
    found = bytes(data[at : at + length])
    if len(found) < length:
        raise BadArchive("it ends too early")
    return int.from_bytes(found, "big")


def as_lz4(data: bytes) -> bytes:
    """An lz4 stream of the legacy kind that any decoder takes: literals only, nothing saved."""
    parts = [_LZ4_MAGIC]
    for start in range(0, len(data), _LZ4_BLOCK):
        piece = data[start : start + _LZ4_BLOCK]
        rest = len(piece) - 15
        # A token, 15 or more literals: lengths go on in bytes of 255 (lz4_Block_format.md).
        head = b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255])
        block = (bytes([len(piece) << 4]) if rest < 0 else head) + piece
        parts += [len(block).to_bytes(4, "little"), block]
    return b"".join(parts)
