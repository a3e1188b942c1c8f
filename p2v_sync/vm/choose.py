"""Which virtual hardware a guest gets: one choice at its best, one that nearly all guests boot on.

Pure: the facts about machine and guest go in, two definitions come out.
"""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from p2v_sync.device.machine import Cpus, Machine, MachineDisk, Nic
from p2v_sync.errors import ConfigError
from p2v_sync.fixup.guest import Firmware, Guest
from p2v_sync.fixup.plan import Bus, Hypervisor
from p2v_sync.fixup.profile import UNKNOWN_GUEST, Hardware, NicModel, Twins
from p2v_sync.units import GIB, MIB, TIB, format_size
from p2v_sync.vm.definition import (
    Chipset,
    Definitions,
    Image,
    VirtualDisk,
    VirtualMachine,
    VirtualNic,
)
from p2v_sync.vm.network import Networks

_MEMORY_LEAST, _MEMORY_MOST = 16 * MIB, 64 * TIB
_VCPUS_MOST = 4096
# Beyond it a guest needs an interrupt remapping IOMMU.
_VCPUS_PLAIN = 255
# Proxmox takes no more of a kind, and IDE has no more at all; what is left goes to virtio-scsi.
_DISKS_MOST = {Bus.IDE: 4, Bus.SATA: 6, Bus.VIRTIO: 16}
# virtio-blk and ATA drives have a serial of so many characters.
_SERIAL_MOST = 20
_WWN = re.compile(r"(?:naa\.|0x)([0-9a-f]{16})")
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?")


@dataclass(frozen=True)
class Wishes:
    """What the operator wants.  ``directory``: of the images at the receiver.

    ``memory`` in bytes; None: as much as the machine has.
    """

    name: str
    directory: str
    memory: int | None = None
    vcpus: int | None = None
    networks: Networks = field(default_factory=Networks)
    hypervisor: Hypervisor = Hypervisor.KVM

    def check(self) -> None:
        """Raises ConfigError."""
        _check_name(self.name)
        if not self.directory.startswith("/") or not self.directory.isprintable():
            raise ConfigError(
                f"the directory of the images, {self.directory!r}, can't be written down",
                hint="name an absolute path without control characters",
            )
        if self.memory is not None and not _MEMORY_LEAST <= self.memory <= _MEMORY_MOST:
            raise ConfigError(
                f"--memory {format_size(self.memory)} is not possible",
                hint="from 16M to 64T; 4G is written 4G, not 4",
            )
        if self.vcpus is not None and not 1 <= self.vcpus <= _VCPUS_MOST:
            raise ConfigError(
                f"--vcpus {self.vcpus} is not possible", hint=f"from 1 to {_VCPUS_MOST}"
            )


def _check_name(name: str) -> None:
    is_plain = name.isprintable() and name == name.strip() and "/" not in name
    if not is_plain or not 1 <= len(name) <= 64 or name.startswith((".", "-")):
        raise ConfigError(
            f"--name {name!r} can't be the name of a virtual machine",
            hint="1 to 64 printable characters, no slash, no dot or dash in front",
        )


def choose(
    machine: Machine,
    guest: Guest | None,
    images: Sequence[Image],
    wishes: Wishes,
    hardware: Twins = UNKNOWN_GUEST,
) -> Definitions:
    """The two definitions.  ``images``: in the order of ``vm.boot_order``, the boot disk first.

    ``hardware``: what the guest's drivers allow once it is fixed up; not asked for Windows, whose
    own drivers are known.  ``guest``: None when nobody looked.  Raises ConfigError for wishes that
    can't be met.
    """
    wishes.check()
    guest = guest or Guest()
    carried = [nic for nic in machine.nics if nic.is_carried]
    wishes.networks.check(carried, guest.interfaces)
    base = _common(machine, guest, wishes)
    if base.windows is not None:
        hardware = _windows_hardware(base.windows, base.firmware)
    recommended, compat = (
        _fit(base, machine, images, _nics(carried, guest, wishes.networks, each.nic), each)
        for each in hardware
    )
    return Definitions(
        replace(recommended, cpu_model=_cpu_model(base, (2, 6, 18))),
        replace(
            compat, is_compat=True, has_secure_boot=False, cpu_model=_cpu_model(base, (2, 6, 32))
        ),
    )


