"""The virtual machine in words of its own, before a hypervisor's.  Pure data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from p2v_sync.config import plain_name
from p2v_sync.device.machine import Cpus
from p2v_sync.fixup.guest import Firmware
from p2v_sync.fixup.plan import Bus, Hypervisor
from p2v_sync.fixup.profile import NicModel
from p2v_sync.vm.network import Network


class Chipset(StrEnum):
    """The board; as QEMU calls its machines."""

    Q35 = "q35"  # PCI Express, AHCI
    PC = "pc"  # i440fx: PCI, IDE


class Format(StrEnum):
    """Of an image file."""

    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True)
class Image:
    """A disk as it lies at the receiver.  ``file``: its name in the directory of the images."""

    disk: str  # the source's kernel name
    file: str
    format: Format = Format.RAW
    is_device: bool = False  # the file is a link to a block device


@dataclass(frozen=True)
class VirtualDisk:
    """``boot``: its place in the boot order, from 1.  ``wwn``: 16 hexadecimal digits, or ''."""

    image: Image
    bus: Bus
    boot: int
    serial: str = ""
    wwn: str = ""
    sector_size: int = 512  # 4096: partition tables count in these


@dataclass(frozen=True)
class VirtualNic:
    """``network``: None for the one a hypervisor usually has."""

    mac: str
    model: NicModel
    network: Network | None = None


@dataclass(frozen=True)
class VirtualMachine:
    """All that a hypervisor is told.

    ``directory``: of the images at the receiver, absolute.  ``smbios``: by the names that the files
    of /sys/class/dmi/id have, printable ASCII.  ``memory``: bytes, whole MiB.  ``notes``: what the
    operator should know, a line each.
    """

    name: str
    uuid: str
    directory: str
    memory: int
    cpus: Cpus
    firmware: Firmware
    chipset: Chipset
    disks: tuple[VirtualDisk, ...]
    nics: tuple[VirtualNic, ...] = ()
    has_secure_boot: bool = False
    hypervisor: Hypervisor = Hypervisor.KVM
    rtc: str = "utc"  # or localtime
    cpu_model: str = ""  # '' for the host's own
    kernel: tuple[int, ...] = ()  # Linux's version; () for other systems
    windows: tuple[int, ...] | None = None  # the version of Windows NT
    smbios: Mapping[str, str] = field(default_factory=dict)
    is_transitional: bool = False  # the guest knows virtio only as it was before 1.0
    is_compat: bool = False
    notes: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The name of the files that describe it, without what the format adds."""
        plain = plain_name(self.name)
        return f"{plain}.compat" if self.is_compat else plain

    @property
    def has_virtio(self) -> bool:
        """True when the guest has drivers for such devices."""
        on_virtio = any(disk.bus in (Bus.VIRTIO, Bus.SCSI) for disk in self.disks)
        return on_virtio or any(nic.model is NicModel.VIRTIO for nic in self.nics)

    @property
    def is_uefi(self) -> bool:
        return self.firmware is Firmware.UEFI

    @property
    def usual_network(self) -> Network:
        """What is there when nobody has changed a host much."""
        match self.hypervisor:
            case Hypervisor.XEN:
                return Network("xenbr0")
            case Hypervisor.PROXMOX:
                return Network("vmbr0")
            case _:
                return Network("default", is_bridge=False)

    def path_of(self, disk: VirtualDisk) -> str:
        return f"{self.directory.rstrip('/')}/{disk.image.file}"

    def on_bus(self, bus: Bus) -> list[VirtualDisk]:
        return [disk for disk in self.disks if disk.bus is bus]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Definitions(NamedTuple):
    """Two machines of one guest: one at its best, and one for when that does not boot."""

    recommended: VirtualMachine
    compat: VirtualMachine
