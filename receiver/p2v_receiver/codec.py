"""Digests, compression and the zero test: what both ends do to the bytes of a block.

The fast implementations are optional and looked for once: the ``xxhash`` module or
``libxxhash.so.0`` for xxh3, ``libzstd.so.1`` (which dpkg and rpm need) for zstd.  BLAKE2b and
zlib are always there.  Bulk data comes as memoryviews; the GIL is released while it is worked on.
"""

import ctypes
import ctypes.util
import hashlib
import struct
import zlib
from typing import Any, Callable, Dict, List, Optional, Type

from .wire import ENTRY_SIZE, PAGE_DIGEST_SIZE, PAGE_SIZE, ZERO, Buffer, Json, Run

Digest = Callable[[Buffer], bytes]
PageDigests = Callable[[memoryview], bytes]

_ZEROS = bytes(4 * 1024 * 1024)
_PROBE = _ZEROS[:4096]
_START = struct.Struct("!Q")

RAW, ZLIB, ZSTD = 0, 1, 2
CODEC_NAMES = {RAW: "none", ZLIB: "zlib", ZSTD: "zstd"}


class CodecError(Exception):
    """Compressed data is damaged, or would grow past the length that was announced."""


def is_zero(block: memoryview) -> bool:
    """True when every byte is zero.

    A slice comparison runs at memcmp speed only between bytes objects (comparing a memoryview is a
    hundred times slower), so the block is copied, but only after its first page turned out zero.
    """
    if bytes(block[:4096]) != _PROBE[: len(block)]:
        return False
    for start in range(0, len(block), len(_ZEROS)):
        piece = bytes(block[start : start + len(_ZEROS)])
        if piece != _ZEROS[: len(piece)]:
            return False
    return True


def _load(name: str, kind: Type[ctypes.CDLL] = ctypes.CDLL) -> Optional[ctypes.CDLL]:
    try:
        return kind(name)
    except OSError:
        return None


def _xxh3_from_module() -> Optional[Callable[[int], Digest]]:
    try:
        from xxhash import xxh3_128_digest
    except ImportError:
        return None
    return lambda seed: lambda data: xxh3_128_digest(data, seed)


class _Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


def _address(data: Buffer) -> "ctypes.Array[ctypes.c_char]":
    """A ctypes view of the bytes, without a copy where the buffer is writable."""
    view = memoryview(data)
    if view.readonly:
        return ctypes.create_string_buffer(view.tobytes(), len(view))
    return (ctypes.c_char * len(view)).from_buffer(view)


def _xxh3_from_library() -> Optional[Callable[[int], Digest]]:
    library = _load("libxxhash.so.0")
    function = getattr(library, "XXH3_128bits_withSeed", None)
    if function is None:
        return None
    function.restype = _Hash128
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64]

    def with_seed(seed: int) -> Digest:
        def digest(data: Buffer) -> bytes:
            value = function(_address(data), len(data), seed)
            # The canonical form: big-endian, high half first (XXH128_canonicalFromHash).
            return int(value.high << 64 | value.low).to_bytes(16, "big")

        return digest

    return with_seed


def _pages_from_module() -> Optional[Callable[[int], PageDigests]]:
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError:
        return None

    def with_seed(seed: int) -> PageDigests:
        return lambda data: _packed([xxh3_64_intdigest(page, seed) for page in _pages(data)])

    return with_seed


def _pages(data: memoryview) -> List[memoryview]:
    return [data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)]


def _packed(digests: List[int]) -> bytes:
    return struct.pack("!{}Q".format(len(digests)), *digests)


def _pages_from_library() -> Optional[Callable[[int], PageDigests]]:
    # PyDLL keeps the GIL: to let it go costs more than the digest of a page.
    function = getattr(_load("libxxhash.so.0", ctypes.PyDLL), "XXH3_64bits_withSeed", None)
    if function is None:
        return None
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64]

    def with_seed(seed: int) -> PageDigests:
        def digests(data: memoryview) -> bytes:
            memory, length = _address(data), len(data)
            first = ctypes.addressof(memory)
            return _packed(
                [
                    function(first + at, min(PAGE_SIZE, length - at), seed)
                    for at in range(0, length, PAGE_SIZE)
                ]
            )

        return digests

    return with_seed


def _blake2b_pages(seed: int) -> PageDigests:
    key, size = seed.to_bytes(8, "big"), PAGE_DIGEST_SIZE
    return lambda data: b"".join(
        [hashlib.blake2b(page, digest_size=size, key=key).digest() for page in _pages(data)]
    )


def _blake2b(seed: int) -> Digest:
    key = seed.to_bytes(8, "big")
    return lambda data: hashlib.blake2b(data, digest_size=ENTRY_SIZE, key=key).digest()


_DIGESTS: Dict[str, Callable[[int], Digest]] = {"blake2b": _blake2b}
_PAGE_DIGESTS: Dict[str, Callable[[int], PageDigests]] = {"blake2b": _blake2b_pages}
_xxh3 = _xxh3_from_module() or _xxh3_from_library()
_xxh3_pages = _pages_from_module() or _pages_from_library()
if _xxh3 is not None and _xxh3_pages is not None:
    _DIGESTS["xxh3"] = _xxh3
    _PAGE_DIGESTS["xxh3"] = _xxh3_pages


