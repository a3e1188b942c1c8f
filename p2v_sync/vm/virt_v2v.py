"""What virt-v2v needs to convert a guest at the receiver (man 1 virt-v2v-in-place).

It changes what it converts and leaves it undefined when it fails, so it never sees the replica (P8)
but a qcow2 image above it.
"""

from collections.abc import Iterator
from dataclasses import replace
from shlex import quote
from xml.etree import ElementTree as ET

from p2v_sync.fixup.guest import Family, Guest
from p2v_sync.fixup.plan import Bus
from p2v_sync.fixup.profile import NicModel
from p2v_sync.units import KIB
from p2v_sync.vm.definition import Definitions, Format, Image, VirtualDisk, VirtualMachine
from p2v_sync.vm.libvirt import clean, tostring
from p2v_sync.vm.shell import BESIDE_IMAGES, comment, script

# It says so itself, after the copy (virt-v2v(1), "GUEST OPERATING SYSTEMS").
_NOT_CONVERTED = (Family.ARCH, Family.ALPINE, Family.GENTOO, Family.SLACKWARE)


def doubts(guest: Guest) -> Iterator[str]:
    """Why virt-v2v may refuse it, a line each."""
    if guest.windows is None and guest.distribution.family in _NOT_CONVERTED:
        yield f"virt-v2v does not convert {guest.distribution.name}: --fixups own does"
    if guest.windows is not None and guest.windows.is_dynamic:
        yield "virt-v2v does not convert Windows on dynamic disks"
    if "luks" in guest.uses:
        yield "virt-v2v needs the keys of encrypted disks: run its script on the host, with --key"


def _stem(image: Image) -> str:
    return image.file.removesuffix(".img").removesuffix(".qcow2")


def _above(image: Image) -> Image:
    """Named as an applied delta would be: the next pass moves that aside."""
    return Image(image.disk, f"{_stem(image)}.qcow2", Format.QCOW2)


def _moved(vm: VirtualMachine) -> VirtualMachine:
    return replace(vm, disks=tuple(replace(disk, image=_above(disk.image)) for disk in vm.disks))


def converted(
    vm: VirtualMachine, note: str = "Run virt-v2v first; see the script."
) -> VirtualMachine:
    """The machine on the images above the replica, with the drivers that virt-v2v installs."""
    disks = tuple(
        replace(disk, bus=Bus.VIRTIO if at < 16 else Bus.SCSI)
        for at, disk in enumerate(_moved(vm).disks)
    )
    nics = tuple(replace(nic, model=NicModel.VIRTIO) for nic in vm.nics)
    return replace(vm, disks=disks, nics=nics, notes=(note,))


def both_converted(definitions: Definitions) -> Definitions:
    """Once virt-v2v has run.  The twin's hardware stays."""
    return Definitions(
        converted(definitions.recommended, "Converted by virt-v2v."), _moved(definitions.compat)
    )


def _devices(vm: VirtualMachine) -> ET.Element:
    devices = ET.Element("devices")
    for disk in converted(vm).disks:
        element = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(element, "driver", name="qemu", type=disk.image.format)
        ET.SubElement(element, "source", file=clean(vm.path_of(disk)))
        # As the guest calls it: by these names virt-v2v finds what fstab and GRUB mean.
        ET.SubElement(element, "target", dev=clean(disk.image.disk))
    for at, nic in enumerate(vm.nics):
        element = ET.SubElement(devices, "interface", type="network")
        ET.SubElement(element, "source", network="default")
        ET.SubElement(element, "target", dev=f"eth{at}")
        ET.SubElement(element, "mac", address=nic.mac)
    return devices


