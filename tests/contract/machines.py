"""Physical machines to be made virtual: one with BIOS, one with UEFI, one that means harm."""

from collections.abc import Iterator
from dataclasses import replace

from p2v_sync.device.machine import Cpus, Machine, MachineDisk, Nic
from p2v_sync.fixup.guest import (
    Distribution,
    Family,
    Firmware,
    Guest,
    Interface,
    Kernel,
    NetworkStack,
    Windows,
)
from p2v_sync.fixup.plan import Bus, Finding, Hypervisor, Severity
from p2v_sync.fixup.profile import Hardware, NicModel, Twins
from p2v_sync.units import GIB, MIB
from p2v_sync.vm.choose import Wishes, choose
from p2v_sync.vm.definition import Definitions, Image
from p2v_sync.vm.inventory import Facts
from p2v_sync.vm.network import Networks, parse_networks

VIRTIO = Twins(Hardware(Bus.VIRTIO, NicModel.VIRTIO), Hardware(Bus.SATA, NicModel.E1000E))
SCSI = Twins(Hardware(Bus.SCSI, NicModel.VIRTIO), Hardware(Bus.SATA, NicModel.E1000))
OLD = Twins(Hardware(Bus.IDE, NicModel.E1000), Hardware(Bus.IDE, NicModel.RTL8139))

# Whatever a shell, XML, YAML, QEMU, libxlutil or Proxmox could stumble over.
NASTY = "a'b\"c,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\\ =é漢😀"

BIOS_SERVER = Machine(
    hostname="web01",
    uuid="4c4c4544-0042-3510-8054-b4c04f4d3832",
    dmi={
        "sys_vendor": "Dell Inc.",
        "product_name": "PowerEdge R710",
        "product_serial": "7QJ5M4J",
        "board_vendor": "Dell Inc.",
        "board_name": "0M233H",
        "bios_vendor": "Dell Inc.",
        "bios_version": "6.4.0",
    },
    memory=24 * GIB,
    cpus=Cpus(2, 4, 2, "Intel(R) Xeon(R) CPU E5540 @ 2.53GHz"),
    nics=(
        Nic("eno1", "00:26:b9:3a:7c:11", "bnx2", "0000:01:00.0"),
        Nic("eno2", "00:26:b9:3a:7c:13", "bnx2", "0000:01:00.1"),
        Nic("usb0", "02:26:b9:3a:7c:15", "cdc_ether", "0000:00:1d.0", is_carried=False),
    ),
    disks=(
        MachineDisk("sda", 146 * GIB, "PERC 6/i", "6001c230d4a1b2001c2f3e4d5a6b7c8d", bus="scsi"),
        MachineDisk("sdb", 500 * GIB, "ST500", "9QM2A1XY", "naa.5000c50012345678", "ata"),
    ),
    rtc="utc",
)
UEFI_SERVER = Machine(
    hostname="db",
    uuid="b3a1c2d4-0011-4a5b-8c6d-7e8f90a1b2c3",
    dmi={"sys_vendor": "HPE", "product_name": "ProLiant DL380 Gen10", "product_serial": "CZ3"},
    memory=16 * GIB,
    cpus=Cpus(1, 8, 1, "AMD EPYC 7232P"),
    nics=(Nic("ens1f0", "9c:dc:71:aa:bb:cc", "i40e", "0000:12:00.0"),),
    disks=(MachineDisk("nvme0n1", 960 * GIB, "MZ", "S4YV", "eui.0025385b01402a9c", "nvme", 4096),),
    is_uefi=True,
    has_secure_boot=True,
    has_tpm=True,
)
HOSTILE = replace(
    BIOS_SERVER,
    memory=768 * MIB,
    cpus=Cpus(1, 2, 1),
    hostname=NASTY,
    # Its name is in a note, and so in comments.
    nics=(*BIOS_SERVER.nics[:2], Nic("usb0\ntouch HURT #", "", is_carried=False)),
    dmi={key: f"{NASTY}\n\x00\x1b{key}" for key in BIOS_SERVER.dmi} | {"product_sku": "é" * 300},
    disks=tuple(replace(disk, serial=NASTY, model=NASTY) for disk in BIOS_SERVER.disks),
)


def guest(kernel: str = "6.1.0-18-amd64", firmware: Firmware = Firmware.BIOS) -> Guest:
    return Guest(
        distribution=Distribution(Family.DEBIAN, "debian", "12", "Debian GNU/Linux 12", "x"),
        architecture="x86_64",
        hostname="web01",
        firmware=firmware,
        kernels=(Kernel(kernel),),
        interfaces=(
            Interface(
                "eth0", "00:26:b9:3a:7c:11", NetworkStack.IFUPDOWN, "/etc/network/interfaces"
            ),
        ),
        rtc="utc",
    )


def windows(version: str, firmware: Firmware = Firmware.BIOS) -> Guest:
    return Guest(firmware=firmware, windows=Windows("Windows", version, "/Windows"))


def images(machine: Machine) -> list[Image]:
    return [Image(disk.name, f"{disk.name}.img") for disk in machine.disks]


def wishes(
    name: str = "web01", networks: str = "", hypervisor: Hypervisor = Hypervisor.KVM
) -> Wishes:
    chosen = parse_networks(networks) if networks else Networks()
    return Wishes(name, "/srv/p2v/web01", networks=chosen, hypervisor=hypervisor)


FINDINGS = (Finding("F01-fstab", Severity.WARNING, "two lines were not understood", "look"),)


def samples() -> Iterator[tuple[str, Definitions, Facts]]:
    """One of each kind, with a name."""
    bios, uefi = guest(), guest(firmware=Firmware.UEFI)
    nets = "eth0=br0,eno2=net:lan"
    rows = (
        ("bios", BIOS_SERVER, bios, wishes(networks=nets), VIRTIO),
        ("uefi", UEFI_SERVER, uefi, wishes("db"), SCSI),
        ("old", BIOS_SERVER, guest("2.6.9-89.EL"), wishes("old"), OLD),
        ("legacy-virtio", BIOS_SERVER, guest("2.6.32-5-amd64"), wishes("legacy"), VIRTIO),
        (
            "uefi-legacy-virtio",
            replace(UEFI_SERVER, disks=BIOS_SERVER.disks),
            guest("3.16.0-4-amd64", Firmware.UEFI),
            wishes("jessie"),
            VIRTIO,
        ),
        ("windows", BIOS_SERVER, windows("6.1"), wishes("win"), VIRTIO),
        ("windows-xp", BIOS_SERVER, windows("5.1"), wishes("xp"), VIRTIO),
        ("windows-uefi", UEFI_SERVER, windows("10.0", Firmware.UEFI), wishes("win11"), VIRTIO),
        ("xen", BIOS_SERVER, bios, wishes("x", hypervisor=Hypervisor.XEN), VIRTIO),
        ("proxmox", BIOS_SERVER, bios, wishes("p", "vmbr7", Hypervisor.PROXMOX), SCSI),
        ("hostile", HOSTILE, bios, wishes(NASTY), VIRTIO),
    )
    for name, machine, its_guest, wish, hardware in rows:
        definitions = choose(machine, its_guest, images(machine), wish, hardware)
        yield name, definitions, Facts(machine, its_guest, FINDINGS)
