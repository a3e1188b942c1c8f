"""The virtual machine as a configuration of Xen's xl (man 5 xl.cfg, xl-disk-configuration).

An HVM guest: its own boot loader runs on emulated hardware, and Xen's drivers take over when the
kernel has them.  Paravirtual guests (type pv) need a kernel made for it and are nothing to choose
for somebody.
"""

from collections.abc import Iterator, Sequence

from p2v_sync.fixup.plan import Bus, Hypervisor
from p2v_sync.fixup.profile import NicModel
from p2v_sync.units import MIB
from p2v_sync.vm.definition import VirtualMachine, VirtualNic
from p2v_sync.vm.libvirt import letters
from p2v_sync.vm.network import Network
from p2v_sync.vm.shell import comment

_USUAL = Network("xenbr0")
# What xl itself emulates; further disks are there for Xen's own drivers only.
_EMULATED_MOST = 4


def _quote(text: str) -> str:
    """A string in double quotes; libxlutil knows a backslash before these two."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _list(items: Sequence[str]) -> str:
    return "[ " + ", ".join(_quote(item) for item in items) + " ]"


def _disks(vm: VirtualMachine) -> list[str]:
    # ``hda`` of a guest without Xen's drivers; with them it is xvda, whatever it is called here.
    found = []
    for at, disk in enumerate(vm.disks):
        prefix = "hd" if vm.is_compat and at < _EMULATED_MOST else "xvd"
        # The target takes all that follows it, commas too.
        spec = f"format={disk.image.format},vdev={prefix}{letters(at)},access=rw"
        found.append(f"{spec},target={vm.path_of(disk)}")
    return found


def _nic(vm: VirtualMachine, nic: VirtualNic) -> str:
    network = nic.network
    if network is None or (vm.hypervisor is not Hypervisor.XEN and not network.is_bridge):
        network = _USUAL
    model = NicModel.E1000 if nic.model is NicModel.VIRTIO else nic.model
    return f"mac={nic.mac},bridge={network.name},model={model}"


def _settings(vm: VirtualMachine) -> Iterator[tuple[str, str]]:
    yield "name", _quote(vm.name)
    yield "type", _quote("hvm")
    yield "uuid", _quote(vm.uuid)
    yield "memory", str(vm.memory // MIB)
    yield "vcpus", str(vm.cpus.count)
    if vm.is_uefi:
        yield "bios", _quote("ovmf")
    yield "hdtype", _quote("ide" if vm.disks and vm.disks[0].bus is Bus.IDE else "ahci")
    yield "disk", _list(_disks(vm))
    yield "vif", _list([_nic(vm, nic) for nic in vm.nics])
    yield "localtime", str(int(vm.rtc == "localtime"))
    yield "xen_platform_pci", str(int(not vm.is_compat))
    yield "viridian", str(int(vm.windows is not None))
    yield "serial", _quote("pty")
    yield "vnc", "1"
    yield "vga", _quote("stdvga")
    yield "usb", "1"
    yield "usbdevice", _quote("tablet")
    yield "boot", _quote("c")


def write(vm: VirtualMachine) -> bytes:
    """For ``xl create``."""
    notes = [
        "Made by p2v-sync, for xl create.",
        *vm.notes,
        "the SMBIOS strings of the machine are not in here: before Xen 4.18 they need a file",
    ]
    if vm.is_uefi:
        notes.append("bios = ovmf needs a Xen whose tools were built with OVMF")
    if any(disk.sector_size != 512 for disk in vm.disks):
        notes.append("a disk has 4 KiB sectors: whether Xen shows them depends on the backend")
    settings = (f"{key} = {value}" for key, value in _settings(vm))
    return ("\n".join([*comment(notes), *settings]) + "\n").encode()
