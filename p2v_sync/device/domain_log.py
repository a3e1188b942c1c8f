"""The domain log of ``partclone -D``: which blocks of a file system are in use.  Pure.

The format is that of a ddrescue mapfile (info ddrescue, "Mapfile structure"), numbers in hex:

    # comments
    0x04000000     ?             size of the file system, status (of no meaning here)
    0x00000000  0x00448400  +    start, length, '+' in use
    0x00448400  0x003B8000  ?    … or '?' unused; without gaps up to the size
"""

import re
from collections.abc import Iterable, Iterator

from p2v_sync.extent import Extent

_HEX = r"0x([0-9A-Fa-f]{1,16})"
_SIZE = re.compile(rf"{_HEX}\s+\?\s*")
_ROW = re.compile(rf"{_HEX}\s+{_HEX}\s+([+?])\s*")


def parse_unused(lines: Iterable[str], size: int) -> Iterator[Extent]:
    """The unused extents of a file system, in order; ``size``: bytes that there are for it.

    Raises ValueError for anything but a complete log, possibly after some extents: none of them
    counts then.
    """
    rows = (line for line in lines if not line.startswith("#"))
    head = _SIZE.fullmatch(next(rows, ""))
    if head is None:
        raise ValueError("the domain log has no size in it")
    end = int(head[1], 16)
    if not 0 < end <= size:
        raise ValueError(f"the domain log is of {end} bytes, and there are {size}")
    position = 0
    for line in rows:
        row = _ROW.fullmatch(line)
        if row is None:
            raise ValueError(f"the domain log has a line {line[:60]!r}")
        extent = Extent(int(row[1], 16), int(row[2], 16))
        if extent.start != position or not extent.length or extent.end > end:
            raise ValueError(f"the domain log goes on at {extent}, not at {position} of {end}")
        position = extent.end
        if row[3] == "?":
            yield extent
    if position != end:
        raise ValueError(f"the domain log ends at {position} of {end}")