def digest_names() -> List[str]:
    """The block digests this end can do, best first."""
    return [name for name in ("xxh3", "blake2b") if name in _DIGESTS]


def digest_function(name: str, seed: int) -> Digest:
    """The block digest ``name`` with a job's 64-bit seed: bytes → 16 bytes.  Raises KeyError."""
    return _DIGESTS[name](seed)


def page_digests_function(name: str, seed: int) -> PageDigests:
    """For one block's bytes: the packed 8-byte digests of its 4 KiB pages.  Raises KeyError.

    Only a hint what to send of a block: its digest as a whole decides whether that was right.
    """
    return _PAGE_DIGESTS[name](seed)


def strong_digest(seed: int) -> Digest:
    """The digest of verification: keyed BLAKE2b-128, never the same as a block's own digest."""
    key = b"verify" + seed.to_bytes(8, "big")
    return lambda data: hashlib.blake2b(data, digest_size=ENTRY_SIZE, key=key).digest()


def entries_of(data: memoryview, block_size: int, digest: Digest) -> List[bytes]:
    """One entry a block: ZERO for zeros, else its digest.  ``data`` starts on a block."""
    entries = []
    for start in range(0, len(data), block_size):
        block = data[start : start + block_size]
        entries.append(ZERO if is_zero(block) else digest(block))
    return entries


def entries_digest(entries: Buffer) -> bytes:
    """BLAKE2b-128: of packed entries it names the state of a segment or of a whole disk."""
    return hashlib.blake2b(entries, digest_size=ENTRY_SIZE).digest()


class Tally:
    """Counts the runs of a delta, and digests the (start, digest) of all of them in order (P7)."""

    def __init__(self) -> None:
        self._runs = 0
        self._length = 0
        self._digest = hashlib.blake2b(digest_size=ENTRY_SIZE)

    def add(self, run: Run) -> None:
        self._runs += 1
        self._length += run.length
        self._digest.update(_START.pack(run.start) + run.digest)

    def end_record(self) -> Json:
        return {
            "runs": self._runs,
            "bytes": self._length,
            "digest": self._digest.hexdigest(),
        }


class Codec:
    """One compression: its number on the wire, and both directions."""

    def __init__(
        self,
        number: int,
        compress: Callable[[Buffer], bytes],
        decompress: Callable[[Buffer, int], bytes],
    ) -> None:
        self.number = number
        self.name = CODEC_NAMES[number]
        self.compress = compress
        self.decompress = decompress


def _zlib_decompress(data: Buffer, length: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(bytes(data), max(1, length))  # 0 would mean: without limit
    except zlib.error as error:
        raise CodecError("zlib: {}".format(error)) from None
    if len(raw) != length or not unpacker.eof or unpacker.unused_data:
        raise CodecError("zlib: the data is not {} bytes long".format(length))
    return raw


def _of_length(raw: bytes, length: int) -> bytes:
    if len(raw) != length:
        raise CodecError("the data is {} bytes long, not {}".format(len(raw), length))
    return raw


def _load_zstd() -> Optional[Codec]:
    library = _load("libzstd.so.1")
    if library is None or not hasattr(library, "ZSTD_compress"):
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.ZSTD_compressBound.restype = size
    library.ZSTD_compressBound.argtypes = [size]
    library.ZSTD_compress.restype = size
    library.ZSTD_compress.argtypes = [pointer, size, pointer, size, ctypes.c_int]
    library.ZSTD_decompress.restype = size
    library.ZSTD_decompress.argtypes = [pointer, size, pointer, size]
    library.ZSTD_isError.restype = ctypes.c_uint
    library.ZSTD_isError.argtypes = [size]

    def call(function: Any, room: int, data: Buffer, *more: int) -> bytes:
        output = ctypes.create_string_buffer(room)
        count = function(output, room, _address(data), len(data), *more)
        if library.ZSTD_isError(count):
            raise CodecError("zstd: the data is damaged or longer than announced")
        return ctypes.string_at(output, count)

    def compress(data: Buffer) -> bytes:
        return call(library.ZSTD_compress, library.ZSTD_compressBound(len(data)), data, 1)

    def decompress(data: Buffer, length: int) -> bytes:
        return _of_length(call(library.ZSTD_decompress, length, data), length)

    return Codec(ZSTD, compress, decompress)


_CODECS = {ZLIB: Codec(ZLIB, lambda data: zlib.compress(data, 1), _zlib_decompress)}
_zstd = _load_zstd()
if _zstd is not None:
    _CODECS[ZSTD] = _zstd


def codec_names() -> List[str]:
    """The compressions this end can do, best first."""
    return [codec.name for codec in sorted(_CODECS.values(), key=lambda c: -c.number)]


def codec_by_name(name: str) -> Codec:
    """Raises KeyError."""
    return {codec.name: codec for codec in _CODECS.values()}[name]


def decompress(number: int, data: memoryview, length: int) -> memoryview:
    """``data`` as sent → exactly ``length`` bytes.  Raises CodecError."""
    if number == RAW:
        if len(data) != length:
            raise CodecError("{} bytes came where {} were announced".format(len(data), length))
        return data
    if number not in _CODECS:
        raise CodecError("compression {} is not known here".format(number))
    return memoryview(_CODECS[number].decompress(data, length))