def _common(machine: Machine, guest: Guest, wishes: Wishes) -> VirtualMachine:
    """What both have, still without disks and interfaces."""
    firmware = guest.firmware or (Firmware.UEFI if machine.is_uefi else Firmware.BIOS)
    kernel = guest.default_kernel.version if guest.default_kernel else ""
    windows = None
    if guest.windows is not None:
        windows = _version(guest.windows.version) or (10, 0)
    return VirtualMachine(
        name=wishes.name,
        uuid=machine.uuid or _made_up_uuid(machine, wishes.name),
        directory=wishes.directory,
        memory=_memory(machine, wishes),
        cpus=_cpus(machine.cpus, wishes.vcpus),
        firmware=firmware,
        chipset=Chipset.Q35,
        disks=(),
        has_secure_boot=machine.has_secure_boot and firmware is Firmware.UEFI,
        hypervisor=wishes.hypervisor,
        # Windows keeps local time there unless told otherwise.
        rtc=guest.rtc or machine.rtc or ("utc" if windows is None else "localtime"),
        kernel=_version(kernel),
        windows=windows,
        smbios=_smbios(machine.dmi),
        is_transitional=windows < (6, 1) if windows else _is_before_virtio_1(kernel),
        notes=tuple(_notes(machine, guest, wishes)),
    )


def _version(text: str) -> tuple[int, ...]:
    match = _VERSION.match(text)
    return tuple(int(part) for part in match.groups() if part) if match else ()


def _is_before_virtio_1(kernel: str) -> bool:
    # Red Hat brought it to the 3.10 of its release 7.
    return _version(kernel) < (4, 0) and ".el7" not in kernel


def _made_up_uuid(machine: Machine, name: str) -> str:
    """The same for the same machine: a second definition must replace the first, not clash."""
    macs = [nic.mac for nic in machine.nics if nic.is_carried]
    disks = [disk.wwn or disk.serial for disk in machine.disks]
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\n".join([name, *macs, *disks])))


