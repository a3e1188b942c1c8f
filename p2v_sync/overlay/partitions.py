"""Partitions of an overlay.  The kernel makes none for device-mapper: we map them ourselves."""

import re
from pathlib import Path
from typing import NamedTuple

from p2v_sync import run
from p2v_sync.device.volumes import is_extended
from p2v_sync.extent import Extent
from p2v_sync.overlay import mapper

_FIELD = re.compile(r'([A-Z]+)="([^"]*)"')
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_MOST = 256  # more than a GPT has room for by default


class Partition(NamedTuple):
    """``kind``: GPT type GUID or MBR type (0x83); ``uuid`` as the guest's PARTUUID."""

    number: int
    extent: Extent
    kind: str
    uuid: str
    label: str


def parse_pairs(text: str, size: int) -> list[Partition]:
    """Output of ``partx --pairs`` for a disk of ``size`` bytes, without extended partitions.

    Raises ValueError for what is not that, or lies beyond the disk.
    """
    found = []
    for line in text.splitlines():
        fields = {key: _unescape(value) for key, value in _FIELD.findall(line)}
        try:
            number = int(fields["NR"])
            start, length = (int(fields[key]) * mapper.SECTOR for key in ("START", "SECTORS"))
            scheme, kind = fields["SCHEME"], fields["TYPE"]
        except KeyError as error:
            raise ValueError(f"partx says {line[:60]!r}") from error
        if not (0 < number <= _MOST and start >= 0 and length > 0 and start + length <= size):
            raise ValueError(f"partition {number} ends beyond the disk, or is none")
        if not is_extended(scheme, kind):
            uuid, label = fields.get("UUID", ""), fields.get("NAME", "")
            found.append(Partition(number, Extent(start, length), kind, uuid, label))
    if len({each.number for each in found}) < len(found):
        raise ValueError("two partitions have one number")
    return found


def _unescape(text: str) -> str:
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    try:
        return raw.encode("latin-1").decode()
    except (UnicodeEncodeError, UnicodeDecodeError):
        return raw


def read_partitions(device: Path, size: int) -> list[Partition]:
    """The partition table of a device.  Raises CommandError, ValueError."""
    columns = "NR,START,SECTORS,SCHEME,TYPE,UUID,NAME"
    return parse_pairs(run.capture(["partx", "--pairs", "--output", columns, str(device)]), size)


def map_partition(device: Path, partition: Partition) -> Path:
    """A linear map of it: /dev/mapper/p2v-sda gets p2v-sda-part2.  Raises OverlayError."""
    base = device.name if device.parent == mapper.MAPPER else mapper.map_name(device.name)
    name = f"{base}-part{partition.number}"
    start, length = (each // mapper.SECTOR for each in partition.extent)
    uuid = mapper.part_uuid(name)
    return mapper.create(name, uuid, f"0 {length} linear {device} {start}")
