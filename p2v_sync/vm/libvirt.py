"""The virtual machine as libvirt's domain XML (libvirt.org/formatdomain.html).

Firmware by its kind needs libvirt 5.2, and 7.2 for the choice about Secure Boot.
"""

import re
import string
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from p2v_sync.fixup.plan import Bus, Hypervisor
from p2v_sync.fixup.profile import NicModel
from p2v_sync.units import KIB
from p2v_sync.vm.definition import VirtualDisk, VirtualMachine, VirtualNic

# Not allowed in XML 1.0 in any form.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_SMBIOS = (
    ("bios", (("vendor", "bios_vendor"), ("version", "bios_version"))),
    (
        "system",
        (
            ("manufacturer", "sys_vendor"),
            ("product", "product_name"),
            ("version", "product_version"),
            ("serial", "product_serial"),
            ("uuid", "uuid"),
            ("sku", "product_sku"),
            ("family", "product_family"),
        ),
    ),
    (
        "baseBoard",
        (
            ("manufacturer", "board_vendor"),
            ("product", "board_name"),
            ("version", "board_version"),
            ("serial", "board_serial"),
            ("asset", "board_asset_tag"),
        ),
    ),
    (
        "chassis",
        (
            ("manufacturer", "chassis_vendor"),
            ("version", "chassis_version"),
            ("serial", "chassis_serial"),
            ("asset", "chassis_asset_tag"),
        ),
    ),
)
_NAMES = {Bus.VIRTIO: ("virtio", "vd"), Bus.SCSI: ("scsi", "sd"), Bus.SATA: ("sata", "sd")}
_IDE = ("ide", "hd")


def clean(text: str) -> str:
    """``text`` without what XML can't hold."""
    return _NO_XML.sub("", text)


def tostring(domain: ET.Element) -> bytes:
    """A whole document."""
    ET.indent(domain)
    text = ET.tostring(domain, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'.encode()


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: str) -> ET.Element:
    cleaned = {name: clean(value) for name, value in attributes.items()}
    element = ET.SubElement(parent, tag, cleaned)
    if text:
        element.text = clean(text)
    return element


def letters(number: int) -> str:
    """0 → a, 25 → z, 26 → aa: as the kernel names disks."""
    name = ""
    number += 1
    while number:
        number, at = divmod(number - 1, 26)
        name = string.ascii_lowercase[at] + name
    return name


def _sysinfo(domain: ET.Element, vm: VirtualMachine) -> None:
    # libvirt refuses a UUID here that is not the domain's own.
    values = {**vm.smbios, "uuid": vm.uuid}
    sysinfo = _add(domain, "sysinfo", type="smbios")
    for block, entries in _SMBIOS:
        there = [(name, values[key]) for name, key in entries if key in values]
        if there:
            parent = _add(sysinfo, block)
            for name, value in there:
                _add(parent, "entry", value, name=name)


def _os(domain: ET.Element, vm: VirtualMachine) -> None:
    os = _add(domain, "os", **({"firmware": "efi"} if vm.is_uefi else {}))
    if vm.hypervisor is Hypervisor.XEN:
        _add(os, "type", "hvm", arch="x86_64", machine="xenfv")
        return
    _add(os, "type", "hvm", arch="x86_64", machine=vm.chipset)
    if vm.is_uefi:
        firmware = _add(os, "firmware")
        enabled = "yes" if vm.has_secure_boot else "no"
        for feature in ("enrolled-keys", "secure-boot"):
            _add(firmware, "feature", enabled=enabled, name=feature)
    _add(os, "smbios", mode="sysinfo")
    _add(os, "bootmenu", enable="no")


def _features(domain: ET.Element, vm: VirtualMachine) -> None:
    features = _add(domain, "features")
    for name in ("acpi", "apic", "pae"):
        _add(features, name)
    if vm.windows is not None and vm.hypervisor is not Hypervisor.XEN:
        hyperv = _add(features, "hyperv", mode="custom")
        _add(hyperv, "relaxed", state="on")
        _add(hyperv, "vapic", state="on")
        _add(hyperv, "spinlocks", state="on", retries="8191")
    if vm.has_secure_boot:
        _add(features, "smm", state="on")


def _cpu(domain: ET.Element, vm: VirtualMachine) -> None:
    if vm.cpu_model:
        cpu = _add(domain, "cpu", mode="custom", match="exact", check="none")
        _add(cpu, "model", vm.cpu_model, fallback="allow")
    else:
        cpu = _add(domain, "cpu", mode="host-passthrough", check="none", migratable="on")
    cpus = vm.cpus
    grid = {"sockets": str(cpus.sockets), "cores": str(cpus.cores), "threads": str(cpus.threads)}
    _add(cpu, "topology", **grid)