def _memory(machine: Machine, wishes: Wishes) -> int:
    memory = wishes.memory or machine.memory or GIB
    return -(-memory // MIB) * MIB


def _cpus(cpus: Cpus, wanted: int | None) -> Cpus:
    """The topology of old if it has the wanted number, else that many cores of one socket."""
    if wanted in (None, cpus.count):
        return cpus
    return Cpus(1, wanted or 1, 1, cpus.model)


def _cpu_model(vm: VirtualMachine, oldest: tuple[int, ...]) -> str:
    """Kernels before ``oldest`` trip over what today's processors have."""
    if vm.windows is not None:
        return "qemu64" if vm.windows < (6, 0) else ""
    return "qemu64" if vm.kernel and vm.kernel < oldest else ""


def _smbios(dmi: Mapping[str, str]) -> dict[str, str]:
    """What every hypervisor can pass on: ASCII (SMBIOS 3.6, 6.1.3)."""
    cleaned = {key: "".join(c for c in text if " " <= c <= "~")[:255] for key, text in dmi.items()}
    return {key: text.strip() for key, text in cleaned.items() if text.strip()}


def _notes(machine: Machine, guest: Guest, wishes: Wishes) -> Iterator[str]:
    if not machine.memory and wishes.memory is None:
        yield "how much memory the machine has could not be told: this one gets 1 GiB"
    if (wishes.vcpus or machine.cpus.count) > _VCPUS_PLAIN:
        yield f"more than {_VCPUS_PLAIN} processors need an IOMMU, which is not in here"
    for nic in machine.nics:
        if not nic.is_carried:
            yield f"the interface {nic.name} (USB, wireless or virtual) is not carried over"
    if machine.has_tpm:
        yield "the machine has a TPM, and keys sealed by it stay there"
    if machine.has_secure_boot:
        yield "Secure Boot is on but in the compat twin; of the keys only Microsoft's are carried"
    if guest.windows is not None:
        yield "Windows gets hardware that it knows; virt-v2v-in-place installs virtio drivers"


def _windows_hardware(version: tuple[int, ...], firmware: Firmware) -> Twins:
    """Inbox drivers: AHCI and e1000 since Vista, the 82574L of e1000e since 7."""
    if version < (6, 0):
        old = Hardware(Bus.IDE, NicModel.RTL8139)
        return Twins(old, old)
    nic = NicModel.E1000E if version >= (6, 1) else NicModel.E1000
    bus = Bus.SATA if firmware is Firmware.UEFI else Bus.IDE
    return Twins(Hardware(Bus.SATA, nic), Hardware(bus, NicModel.E1000))


def _nics(
    carried: Sequence[Nic], guest: Guest, networks: Networks, model: NicModel
) -> tuple[VirtualNic, ...]:
    return tuple(VirtualNic(nic.mac, model, networks.of(nic, guest.interfaces)) for nic in carried)


def _fit(
    base: VirtualMachine,
    machine: Machine,
    images: Sequence[Image],
    nics: tuple[VirtualNic, ...],
    hardware: Hardware,
) -> VirtualMachine:
    """The machine with these disks, interfaces, and a board that they go with."""
    facts = {disk.name: disk for disk in machine.disks}
    notes = list(base.notes)
    disks = []
    for at, image in enumerate(images):
        fact = facts.get(image.disk, MachineDisk(image.disk, 0))
        bus, note = _bus_for(fact, at, hardware.bus, base.firmware)
        notes += [note] if note else []
        disks.append(_disk(fact, _checked(image), bus, at + 1))
    if disks and disks[0].sector_size > 512 and not base.is_uefi:
        notes.append("SeaBIOS can't boot from a disk with 4 KiB sectors")
    built = replace(base, disks=tuple(disks), nics=nics, notes=tuple(notes))
    chipset = _chipset(built)
    is_transitional = base.is_transitional and chipset is Chipset.Q35
    return replace(built, chipset=chipset, is_transitional=is_transitional)


def _chipset(vm: VirtualMachine) -> Chipset:
    """i440fx for IDE, and for systems of old unless they start by UEFI.

    Before 2.6.30 systems know little of PCI Express; and a virtio device behind one of its ports
    has no face for drivers from before 1.0.
    """
    if vm.on_bus(Bus.IDE):
        return Chipset.PC
    is_old = vm.is_transitional and (vm.has_virtio or vm.kernel < (2, 6, 30))
    return Chipset.PC if is_old and not vm.is_uefi else Chipset.Q35


def _bus_for(fact: MachineDisk, at: int, bus: Bus, firmware: Firmware) -> tuple[Bus, str]:
    """The bus of the disk number ``at``, and what there is to say about it."""
    if bus is Bus.IDE and firmware is Firmware.UEFI:
        bus = Bus.SATA  # the boards with UEFI have no IDE
    if fact.logical_sector_size > 512 and bus in (Bus.IDE, Bus.SATA):
        return Bus.SCSI, f"{fact.name} has 4 KiB sectors, which only virtio disks can have"
    if at >= _DISKS_MOST.get(bus, at + 1):
        return Bus.SCSI, f"{fact.name} finds no place on {bus.upper()} and is on virtio-scsi"
    return bus, ""


def _checked(image: Image) -> Image:
    if not image.file.isprintable() or "/" in image.file or image.file in ("", ".", ".."):
        raise ConfigError(
            f"{image.file!r} can't be the name of an image",
            hint="a plain file name of printable characters",
        )
    return image


def _disk(fact: MachineDisk, image: Image, bus: Bus, boot: int) -> VirtualDisk:
    wwn = _WWN.fullmatch(fact.wwn.lower())
    serial = re.sub(r"[^A-Za-z0-9_.+-]", "", fact.serial)
    return VirtualDisk(
        image=image,
        bus=bus,
        boot=boot,
        # RAID controllers make theirs differ at the end.
        serial=serial[-_SERIAL_MOST:],
        wwn=wwn[1] if wwn else "",
        sector_size=fact.logical_sector_size,
    )
