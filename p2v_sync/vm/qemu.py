"""The virtual machine as a shell script that runs QEMU (man 1 qemu-system), with or without KVM."""

from collections.abc import Iterator
from shlex import quote

from p2v_sync.fixup.plan import Bus
from p2v_sync.fixup.profile import NicModel
from p2v_sync.units import MIB
from p2v_sync.vm.definition import Chipset, VirtualDisk, VirtualMachine
from p2v_sync.vm.shell import BESIDE_IMAGES, command, comment, script

_NIC_DEVICES = {
    NicModel.VIRTIO: "virtio-net-pci",
    NicModel.E1000E: "e1000e",
    NicModel.E1000: "e1000",
    NicModel.RTL8139: "rtl8139",
}
# type 1 is the system, 2 its board; man qemu-system, -smbios.
_SMBIOS = (
    ("0", (("vendor", "bios_vendor"), ("version", "bios_version"))),
    (
        "1",
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
        "2",
        (
            ("manufacturer", "board_vendor"),
            ("product", "board_name"),
            ("version", "board_version"),
            ("serial", "board_serial"),
            ("asset", "board_asset_tag"),
        ),
    ),
    (
        "3",
        (
            ("manufacturer", "chassis_vendor"),
            ("version", "chassis_version"),
            ("serial", "chassis_serial"),
            ("asset", "chassis_asset_tag"),
        ),
    ),
)
# Where distributions keep OVMF: code and empty variables; Debian, Fedora, SUSE, Arch.
_PLAIN_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)
# The same with Secure Boot, and Microsoft's keys among the variables.
_SECURE_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("/usr/share/OVMF/OVMF_CODE.ms.fd", "/usr/share/OVMF/OVMF_VARS.ms.fd"),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd",
    ),
    ("/usr/share/qemu/ovmf-x86_64-smm-ms-code.bin", "/usr/share/qemu/ovmf-x86_64-smm-ms-vars.bin"),
)


def _value(text: str) -> str:
    """A value in QEMU's comma lists."""
    return text.replace(",", ",,")


def _firmware(vm: VirtualMachine) -> Iterator[str]:
    """Shell lines that set ``code``, and ``vars`` to the machine's own copy of the variables."""
    pairs = _SECURE_FIRMWARE if vm.has_secure_boot else _PLAIN_FIRMWARE
    yield "# UEFI: the variables are the machine's own, and are kept beside its disks."
    yield "code= empty="
    yield "while read -r one two; do"
    yield '    if [ -r "$one" ] && [ -r "$two" ]; then code=$one empty=$two; break; fi'
    yield "done <<'END'"
    yield from (f"{code} {empty}" for code, empty in pairs)
    yield "END"
    yield 'if [ -z "$code" ]; then'
    yield '    echo "$0: no OVMF here; install the package ovmf (or edk2-ovmf)" >&2'
    yield "    exit 1"
    yield "fi"
    # By the name of the empty ones: QEMU takes no other size than the code was built for.
    yield f"vars={quote(vm.stem)}_${{empty##*/}}"
    yield '[ -e "$vars" ] || cp -- "$empty" "$vars"'


