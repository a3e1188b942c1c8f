"""The disk that the machine starts from comes first."""

from pathlib import Path

import pytest

from p2v_sync.device.edd import read_bios_order
from p2v_sync.device.storage import NOTHING_KNOWN, Storage, Volume
from p2v_sync.fixup.guest import Firmware, Guest, Mount
from p2v_sync.vm.boot_order import boot_order

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"


def edd(root: Path, **signatures: str) -> Path:
    """``_80="0x…"``."""
    for number, text in signatures.items():
        file = root / "firmware" / "edd" / f"int13_dev{number[1:]}" / "mbr_signature"
        file.parent.mkdir(parents=True)
        file.write_text(text + "\n")
    return root


def heads(**signatures: int) -> dict[str, bytes]:
    return {
        name: bytes(440) + signature.to_bytes(4, "little") + bytes(68)
        for name, signature in signatures.items()
    }


def order(root: Path, found: dict[str, bytes]) -> list[str]:
    return read_bios_order({name: name for name in found}, root, found.__getitem__)


def test_the_bios_numbers_disks_in_its_own_order(tmp_path: Path) -> None:
    root = edd(tmp_path, _80="0x0000beef", _81="0x0000cafe", _82="0x00001234")
    assert order(root, heads(sda=0xCAFE, sdb=0x5678, sdc=0xBEEF)) == ["sdc", "sda"]


def test_disks_that_look_alike_have_no_number(tmp_path: Path) -> None:
    root = edd(tmp_path, _80="0x0000beef", _81="0x0000beef", _82="0x0000cafe")
    assert order(root, heads(sda=0xBEEF, sdb=0xCAFE)) == ["sdb"]
    assert order(root, heads(sda=0xCAFE, sdb=0xCAFE)) == []


@pytest.mark.parametrize("text", ["0x00000000", "", "beef", "0x123456789", "\x1b[2J"])
def test_what_is_no_signature_is_none(tmp_path: Path, text: str) -> None:
    assert order(edd(tmp_path, _80=text), heads(sda=0) | {"sdb": b""}) == []


def test_without_the_module_nothing_is_known(tmp_path: Path) -> None:
    assert order(tmp_path, heads(sda=1)) == []


def test_by_bios_the_numbers_count() -> None:
    guest = Guest(firmware=Firmware.BIOS)
    assert boot_order(["a", "b", "c"], ["c", "a"], guest, NOTHING_KNOWN) == ["c", "a", "b"]
    assert boot_order(["b", "a"], [], guest, NOTHING_KNOWN) == ["b", "a"]


def test_by_uefi_the_system_partition_counts() -> None:
    volumes = (
        Volume("/dev/mapper/o1", "sda", 1, part_type="0x83"),
        Volume("/dev/mapper/o2", "sdb", 1, part_type=ESP),
        Volume("/dev/mapper/o3", "sdc", 1, part_type=ESP.lower()),
    )
    guest = Guest(firmware=Firmware.UEFI)
    disks, storage = ["sda", "sdb", "sdc"], Storage(volumes)
    assert boot_order(disks, ["sda"], guest, storage) == ["sdb", "sdc", "sda"]
    mounts = (Mount("UUID=1", "/boot/efi", "vfat", device="/dev/mapper/o3"),)
    mounting = Guest(firmware=Firmware.UEFI, mounts=mounts)
    assert boot_order(disks, ["sda"], mounting, storage) == ["sdc", "sdb", "sda"]
