"""Which drivers a virtual machine's disks need, and what to connect them to without them."""

from collections.abc import Mapping, Sequence

from p2v_sync.fixup.guest import Driver
from p2v_sync.fixup.plan import Bus, Hypervisor, Target

Ways = Sequence[tuple[str, ...]]  # each of them will do

_WAYS: Mapping[Bus, Ways] = {
    Bus.VIRTIO: [("virtio_pci", "virtio_blk")],
    Bus.SCSI: [("virtio_pci", "virtio_scsi", "sd_mod")],
    Bus.SATA: [("ahci", "sd_mod")],
    Bus.IDE: [("ata_piix", "sd_mod"), ("piix", "ide_disk"), ("piix", "ide_gd_mod")],
}
# Xen's emulated disks go away as soon as the guest has seen Xen.
_XEN: Ways = [("xen_blkfront",), ("xenblk",), ("xen_vbd",)]

NAMES = {
    Bus.VIRTIO: "virtio",
    Bus.SCSI: "virtio-scsi",
    Bus.SATA: "SATA",
    Bus.IDE: "IDE",
}

# All that a virtual machine's disks may need: once drivers are added, another hypervisor, or
# another bus, shall not need the same again.
WORTH_ADDING = (
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "ahci",
    "ata_piix",
    "nvme",
    "xen_blkfront",
    "xen_platform_pci",
)

_READY = (Driver.BUILTIN, Driver.INITRAMFS)
_SCSI_MODELS = {  # driver → the controller that libvirt has for it
    "mptsas": "lsisas1068",
    "megaraid_sas": "lsisas1078",
    "sym53c8xx": "lsilogic",
}


def wanted_bus(target: Target) -> Bus:
    """Never AUTO: virtio, but for Proxmox, which has its disks on virtio-scsi."""
    if target.bus is not Bus.AUTO:
        return target.bus
    return Bus.SCSI if target.hypervisor is Hypervisor.PROXMOX else Bus.VIRTIO


def ways(target: Target) -> Ways:
    """The sets of drivers any of which finds the wanted machine's disks."""
    return _XEN if target.hypervisor is Hypervisor.XEN else _WAYS[wanted_bus(target)]


def is_ready(drivers: Mapping[str, Driver], found: Ways) -> bool:
    """Whether the kernel finds the disks as it is."""
    return any(all(drivers.get(name) in _READY for name in way) for way in found)


def is_possible(drivers: Mapping[str, Driver], found: Ways) -> bool:
    """Whether it would with drivers that are installed, wherever they are."""
    absent = (None, Driver.ABSENT)
    return any(all(drivers.get(name) not in absent for name in way) for way in found)


def first_possible(drivers: Mapping[str, Driver], found: Ways) -> tuple[str, ...]:
    """The first set that is installed; none when there is none."""
    return next((way for way in found if is_possible(drivers, [way])), ())


def compat_bus(drivers: Mapping[str, Driver]) -> Bus:
    """What the guest finds its disks on as it is; SATA when it does so on nothing."""
    order = (Bus.SATA, Bus.IDE, Bus.SCSI, Bus.VIRTIO)
    return next((bus for bus in order if is_ready(drivers, _WAYS[bus])), Bus.SATA)


def finds_disks(drivers: Mapping[str, Driver]) -> bool:
    """Whether the guest finds its disks, as it is, on any bus that we have."""
    return any(is_ready(drivers, way) for way in _WAYS.values())


def advice(drivers: Mapping[str, Driver]) -> str:
    """What becomes of a guest that can't have the drivers it needs."""
    bus = compat_bus(drivers)
    if is_ready(drivers, _WAYS[bus]):
        return f"its disks are connected to {NAMES[bus]} instead"
    for name, model in _SCSI_MODELS.items():
        if is_ready(drivers, [(name, "sd_mod")]):
            return f"connect its disks to the SCSI controller {model}, which it has a driver for"
    return "make a new initramfs with the guest's own tool before the last pass"


def described(target: Target) -> str:
    """What the disks are to be on, as one reads it."""
    return "Xen" if target.hypervisor is Hypervisor.XEN else NAMES[wanted_bus(target)]


def named(found: Ways) -> str:
    """``virtio_pci, virtio_blk``"""
    return ", ".join(found[0])