def _machine(vm: VirtualMachine) -> Iterator[list[str]]:
    smm = ",smm=on" if vm.has_secure_boot else ""
    yield ["-name", f"guest={_value(vm.name)}"]
    yield ["-uuid", vm.uuid]
    yield ["-machine", f"{vm.chipset},accel=kvm:tcg{smm}"]
    # With KVM "max" is the host's own, and it exists without.
    yield ["-cpu", vm.cpu_model or "max"]
    cpus = vm.cpus
    grid = f"sockets={cpus.sockets},cores={cpus.cores},threads={cpus.threads}"
    yield ["-smp", f"{cpus.count},{grid}"]
    yield ["-m", str(vm.memory // MIB)]
    yield ["-rtc", f"base={vm.rtc},driftfix=slew"]
    values = {**vm.smbios, "uuid": vm.uuid}
    for number, entries in _SMBIOS:
        there = [f"{name}={_value(values[key])}" for name, key in entries if key in values]
        if there:
            yield ["-smbios", ",".join([f"type={number}", *there])]


def _disk_device(vm: VirtualMachine, disk: VirtualDisk, at: int) -> str:
    """The device's name and its place; ``at``: the disk's number on its bus."""
    match disk.bus:
        case Bus.VIRTIO:
            return "virtio-blk-pci"
        case Bus.SCSI:
            return f"scsi-hd,bus=scsi.0,scsi-id={at}"
        case Bus.SATA if vm.chipset is Chipset.PC:
            return f"ide-hd,bus=ahci.{at}"
        case Bus.SATA:
            return f"ide-hd,bus=ide.{at}"
        case _:
            return f"ide-hd,bus=ide.{at // 2},unit={at % 2}"


def _disks(vm: VirtualMachine) -> Iterator[list[str]]:
    if vm.on_bus(Bus.SCSI):
        yield ["-device", "virtio-scsi-pci,id=scsi"]
    if vm.on_bus(Bus.SATA) and vm.chipset is Chipset.PC:
        yield ["-device", "ich9-ahci,id=ahci"]
    counts: dict[Bus, int] = {}
    for number, disk in enumerate(vm.disks):
        at = counts.get(disk.bus, 0)
        counts[disk.bus] = at + 1
        image = disk.image
        # Without a directory "nbd:…" would be no file.
        file = f"file=./{_value(image.file)},format={image.format}"
        yield ["-drive", f"{file},if=none,id=disk{number},discard=unmap"]
        parts = [_disk_device(vm, disk, at), f"drive=disk{number}", f"bootindex={disk.boot}"]
        if disk.serial:
            parts.append(f"serial={disk.serial}")
        if disk.wwn and disk.bus is not Bus.VIRTIO:
            parts.append(f"wwn=0x{disk.wwn}")
        if disk.sector_size != 512:
            size = disk.sector_size
            parts.append(f"logical_block_size={size},physical_block_size={size}")
        yield ["-device", ",".join(parts)]


def _nics(vm: VirtualMachine) -> Iterator[list[str]]:
    if not vm.nics:
        yield ["-nic", "none"]
    for at, nic in enumerate(vm.nics):
        # A network of libvirt's is nothing to QEMU.
        network = nic.network if nic.network and nic.network.is_bridge else None
        kind = f"bridge,id=net{at},br={network.name}" if network else f"user,id=net{at}"
        yield ["-netdev", kind]
        yield ["-device", f"{_NIC_DEVICES[nic.model]},netdev=net{at},mac={nic.mac}"]


def _options(vm: VirtualMachine) -> Iterator[list[str]]:
    yield from _machine(vm)
    yield from _disks(vm)
    yield from _nics(vm)
    yield ["-vga", "std"]
    yield ["-usb", "-device", "usb-tablet"]
    if vm.has_virtio:
        yield ["-device", "virtio-rng-pci"]
    if vm.has_secure_boot:
        yield ["-global", "driver=cfi.pflash01,property=secure,value=on"]


def write(vm: VirtualMachine) -> bytes:
    """A script to be run where the images are; its arguments are appended to QEMU's."""
    lines = [
        *comment(
            [
                f"Runs the virtual machine {vm.name}: sh FILE [OPTION of qemu-system-x86_64]...",
                "Made by p2v-sync.",
                *vm.notes,
                "interfaces without a bridge reach the outside through QEMU (-netdev user)",
                "where /dev/kvm is of no use: -machine accel=tcg; without a screen: -nographic",
            ]
        ),
        "set -eu",
        BESIDE_IMAGES,
    ]
    # The paths are known only where it runs.
    flash = ""
    if vm.is_uefi:
        lines += _firmware(vm)
        one = '-drive "if=pflash,unit=0,format=raw,readonly=on,file=$code"'
        two = '-drive "if=pflash,unit=1,format=raw,file=$vars"'
        flash = f" \\\n    {one} \\\n    {two}"
    lines.append(command(f"exec qemu-system-x86_64{flash}", list(_options(vm)), '"$@"'))
    return script(lines)