def write_xml(vm: VirtualMachine) -> bytes:
    """The dialect of virt-p2v's physical.xml, which every version reads with ``-i libvirtxml``."""
    domain = ET.Element("domain", type="physical")
    ET.SubElement(domain, "name").text = clean(vm.name)
    for tag in ("memory", "currentMemory"):
        ET.SubElement(domain, tag, unit="KiB").text = str(vm.memory // KIB)
    ET.SubElement(domain, "vcpu").text = str(vm.cpus.count)
    cpus = vm.cpus
    grid = {"sockets": str(cpus.sockets), "cores": str(cpus.cores), "threads": str(cpus.threads)}
    ET.SubElement(ET.SubElement(domain, "cpu", match="minimum"), "topology", grid)
    os = ET.SubElement(domain, "os", {"firmware": "efi"} if vm.is_uefi else {})
    ET.SubElement(os, "type", arch="x86_64").text = "hvm"
    features = ET.SubElement(domain, "features")
    for name in ("acpi", "apic", "pae"):
        ET.SubElement(features, name)
    ET.SubElement(domain, "clock", offset=vm.rtc)
    domain.append(_devices(vm))
    return tostring(domain)


_FIND_PROGRAM = """\
if command -v virt-v2v-in-place >/dev/null; then
    program=virt-v2v-in-place
elif [ -x /usr/libexec/virt-v2v-in-place ]; then
    program=/usr/libexec/virt-v2v-in-place
else
    echo "$0: virt-v2v-in-place is not installed here (package virt-v2v, 2.0 or later)" >&2
    exit 1
fi"""

_WINDOWS_DRIVERS = """\
VIRTIO_WIN=${VIRTIO_WIN:-/usr/share/virtio-win}
export VIRTIO_WIN
if [ ! -e "$VIRTIO_WIN" ]; then
    echo "$0: no drivers for Windows in $VIRTIO_WIN: name virtio-win.iso in VIRTIO_WIN" >&2
    exit 1
fi"""

# Which virtio disk Windows gets can be said since 2.4.
_RUN = """\
if "$program" --help | grep -q -e --block-driver; then
    set -- --block-driver virtio-blk "$@"
fi
LIBGUESTFS_BACKEND=${LIBGUESTFS_BACKEND:-direct}
export LIBGUESTFS_BACKEND"""


_NOW = "now=$(date -u +%Y%m%dT%H%M%SZ)"


def _check_image(disk: VirtualDisk) -> str:
    """qemu-img says so when a virtual machine runs on it."""
    image = quote(f"./{_above(disk.image).file}")
    return f"if [ -e {image} ]; then qemu-img info {image} >/dev/null; fi"


def _make_image(disk: VirtualDisk) -> Iterator[str]:
    """Anew, whatever an earlier run made of it: half a conversion is worth nothing."""
    replica, image = quote(f"./{_stem(disk.image)}.img"), quote(f"./{_above(disk.image).file}")
    yield f'if [ -e {image} ]; then mv {image} {image}.aside-"$now"; fi'
    yield f"qemu-img create -q -f qcow2 -b {replica} -F raw {image}"


def write_script(vm: VirtualMachine) -> bytes:
    """A script to be run where the images are; its arguments are appended to virt-v2v's."""
    stem = vm.stem
    head = comment(
        [
            f"Converts {vm.name} with virt-v2v, in images above the replica, which stays as it is.",
            f"Then define {stem}.virt-v2v-result.xml.  Run again, it begins anew.",
            "usage: sh FILE [OPTION of virt-v2v-in-place]...   (--key all:key:PASSWORD, ...)",
            "Made by p2v-sync.",
        ]
    )
    log_name = f"{stem}.virt-v2v.log"
    xml, log = quote(f"./{stem}.virt-v2v.xml"), quote(f"./{log_name}")
    run = f'"$program" -v -x -i libvirtxml --root first "$@" {xml} >{log} 2>&1'
    lines = [*head, "set -eu", BESIDE_IMAGES, _FIND_PROGRAM]
    if vm.windows is not None:
        lines.append(_WINDOWS_DRIVERS)
    lines += [_check_image(disk) for disk in vm.disks]
    lines.append(_NOW)
    for disk in vm.disks:
        lines += _make_image(disk)
    said = f"\"$(grep -a 'error: ' {log} | tail -n 1); the log is $PWD/\"{quote(log_name)}"
    lines += [_RUN, f"{run} || {{ echo {said} >&2; exit 1; }}"]
    return script(lines)
