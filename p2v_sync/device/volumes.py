"""Where the file systems of a disk or image are: util-linux looks at it, read-only (P1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from p2v_sync import run
from p2v_sync.extent import Extent

# partx and blkid count in these whatever the disk's own sectors are.
_SECTOR = 512
_EXTENDED = frozenset({"0x5", "0xf", "0x85"})  # MBR types that hold other partitions
_NOTHING, _AMBIVALENT = 2, 8  # exit statuses of blkid


@dataclass(frozen=True)
class Volume:
    """A partition, or all of a disk that has no partition table.  ``name``: for people."""

    name: str
    extent: Extent
    kind: str  # as blkid calls it: ext4, LVM2_member; '' unknown


def parse_probe(text: str) -> dict[str, str]:
    """Output of ``blkid --output export``."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value for key, separator, value in pairs if separator}


def parse_partitions(text: str, size: int) -> list[tuple[str, Extent]]:
    """Output of ``partx --raw``, number, start, sectors, scheme and type in each line.

    Without extended partitions.  Raises ValueError when it is not that, or beyond ``size``.
    """
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) != 5:
            raise ValueError(f"partx says {line[:60]!r}")
        number, start, sectors, scheme, kind = fields
        extent = Extent(int(start) * _SECTOR, int(sectors) * _SECTOR)
        if extent.start < 0 or extent.length < 0 or extent.end > size:
            raise ValueError(f"partition {number} ends beyond the disk")
        if not is_extended(scheme, kind):
            found.append((number, extent))
    return found


def is_extended(scheme: str, kind: str) -> bool:
    """True for a partition that only holds others; both as partx names them."""
    return scheme == "dos" and kind in _EXTENDED


def overlapping(extents: Sequence[Extent]) -> set[Extent]:
    """Those that have bytes in common with another one."""
    found: set[Extent] = set()
    furthest = Extent(0, 0)
    for extent in sorted(extents):
        if extent.start < furthest.end:
            found |= {extent, furthest}
        furthest = max(furthest, extent, key=lambda each: each.end)
    same = (pair for pair in pairwise(sorted(extents)) if pair[0] == pair[1])
    return found | {extent for pair in same for extent in pair}


def find_volumes(path: Path, size: int) -> list[Volume]:
    """The partitions of a disk, or the one file system it is.

    Raises CommandError; ValueError for a partition table that makes no sense.
    """
    whole = _probe(path, Extent(0, size))
    if "PTTYPE" not in whole:
        return [Volume("the disk", Extent(0, size), whole.get("TYPE", ""))]
    if "TYPE" in whole:
        raise ValueError("there are both a partition table and a file system on it")
    parts = parse_partitions(_partx(path), size)
    if not parts:
        raise ValueError("its partition table is empty")
    twice = overlapping([extent for _, extent in parts])
    return [
        Volume(
            f"partition {number}",
            extent,
            "" if extent in twice else _probe(path, extent).get("TYPE", ""),
        )
        for number, extent in parts
    ]


def _partx(path: Path) -> str:
    columns = "NR,START,SECTORS,SCHEME,TYPE"
    return run.capture(["partx", "--raw", "--noheadings", "--output", columns, str(path)])


def _probe(path: Path, extent: Extent) -> dict[str, str]:
    """What blkid finds there; nothing where it finds nothing, or several things."""
    where = ["--offset", str(extent.start), "--size", str(extent.length)]
    argv = ["blkid", "--probe", "--output", "export", *where, str(path)]
    return parse_probe(run.capture(argv, statuses=(0, _NOTHING, _AMBIVALENT)))