def _clock(domain: ET.Element, vm: VirtualMachine) -> None:
    clock = _add(domain, "clock", offset=vm.rtc)
    if vm.hypervisor is Hypervisor.XEN:
        return
    _add(clock, "timer", name="rtc", tickpolicy="catchup")
    _add(clock, "timer", name="pit", tickpolicy="delay")
    _add(clock, "timer", name="hpet", present="no")
    if vm.windows is not None:
        _add(clock, "timer", name="hypervclock", present="yes")


def disk_targets(vm: VirtualMachine) -> Iterator[tuple[VirtualDisk, str, str]]:
    """Each disk with libvirt's names for its bus and itself: virtio vda, scsi sda, ide hda."""
    counts: dict[str, int] = {}
    for disk in vm.disks:
        bus, prefix = _NAMES.get(disk.bus, _IDE)
        if vm.hypervisor is Hypervisor.XEN:
            bus, prefix = _IDE if vm.is_compat and disk.boot <= 4 else ("xen", "xvd")
        at = counts.get(prefix, 0)
        counts[prefix] = at + 1
        yield disk, bus, prefix + letters(at)


def _disk(devices: ET.Element, vm: VirtualMachine, disk: VirtualDisk, bus: str, dev: str) -> None:
    attributes = {"type": "block" if disk.image.is_device else "file", "device": "disk"}
    if vm.is_transitional and bus == "virtio":
        attributes["model"] = "virtio-transitional"
    element = _add(devices, "disk", **attributes)
    _add(element, "driver", name="qemu", type=disk.image.format, discard="unmap")
    where = "dev" if disk.image.is_device else "file"
    _add(element, "source", **{where: vm.path_of(disk)})
    _add(element, "target", dev=dev, bus=bus)
    if disk.sector_size != 512:
        size = str(disk.sector_size)
        _add(element, "blockio", logical_block_size=size, physical_block_size=size)
    if disk.serial:
        _add(element, "serial", disk.serial)
    if disk.wwn and bus in ("scsi", "sata", "ide"):
        _add(element, "wwn", disk.wwn)
    _add(element, "boot", order=str(disk.boot))


def _nic(devices: ET.Element, vm: VirtualMachine, nic: VirtualNic) -> None:
    network = nic.network or vm.usual_network
    kind, key = ("bridge", "bridge") if network.is_bridge else ("network", "network")
    element = _add(devices, "interface", type=kind)
    _add(element, "mac", address=nic.mac)
    _add(element, "source", **{key: network.name})
    if vm.hypervisor is Hypervisor.XEN:
        # Beside the emulated card Xen always offers its own.
        model = "e1000" if nic.model is NicModel.VIRTIO else nic.model.value
    else:
        is_old = vm.is_transitional and nic.model is NicModel.VIRTIO
        model = "virtio-transitional" if is_old else nic.model.value
    _add(element, "model", type=model)


def _devices(domain: ET.Element, vm: VirtualMachine) -> None:
    devices = _add(domain, "devices")
    targets = list(disk_targets(vm))
    if any(bus == "scsi" for _, bus, _ in targets):
        model = "virtio-transitional" if vm.is_transitional else "virtio-scsi"
        _add(devices, "controller", type="scsi", index="0", model=model)
    for disk, bus, dev in targets:
        _disk(devices, vm, disk, bus, dev)
    for nic in vm.nics:
        _nic(devices, vm, nic)
    _add(_add(devices, "serial", type="pty"), "target", port="0")
    _add(_add(devices, "console", type="pty"), "target", type="serial", port="0")
    _add(_add(devices, "video"), "model", type="vga")
    _add(devices, "graphics", type="vnc", autoport="yes", listen="127.0.0.1")
    _add(devices, "input", type="tablet", bus="usb")
    if vm.hypervisor is Hypervisor.XEN:
        return
    if vm.has_virtio:
        _add(_add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
        channel = _add(devices, "channel", type="unix")
        _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _add(devices, "memballoon", model="virtio" if vm.has_virtio else "none")


def _format_notes(vm: VirtualMachine) -> str:
    return "\n".join(["Made by p2v-sync.", *vm.notes])


def write(vm: VirtualMachine) -> bytes:
    """For ``virsh define``."""
    is_xen = vm.hypervisor is Hypervisor.XEN
    domain = ET.Element("domain", type="xen" if is_xen else "kvm")
    # Both twins have one name and UUID: they must never run at once, on the same disks.
    _add(domain, "name", vm.name)
    _add(domain, "uuid", vm.uuid)
    _add(domain, "description", _format_notes(vm))
    for tag in ("memory", "currentMemory"):
        _add(domain, tag, str(vm.memory // KIB), unit="KiB")
    _add(domain, "vcpu", str(vm.cpus.count), placement="static")
    if not is_xen:
        _sysinfo(domain, vm)
    _os(domain, vm)
    _features(domain, vm)
    _cpu(domain, vm)
    _clock(domain, vm)
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _add(domain, f"on_{event}", action)
    _devices(domain, vm)
    return tostring(domain)
