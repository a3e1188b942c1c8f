"""Reading a registry hive of Windows: as much as it takes to look up a value.

The format ("regf") has no public specification; the offsets are those that libhivex and the
kernel's own documentation of forensic tools agree on.  A hive that was not closed cleanly has newer
content in its .LOG files, which is not looked at.
"""

import struct
from collections.abc import Iterator, Mapping

from p2v_sync.fixup.inspect.reader import Reader

_BASE = 0x1000  # where offsets count from
_CELL_MOST = 65536
_KEYS_MOST = 8192  # below one key
_VALUES_MOST = 1024
_INLINE = 0x80000000
_NK, _VK = 76, 20  # bytes before the name
_STRINGS = (1, 2)  # REG_SZ, REG_EXPAND_SZ
_DWORD = 4

Value = str | int


class Hive:
    """A key is the offset of its cell; 0 stands for one that is not there."""

    def __init__(self, reader: Reader, path: str) -> None:
        self._reader = reader
        self._path = path
        header = reader.part(path, 0, 0x28)
        is_hive = len(header) == 0x28 and header.startswith(b"regf")
        self.root: int = struct.unpack_from("<I", header, 0x24)[0] if is_hive else 0

    def key(self, path: str, start: int | None = None) -> int:
        """``Microsoft\\Windows NT``, whatever its case, below the root or ``start``."""
        at = self.root if start is None else start
        for part in path.split("\\"):
            at = self.keys(at).get(part.lower(), 0) if at else 0
        return at

    def keys(self, key: int) -> Mapping[str, int]:
        """The keys below one, by their names in lower case."""
        cell = self._cell(key, b"nk", _NK)
        if not cell:
            return {}
        (at,) = struct.unpack_from("<I", cell, 0x1C)
        found = dict[str, int]()
        for offset in self._listed(at, is_outermost=True):
            child = self._cell(offset, b"nk", _NK)
            if child and len(found) < _KEYS_MOST:
                flags, length = struct.unpack_from("<2xH68xH", child)
                found[_text(child[_NK : _NK + length], bool(flags & 0x20)).lower()] = offset
        return found

    def _listed(self, at: int, *, is_outermost: bool) -> Iterator[int]:
        """Offsets of keys: in pairs with hashes (lf, lh), alone (li), or in lists of lists (ri)."""
        cell = self._cell(at, b"", 4)
        kind, count = cell[:2], struct.unpack_from("<2xH", cell)[0] if cell else 0
        width = 8 if kind in (b"lf", b"lh") else 4
        listed = cell[4 : 4 + width * min(count, _KEYS_MOST)]
        for start in range(0, len(listed) - width + 1, width):
            (offset,) = struct.unpack_from("<I", listed, start)
            if kind in (b"lf", b"lh", b"li"):
                yield offset
            elif kind == b"ri" and is_outermost:
                yield from self._listed(offset, is_outermost=False)

    def values(self, key: int) -> Mapping[str, Value]:
        """Strings and numbers of a key, by their names in lower case; '' is the default value."""
        cell = self._cell(key, b"nk", _NK)
        if not cell:
            return {}
        count, at = struct.unpack_from("<II", cell, 0x24)
        listed = self._cell(at, b"", 0)[: 4 * min(count, _VALUES_MOST)]
        found = dict[str, Value]()
        for (offset,) in struct.iter_unpack("<I", listed[: len(listed) // 4 * 4]):
            value = self._cell(offset, b"vk", _VK)
            if value:
                length, flags = struct.unpack_from("<2xH12xH", value)
                name = _text(value[_VK : _VK + length], bool(flags & 1)).lower()
                found.update((name, decoded) for decoded in self._decoded(value))
        return found

    def _decoded(self, value: bytes) -> Iterator[Value]:
        """One, or none when it is of another type."""
        length, at, kind = struct.unpack_from("<III", value, 4)
        is_inline, length = bool(length & _INLINE), length & ~_INLINE
        data = value[8:12] if is_inline else self._cell(at, b"", 0)
        data = data[: min(length, _CELL_MOST)]
        if kind in _STRINGS:
            yield data.decode("utf-16-le", errors="replace").partition("\0")[0]
        elif kind == _DWORD and len(data) == 4:
            yield int.from_bytes(data, "little")

    def _cell(self, at: int, signature: bytes, least: int) -> bytes:
        """What a cell holds; empty when it is not what was looked for."""
        raw = self._reader.part(self._path, _BASE + at, 4)
        if len(raw) < 4 or at == 0xFFFFFFFF:
            return b""
        length = abs(struct.unpack("<i", raw)[0]) - 4  # negative: in use
        data = self._reader.part(self._path, _BASE + at + 4, max(0, min(length, _CELL_MOST)))
        return data if data.startswith(signature) and len(data) >= least else b""


def _text(raw: bytes, is_narrow: bool) -> str:
    return raw.decode("latin-1" if is_narrow else "utf-16-le", errors="replace")
