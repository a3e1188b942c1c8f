"""The guest's block devices by all the names it may have for them.  Pure data.

Made by ``overlay`` from the overlaid disks, or read from JSON for a plain directory.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self


@dataclass(frozen=True)
class Volume:
    """A file system, swap space or container, and where it is.

    ``device``: its path on this machine (of the overlay), '' when there is none.  ``disk``: the
    source disk's kernel name (sda).  ``partition``: its number, 0 for all of the disk or a logical
    volume.  ``aliases``: further names below /dev that the guest may use for it (cciss/c0d0p1,
    disk/by-id/…, mapper/vg-root, vg/root, md0), without the leading /dev/.
    """

    device: str
    disk: str
    partition: int = 0
    kind: str = ""  # as blkid's TYPE: ext4, swap, LVM2_member, linux_raid_member, crypto_LUKS
    uuid: str = ""
    label: str = ""
    part_uuid: str = ""
    part_label: str = ""
    part_type: str = ""  # GPT type GUID or MBR type (0x83)
    size: int = 0
    aliases: tuple[str, ...] = ()

    @property
    def kernel_name(self) -> str:
        """sda1, nvme0n1p1; '' for what is no partition and no whole disk."""
        if self.partition:
            return f"{self.disk}{'p' if self.disk[-1:].isdigit() else ''}{self.partition}"
        return self.disk


def opened_name(uuid: str) -> str:
    """What an encrypted volume's content is called below /dev when only its UUID is known."""
    return f"mapper/luks-{uuid}"


@dataclass(frozen=True)
class Storage:
    """All of the guest's volumes, on the disks that are copied."""

    volumes: tuple[Volume, ...] = ()
    disks: tuple[str, ...] = ()  # kernel names, in the order of the boot firmware
    is_complete: bool = True  # False: a plain directory, whose devices nobody has listed

    def __iter__(self) -> Iterator[Volume]:
        return iter(self.volumes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError and ValueError for anything else."""
        volumes = tuple(
            Volume(**{**each, "aliases": tuple(each.get("aliases", ()))})
            for each in record["volumes"]
        )
        return cls(volumes, tuple(record["disks"]), bool(record.get("is_complete", True)))


NOTHING_KNOWN = Storage(is_complete=False)


class Mounter(Protocol):
    """Mounts volumes of the overlaid disks, and nothing else."""

    def mount(self, volume: Volume, point: Path, *, writable: bool, options: str = "") -> None:
        """``options``: further ones, as subvol=@.  Without ``writable`` no journal is replayed.

        Raises FixupError.
        """

    def unmount_all(self) -> None:
        """What was mounted, the last first.  Raises FixupError when something stays."""
