"""Is this the disk the job copies? (P10)  Names can't tell: sda is another disk after a reboot."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

from p2v_sync.device.describe import Names, names_of_device
from p2v_sync.device.source import DiskSource
from p2v_sync.device.table import (
    FILE_SYSTEM_BYTES,
    TABLE_BYTES,
    file_system_id,
    parse_table,
)
from p2v_sync.units import MIB

_TEXT_CAP = 512
_SIZE_CAP = 1 << 63
_SECTOR_SIZES = frozenset(512 << shift for shift in range(8))
_DIGEST = re.compile(r"(?:[0-9a-f]{32})?")


@dataclass(frozen=True)
class Identity:
    """What a source is known by; '' where it does not say."""

    kind: str  # "block" or "file"
    size: int
    sector_size: int
    wwn: str
    serial: str
    table_id: str
    first_mib: str  # BLAKE2b-128, hex; '' when there are unreadable sectors in it
    last_mib: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: object) -> "Identity":
        """What ``to_dict`` made; keys added by a later version are ignored.  Raises ValueError."""
        if not isinstance(raw, Mapping):
            raise ValueError(f"a source's identity is an object, not {type(raw).__name__}")
        return cls(
            kind=_kind(raw.get("kind")),
            size=_size(raw.get("size")),
            sector_size=_sector_size(raw.get("sector_size")),
            wwn=_text(raw.get("wwn"), "wwn"),
            serial=_text(raw.get("serial"), "serial"),
            table_id=_text(raw.get("table_id"), "table_id"),
            first_mib=_digest(raw.get("first_mib"), "first_mib"),
            last_mib=_digest(raw.get("last_mib"), "last_mib"),
        )


def _kind(value: object) -> str:
    if isinstance(value, str) and value in ("block", "file"):
        return value
    raise ValueError("identity: kind is neither block nor file")


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _SIZE_CAP:
        return value
    raise ValueError("identity: size is no size")


def _sector_size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value in _SECTOR_SIZES:
        return value
    raise ValueError("identity: sector_size is no sector size")


def _text(value: object, key: str) -> str:
    if isinstance(value, str) and len(value) <= _TEXT_CAP and value.isprintable():
        return value
    raise ValueError(f"identity: {key} is no short line of text")


def _digest(value: object, key: str) -> str:
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value
    raise ValueError(f"identity: {key} is no digest")


def _digest_of(source: DiskSource, start: int) -> str:
    buffer = bytearray(min(MIB, source.size))
    with memoryview(buffer) as view:
        unreadable = source.probe_into(view, start)
    return "" if unreadable else blake2b(buffer, digest_size=16).hexdigest()


def _table_id(source: DiskSource) -> str:
    """Of the partition table, else of the one file system that the disk is."""
    buffer = bytearray(min(FILE_SYSTEM_BYTES, source.size))
    with memoryview(buffer) as view:
        source.probe_into(view, 0)
    table = parse_table(bytes(buffer[:TABLE_BYTES]), source.sector_size)
    return table.id if table else file_system_id(bytes(buffer))


def read_identity(source: DiskSource) -> Identity:
    """Ask the kernel and read three small ranges.  Raises SourceReadError, DeviceChanged."""
    names = names_of_device(source.dev) if source.is_block else Names("", "")
    return Identity(
        kind="block" if source.is_block else "file",
        size=source.size,
        sector_size=source.sector_size,
        wwn=names.wwn,
        serial=names.serial,
        table_id=_table_id(source),
        first_mib=_digest_of(source, 0),
        last_mib=_digest_of(source, max(0, source.size - MIB)),
    )


def _differing(label: str, old: object, new: object) -> str | None:
    """A reason when both sides know the value and it is not the same."""
    return f"its {label} was {old}, is {new}" if old and new and old != new else None


def _content_difference(old: Identity, new: Identity) -> str | None:
    """For files and disks without a name: partition table, then first and last MiB."""
    if reason := _differing("partition table or file system id", old.table_id, new.table_id):
        return reason
    if old.table_id and new.table_id:
        return None
    # One of two may change on the same disk: a boot loader at the start, a RAID superblock or
    # backup GPT at the end.  On a tiny disk they are all there is, and may both be rewritten.
    starts_differ = _differing("first MiB", old.first_mib, new.first_mib)
    ends_differ = _differing("last MiB", old.last_mib, new.last_mib)
    if starts_differ and ends_differ and new.size > 2 * MIB:
        return "both its first and its last MiB have other contents"
    return None


def difference(old: Identity, new: Identity) -> str | None:
    """Why ``new`` is another disk than ``old``, in words; None: the same, maybe written to since.

    Size and sector size never change on one disk.  A WWN or serial settles the rest, in both
    directions: the same disk may have been repartitioned.  Only what has neither (files, most
    virtual disks) is judged by contents, where an unknown value is never a difference: the price of
    a wrong "same" is that the pass sends every block that differs, of a wrong "other" that a
    migration stops.  ``kind`` does not count: a disk and its image are the same data.
    """
    names = (("WWN", old.wwn, new.wwn), ("serial", old.serial, new.serial))
    certain = (
        ("size", old.size, new.size),
        ("logical sector size", old.sector_size, new.sector_size),
        *names,
    )
    for label, before, after in certain:
        if reason := _differing(label, before, after):
            return reason
    if any(before and after for _, before, after in names):
        return None
    return _content_difference(old, new)
