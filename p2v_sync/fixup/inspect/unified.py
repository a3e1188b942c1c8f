"""Kernel images: the version in a bzImage, version and command line in a unified one (PE)."""

import struct
from typing import NamedTuple

from p2v_sync.fixup.inspect.reader import Reader, shown

_SECTIONS_MOST = 96  # the loader of Windows takes no more
_TEXT_MOST = 4096  # a command line is no longer on x86


class Unified(NamedTuple):
    """'' what the image does not say."""

    version: str
    options: str


def read_unified(reader: Reader, path: str) -> Unified:
    """The sections .uname and .cmdline (UAPI group, Unified Kernel Image specification)."""
    said = {".uname": "", ".cmdline": ""}
    for name, start, length in _pe_sections(reader, path):
        if name in said:
            raw = reader.part(path, start, min(length, _TEXT_MOST))
            said[name] = " ".join(raw.rstrip(b"\0").decode("latin-1").split())
    return Unified(shown(said[".uname"]), said[".cmdline"])


def _pe_sections(reader: Reader, path: str) -> list[tuple[str, int, int]]:
    """Name, offset in the file and length in memory of each; none when it is no PE file."""
    start = reader.part(path, 0, 64)
    if len(start) < 64 or not start.startswith(b"MZ"):
        return []
    (at,) = struct.unpack_from("<I", start, 60)
    header = reader.part(path, at, 24)
    if len(header) < 24 or not header.startswith(b"PE\0\0"):
        return []
    count, optional_size = struct.unpack_from("<6xH12xH", header)
    count = min(count, _SECTIONS_MOST)
    table = reader.part(path, at + 24 + optional_size, 40 * count)
    found = []
    for offset in range(0, len(table) - 39, 40):
        name, size, _, _, place = struct.unpack_from("<8sIIII", table, offset)
        found.append((name.rstrip(b"\0").decode("latin-1"), place, size))
    return found


def image_version(reader: Reader, path: str) -> str:
    """Of a bzImage (Documentation/arch/x86/boot.rst, kernel_version); '' when it is none."""
    header = reader.part(path, 0x200, 0x10)
    if header[2:6] != b"HdrS":
        return ""
    (offset,) = struct.unpack_from("<H", header, 0x0E)
    text = reader.part(path, offset + 0x200, 256).partition(b"\0")[0] if offset else b""
    words = text.decode("latin-1").split()
    return shown(words[0]) if words else ""
