"""The physical machine: what its virtual successor should look like.  Facts from /sys and DMI."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Nic:
    """A physical network interface.  ``mac``: the permanent one, lower case."""

    name: str
    mac: str
    driver: str = ""
    path: str = ""  # of its device: 0000:02:00.0
    is_carried: bool = True  # False: it will not exist in the virtual machine (USB, wireless)


@dataclass(frozen=True)
class MachineDisk:
    """A disk that is copied.  ``ids``: its names below /dev/disk/by-id and by-path."""

    name: str
    size: int
    model: str = ""
    serial: str = ""
    wwn: str = ""
    bus: str = ""
    logical_sector_size: int = 512
    physical_sector_size: int = 512
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cpus:
    """``sockets × cores × threads`` is the number of virtual processors."""

    sockets: int = 1
    cores: int = 1
    threads: int = 1
    model: str = ""

    @property
    def count(self) -> int:
        return self.sockets * self.cores * self.threads


@dataclass(frozen=True)
class Machine:
    """``dmi``: the strings of /sys/class/dmi/id by file name, without the useless ones.

    ``rtc``: utc, localtime, or '' when it could not be told.  ``memory`` in bytes.
    """

    hostname: str = ""
    uuid: str = ""
    dmi: Mapping[str, str] = field(default_factory=dict)
    memory: int = 0
    cpus: Cpus = field(default_factory=Cpus)
    nics: tuple[Nic, ...] = ()
    disks: tuple[MachineDisk, ...] = ()
    is_uefi: bool = False
    has_secure_boot: bool = False
    rtc: str = ""
    has_tpm: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError and ValueError for anything else."""
        parts: dict[str, Any] = {
            "cpus": Cpus(**record.get("cpus", {})),
            "nics": tuple(Nic(**each) for each in record.get("nics", ())),
            "disks": tuple(
                MachineDisk(**{**each, "ids": tuple(each.get("ids", ()))})
                for each in record.get("disks", ())
            ),
        }
        return cls(**{**record, **parts})
