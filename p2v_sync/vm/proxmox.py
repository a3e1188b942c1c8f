"""The virtual machine as a shell script of Proxmox VE's ``qm`` (man 1 qm)."""

import base64
import re
from collections.abc import Iterator
from shlex import quote

from p2v_sync.fixup.plan import Bus, Hypervisor
from p2v_sync.units import MIB
from p2v_sync.vm.definition import VirtualMachine, VirtualNic
from p2v_sync.vm.network import Network
from p2v_sync.vm.shell import BESIDE_IMAGES, command, comment, script

_USUAL = Network("vmbr0")
_SMBIOS = (
    ("manufacturer", "sys_vendor"),
    ("product", "product_name"),
    ("version", "product_version"),
    ("serial", "product_serial"),
    ("sku", "product_sku"),
    ("family", "product_family"),
)
_WINDOWS = (
    ((10, 0), "win10"),
    ((6, 2), "win8"),
    ((6, 1), "win7"),
    ((6, 0), "w2k8"),
    ((5, 2), "w2k3"),
    ((5, 1), "wxp"),
)


def dns_name(name: str, most: int = 63) -> str:
    """A name that is a DNS label: what Proxmox and Kubernetes take."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower())[:most].strip("-")
    return label or "vm"


def _os_type(vm: VirtualMachine) -> str:
    if vm.windows is not None:
        version = vm.windows
        return next((name for least, name in _WINDOWS if version >= least), "w2k")
    if not vm.kernel:
        return "other"
    return "l26" if vm.kernel >= (2, 6) else "l24"


def _smbios(vm: VirtualMachine) -> str:
    encoded = (
        f"{name}={base64.b64encode(vm.smbios[key].encode()).decode()}"
        for name, key in _SMBIOS
        if key in vm.smbios
    )
    return ",".join([f"uuid={vm.uuid}", "base64=1", *encoded])


def _nic(vm: VirtualMachine, nic: VirtualNic) -> str:
    network = nic.network
    if network is None or (vm.hypervisor is not Hypervisor.PROXMOX and not network.is_bridge):
        network = _USUAL
    return f"{nic.model}={nic.mac},bridge={network.name},firewall=0"


def _create(vm: VirtualMachine) -> Iterator[list[str]]:
    yield ["--name", dns_name(vm.name)]
    yield ["--ostype", _os_type(vm)]
    yield ["--machine", vm.chipset]
    yield ["--bios", "ovmf" if vm.is_uefi else "seabios"]
    yield ["--memory", str(vm.memory // MIB)]
    cpus = vm.cpus
    yield ["--sockets", str(cpus.sockets), "--cores", str(cpus.cores * cpus.threads)]
    yield ["--cpu", vm.cpu_model or "host", "--numa", "0"]
    yield ["--scsihw", "virtio-scsi-single"]
    yield ["--localtime", str(int(vm.rtc == "localtime"))]
    yield ["--agent", str(int(vm.has_virtio)), "--onboot", "0"]
    yield ["--smbios1", _smbios(vm)]
    for at, nic in enumerate(vm.nics):
        yield [f"--net{at}", _nic(vm, nic)]
    yield ["--serial0", "socket", "--vga", "std"]


def _disks(vm: VirtualMachine) -> Iterator[tuple[str, str, str]]:
    """Each disk's key (scsi0), its file, and its further options."""
    counts: dict[Bus, int] = {}
    for disk in vm.disks:
        at = counts.get(disk.bus, 0)
        counts[disk.bus] = at + 1
        options = ["discard=on"]
        if disk.serial:
            options.append(f"serial={disk.serial}")
        if disk.wwn and disk.bus is not Bus.VIRTIO:
            options.append(f"wwn=0x{disk.wwn}")
        yield f"{disk.bus}{at}", disk.image.file, ",".join(options)


def _notes(vm: VirtualMachine) -> Iterator[str]:
    yield f"Makes the virtual machine {vm.name} on a Proxmox VE host, of copies of the images"
    yield "beside this script: sh FILE VMID STORAGE"
    yield "Made by p2v-sync.  Needs Proxmox VE 7.2 (import-from).  Not tried by its authors on a"
    yield "Proxmox host: read it before you run it."
    yield from vm.notes
    if vm.cpus.threads > 1:
        yield "qm knows no threads: they are counted as cores"
    if vm.is_uefi:
        yield "the variables of UEFI start empty; the guest must have EFI/BOOT/BOOTX64.EFI"
    yield "LVM and ZFS round a disk's size up: a GPT then wants sgdisk -e on the copy"
    if any(disk.sector_size != 512 for disk in vm.disks):
        yield "A DISK HAS 4 KIB SECTORS, which qm can not say: add logical_block_size by args:"


def write(vm: VirtualMachine) -> bytes:
    """A script to be run where the images are, with the number and storage of the new machine."""
    disks = list(_disks(vm))
    lines = [
        *comment(_notes(vm)),
        "set -eu",
        'if [ $# -ne 2 ]; then echo "usage: sh $0 VMID STORAGE" >&2; exit 2; fi',
        "vmid=$1 storage=$2",
        BESIDE_IMAGES,
        # import-from ends at a comma, and there is no way to write one.
        f"case $PWD/{''.join(quote(file) for _, file, _ in disks)} in *,*)",
        '    echo "$0: qm can\'t import files with a comma in their path: $PWD" >&2; exit 1;;',
        "esac",
        command('qm create "$vmid"', list(_create(vm))),
    ]
    if vm.is_uefi:
        keys = int(vm.has_secure_boot)
        lines.append(f'qm set "$vmid" --efidisk0 "$storage:1,efitype=4m,pre-enrolled-keys={keys}"')
    for key, file, options in disks:
        source = f'"$storage:0,import-from=$PWD/"{quote(file)}'
        lines.append(f'qm set "$vmid" --{key} {source},{options}')
    if disks:
        lines.append(f'qm set "$vmid" --boot order={disks[0][0]}')
    return script(lines)
