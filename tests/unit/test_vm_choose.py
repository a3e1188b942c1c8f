"""Which hardware a guest gets."""

from dataclasses import replace

import pytest

from p2v_sync.device.machine import Cpus, Machine, MachineDisk
from p2v_sync.errors import ConfigError
from p2v_sync.fixup.guest import Firmware, Guest
from p2v_sync.fixup.plan import Bus
from p2v_sync.fixup.profile import NicModel, Twins
from p2v_sync.units import GIB, KIB, MIB, TIB
from p2v_sync.vm.choose import choose
from p2v_sync.vm.definition import Chipset, Definitions, Image, VirtualMachine
from tests.contract.machines import (
    BIOS_SERVER,
    OLD,
    SCSI,
    UEFI_SERVER,
    VIRTIO,
    guest,
    images,
    windows,
    wishes,
)


def definitions(
    machine: Machine = BIOS_SERVER, of: Guest | None = None, hardware: Twins = VIRTIO
) -> Definitions:
    return choose(machine, of or guest(), images(machine), wishes(), hardware)


def buses(vm: VirtualMachine) -> list[Bus]:
    return [disk.bus for disk in vm.disks]


def test_a_guest_of_today_gets_virtio_and_its_twin_sata() -> None:
    recommended, compat = definitions()
    assert (recommended.chipset, compat.chipset) == (Chipset.Q35, Chipset.Q35)
    assert buses(recommended) == [Bus.VIRTIO] * 2
    assert buses(compat) == [Bus.SATA] * 2
    assert {nic.model for nic in compat.nics} == {NicModel.E1000E}
    assert recommended.has_virtio
    assert not compat.has_virtio


def test_nothing_is_known_of_the_guest() -> None:
    recommended, compat = choose(BIOS_SERVER, None, images(BIOS_SERVER), wishes())
    assert buses(recommended) == [Bus.SATA] * 2
    assert buses(compat) == [Bus.IDE] * 2
    assert compat.chipset is Chipset.PC
    assert not recommended.has_virtio


@pytest.mark.parametrize(
    ("kernel", "hardware", "chipset"),
    [
        ("6.1.0-18-amd64", VIRTIO, Chipset.Q35),
        ("3.10.0-1160.el7.x86_64", VIRTIO, Chipset.Q35),
        ("3.16.0-4-amd64", VIRTIO, Chipset.PC),  # virtio from before 1.0
        ("2.6.18-8.el5", SCSI, Chipset.PC),
        ("2.6.9-89.EL", OLD, Chipset.PC),
    ],
)
def test_the_board_goes_with_the_kernel(kernel: str, hardware: Twins, chipset: Chipset) -> None:
    assert definitions(of=guest(kernel), hardware=hardware).recommended.chipset is chipset


def test_uefi_is_always_on_q35_and_never_on_ide() -> None:
    uefi = guest("2.6.32", Firmware.UEFI)
    recommended, compat = definitions(of=uefi, hardware=OLD)
    for vm in (recommended, compat):
        assert vm.chipset is Chipset.Q35
        assert buses(vm) == [Bus.SATA] * 2


def test_the_guest_knows_better_than_the_live_system_how_it_starts() -> None:
    assert definitions(UEFI_SERVER, guest()).recommended.firmware is Firmware.BIOS
    unknown = replace(guest(), firmware=None)
    assert definitions(UEFI_SERVER, unknown).recommended.firmware is Firmware.UEFI


def test_secure_boot_is_kept_but_not_in_the_twin() -> None:
    recommended, compat = definitions(UEFI_SERVER, guest(firmware=Firmware.UEFI))
    assert recommended.has_secure_boot
    assert not compat.has_secure_boot
    assert not definitions(UEFI_SERVER, guest()).recommended.has_secure_boot


@pytest.mark.parametrize(("kernel", "of_both"), [("2.6.9-89.EL", 2), ("2.6.26-2", 1), ("6.1", 0)])
def test_old_kernels_get_an_old_processor(kernel: str, of_both: int) -> None:
    pair = definitions(of=guest(kernel))
    assert [vm.cpu_model for vm in pair].count("qemu64") == of_both


def test_windows_gets_what_it_knows_whatever_is_asked_for() -> None:
    for version, bus, nic in (
        ("10.0", Bus.SATA, NicModel.E1000E),
        ("6.0", Bus.SATA, NicModel.E1000),
        ("5.2", Bus.IDE, NicModel.RTL8139),
        ("", Bus.SATA, NicModel.E1000E),
    ):
        pair = definitions(of=windows(version))
        assert buses(pair.recommended) == [bus] * 2, version
        assert pair.recommended.nics[0].model is nic, version
        assert buses(pair.compat) == [Bus.IDE] * 2, version
        assert not pair.recommended.has_virtio
    assert buses(definitions(of=windows("10.0", Firmware.UEFI)).compat) == [Bus.SATA] * 2


def test_disks_boot_in_the_order_in_which_they_are_given() -> None:
    given = [Image("sdb", "sdb.qcow2"), Image("sda", "sda.img")]
    vm = choose(BIOS_SERVER, guest(), given, wishes(), VIRTIO).recommended
    assert [(disk.image.disk, disk.boot) for disk in vm.disks] == [("sdb", 1), ("sda", 2)]
    assert vm.disks[0].serial == "9QM2A1XY"
    assert vm.disks[0].wwn == "5000c50012345678"


def test_four_kib_sectors_need_virtio() -> None:
    machine = replace(BIOS_SERVER, disks=(MachineDisk("sda", TIB, logical_sector_size=4096),))
    recommended, compat = definitions(machine)
    assert buses(recommended) == [Bus.VIRTIO]
    assert buses(compat) == [Bus.SCSI]
    assert any("4 KiB" in note for note in compat.notes)
    assert any("SeaBIOS" in note for note in recommended.notes)


@pytest.mark.parametrize(("hardware", "places"), [(OLD, 4), (VIRTIO, 16)])
def test_what_finds_no_place_goes_to_virtio_scsi(hardware: Twins, places: int) -> None:
    disks = tuple(MachineDisk(f"sd{letter}", GIB) for letter in "abcdefghijklmnopqr")
    vm = definitions(replace(BIOS_SERVER, disks=disks), hardware=hardware).recommended
    assert buses(vm).count(Bus.SCSI) == len(disks) - places
    assert sum("no place" in note for note in vm.notes) == len(disks) - places


def test_serials_keep_what_tells_them_apart() -> None:
    """RAID controllers have theirs begin alike."""
    first = "600508b1001c3a5f00000000000000a1"
    disks = tuple(
        MachineDisk(name, GIB, serial=serial)
        for name, serial in (("sda", first), ("sdb", first[:-1] + "2"), ("sdc", "a b'c"))
    )
    vm = definitions(replace(BIOS_SERVER, disks=disks)).recommended
    serials = [disk.serial for disk in vm.disks]
    assert len({*serials}) == 3
    assert all(len(serial) <= 20 for serial in serials)
    assert serials[2] == "abc"


def test_memory_is_what_the_machine_has_and_not_rounded_up_to_a_power_of_two() -> None:
    assert definitions(replace(BIOS_SERVER, memory=24 * GIB)).recommended.memory == 24 * GIB
    odd = definitions(replace(BIOS_SERVER, memory=24 * GIB + KIB)).recommended
    assert odd.memory == 24 * GIB + MIB
    unknown = definitions(replace(BIOS_SERVER, memory=0)).recommended
    assert unknown.memory == GIB
    assert any("memory" in note for note in unknown.notes)


def test_what_is_asked_for_is_given() -> None:
    wish = replace(wishes(), memory=3 * GIB, vcpus=6)
    vm = choose(BIOS_SERVER, guest(), images(BIOS_SERVER), wish, VIRTIO).recommended
    assert (vm.memory, vm.cpus.count, vm.cpus.sockets) == (3 * GIB, 6, 1)
    same = replace(wish, vcpus=16)
    kept = choose(BIOS_SERVER, guest(), images(BIOS_SERVER), same, VIRTIO).recommended
    assert kept.cpus == BIOS_SERVER.cpus


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": "-x"},
        {"name": ".."},
        {"name": "a\nb"},
        {"name": " a"},
        {"name": "x" * 65},
        {"name": "a\udc80"},
        {"directory": "vm"},
        {"directory": "/srv\n"},
        {"memory": 4},
        {"memory": 65 * TIB},
        {"vcpus": 0},
        {"vcpus": 5000},
    ],
)
def test_wishes_that_can_not_be_met(changes: dict[str, str | int]) -> None:
    wish = replace(wishes(), **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        choose(BIOS_SERVER, guest(), images(BIOS_SERVER), wish, VIRTIO)
    assert caught.value.hint


@pytest.mark.parametrize("file", ["", "..", "a/b", "a\n"])
def test_images_are_plain_files(file: str) -> None:
    with pytest.raises(ConfigError, match="name of an image"):
        choose(BIOS_SERVER, guest(), [Image("sda", file)], wishes(), VIRTIO)


def test_a_machine_without_a_uuid_has_the_same_made_up_one_each_time() -> None:
    nameless = replace(BIOS_SERVER, uuid="")
    one, again = definitions(nameless), definitions(nameless)
    assert one.recommended.uuid == again.recommended.uuid == one.compat.uuid
    other = replace(nameless, disks=())
    assert definitions(other).recommended.uuid != one.recommended.uuid


@pytest.mark.parametrize(
    ("machine_rtc", "of", "rtc"),
    [
        ("localtime", guest(), "utc"),  # the guest's belief counts
        ("localtime", replace(guest(), rtc=""), "localtime"),
        ("", replace(guest(), rtc=""), "utc"),
        ("", windows("10.0"), "localtime"),
        ("utc", windows("10.0"), "utc"),
    ],
)
def test_the_hardware_clock(machine_rtc: str, of: Guest, rtc: str) -> None:
    assert definitions(replace(BIOS_SERVER, rtc=machine_rtc), of).recommended.rtc == rtc


def test_only_carried_interfaces_are_in_it() -> None:
    vm = definitions().recommended
    assert [nic.mac for nic in vm.nics] == ["00:26:b9:3a:7c:11", "00:26:b9:3a:7c:13"]
    assert any("usb0" in note for note in vm.notes)


def test_many_processors_are_said() -> None:
    vm = definitions(replace(BIOS_SERVER, cpus=Cpus(4, 72, 2))).recommended
    assert any("IOMMU" in note for note in vm.notes)
