"""The loader is where firmware without boot entries looks, with all that it needs beside it."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.guest import Distribution, Family, Firmware, Guest, Mount
from p2v_sync.fixup.plan import Context, Severity
from p2v_sync.fixup.uefi_fallback import UefiFallback
from tests.contract.guests import PlainGuest

SHIM = "MZ shim UEFI SHIM\n$Version: 15 $"
GRUB = "MZ grub, with its prefix /EFI/debian"


def context(
    firmware: Firmware | None = Firmware.UEFI,
    *,
    architecture: str = "x86_64",
    distribution: str = "debian",
    point: str = "/boot/efi",
) -> Context:
    guest = Guest(
        Distribution(Family.DEBIAN, distribution),
        architecture=architecture,
        firmware=firmware,
        mounts=(Mount("LABEL=EFI", point, "vfat"),),
    )
    return Context(guest, NOTHING_KNOWN, Machine())


def below(place: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"{place}/{path}": text for path, text in files.items()}


def boot_directory(guest: PlainGuest, efi: str = "/boot/efi/EFI") -> dict[str, str]:
    found = guest.at(efi).glob("[Bb][Oo][Oo][Tt]/*")
    return {path.name: path.read_bytes().decode("latin-1") for path in found}


CASES: list[tuple[str, dict[str, str], dict[str, str]]] = [
    (
        "signed: what the shim starts is beside it",
        {
            "debian/shimx64.efi": SHIM,
            "debian/grubx64.efi": GRUB,
            "debian/mmx64.efi": "MZ mok",
            "debian/fbx64.efi": "MZ would look for boot entries",
            "debian/BOOTX64.CSV": "csv",
            "debian/grub.cfg": "search.fs_uuid",
        },
        {
            "BOOTX64.EFI": SHIM,
            "grubx64.efi": GRUB,
            "mmx64.efi": "MZ mok",
            "grub.cfg": "search.fs_uuid",
        },
    ),
    (
        "unsigned",
        {"debian/grubx64.efi": GRUB},
        {"BOOTX64.EFI": GRUB},
    ),
    (
        "names in any case",
        {"DEBIAN/GRUBX64.EFI": GRUB, "DEBIAN/Grub.cfg": "cfg"},
        {"BOOTX64.EFI": GRUB, "grub.cfg": "cfg"},
    ),
    (
        "GRUB legacy of RHEL 6",
        {"redhat/grub.efi": "MZ legacy", "redhat/grub.conf": "default=0"},
        {"BOOTX64.EFI": "MZ legacy", "BOOTX64.conf": "default=0"},
    ),
    (
        "systemd-boot",
        {"systemd/systemd-bootx64.efi": "MZ sd"},
        {"BOOTX64.EFI": "MZ sd"},
    ),
    (
        "elilo",
        {"SuSE/elilo.efi": "MZ elilo", "SuSE/elilo.conf": "image=vmlinuz"},
        {"BOOTX64.EFI": "MZ elilo", "elilo.conf": "image=vmlinuz"},
    ),
    (
        "Windows, when there is nothing else",
        {"Microsoft/Boot/bootmgfw.efi": "MZ w"},
        {"BOOTX64.EFI": "MZ w"},
    ),
    (
        "32-bit firmware",
        {"debian/grubia32.efi": "MZ 32"},
        {"BOOTIA32.EFI": "MZ 32"},
    ),
    (
        "an empty directory in another case is used",
        {"debian/grubx64.efi": GRUB, "Boot/other.txt": "x"},
        {"BOOTX64.EFI": GRUB, "other.txt": "x"},
    ),
]


@pytest.mark.parametrize(
    ("files", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_loader_is_where_firmware_looks(
    tmp_path: Path, files: dict[str, str], expected: dict[str, str]
) -> None:
    guest = PlainGuest(tmp_path, below("/boot/efi/EFI", files))
    assert guest.fix(context(), UefiFallback()) == []
    assert boot_directory(guest) == expected


def test_what_is_in_the_default_directory_stays(tmp_path: Path) -> None:
    files = {"debian/grubx64.efi": GRUB, "debian/grub.cfg": "new", "Boot/GRUB.CFG": "own"}
    guest = PlainGuest(tmp_path, below("/boot/efi/EFI", files))
    guest.fix(context(), UefiFallback())
    assert boot_directory(guest) == {"BOOTX64.EFI": GRUB, "GRUB.CFG": "own"}


def test_the_guests_own_loader_is_chosen_and_the_others_are_said(tmp_path: Path) -> None:
    files = {
        "Microsoft/Boot/bootmgfw.efi": "MZ w",
        "ubuntu/grubx64.efi": "MZ u",
        "debian/grubx64.efi": "MZ d",
        "tools/readme": "",
    }
    guest = PlainGuest(tmp_path, below("/boot/efi/EFI", files))
    (finding,) = guest.fix(context(), UefiFallback())
    assert boot_directory(guest) == {"BOOTX64.EFI": "MZ d"}
    assert "debian and ubuntu, Microsoft" in finding.text


@pytest.mark.parametrize("name", ["BOOT/BOOTX64.EFI", "boot/bootx64.efi"])
def test_a_default_loader_that_is_there_stays(tmp_path: Path, name: str) -> None:
    files = {name: "MZ another", "debian/grubx64.efi": GRUB}
    guest = PlainGuest(tmp_path, below("/boot/efi/EFI", files))
    draft, findings = guest.plan([UefiFallback()], context())
    assert draft.edits() == []
    assert findings == []


def test_a_shim_that_makes_boot_entries_is_left_alone(tmp_path: Path) -> None:
    files = {
        "BOOT/BOOTX64.EFI": SHIM,
        "BOOT/fbx64.efi": "MZ",
        "fedora/BOOTX64.CSV": "csv",
        "fedora/grubx64.efi": GRUB,
    }
    guest = PlainGuest(tmp_path, below("/boot/efi/EFI", files))
    draft, findings = guest.plan([UefiFallback()], context())
    assert draft.edits() == []
    assert findings == []
    guest.at("/boot/efi/EFI/fedora/BOOTX64.CSV").unlink()
    (finding,) = guest.fix(context(), UefiFallback())
    assert "no BOOTX64.CSV" in finding.text


def test_a_shim_alone_gets_what_it_starts(tmp_path: Path) -> None:
    files = {
        "BOOT/BOOTX64.EFI": SHIM,
        "debian/shimx64.efi": SHIM,
        "debian/grubx64.efi": GRUB,
    }
    guest = PlainGuest(tmp_path, below("/boot/efi/EFI", files))
    assert guest.fix(context(), UefiFallback()) == []
    assert boot_directory(guest) == {"BOOTX64.EFI": SHIM, "grubx64.efi": GRUB}
    for path in ("BOOT/grubx64.efi", "debian/grubx64.efi"):
        guest.at(f"/boot/efi/EFI/{path}").unlink()
    (finding,) = guest.fix(context(), UefiFallback())
    assert "nothing for it to start" in finding.text


@pytest.mark.parametrize("point", ["/efi", "/boot", "/mnt/esp"])
def test_the_partition_is_found_wherever_it_is_mounted(tmp_path: Path, point: str) -> None:
    guest = PlainGuest(tmp_path, {f"{point}/EFI/debian/grubx64.efi": GRUB})
    guest.fix(context(point=point), UefiFallback())
    assert boot_directory(guest, f"{point}/EFI") == {"BOOTX64.EFI": GRUB}


def test_each_architecture_has_a_name_of_its_own(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/boot/efi/EFI/debian/grubaa64.efi": GRUB})
    guest.fix(context(architecture="aarch64"), UefiFallback())
    assert boot_directory(guest) == {"BOOTAA64.EFI": GRUB}


@pytest.mark.parametrize("firmware", [Firmware.BIOS, None])
def test_guests_that_start_otherwise_are_not_concerned(
    tmp_path: Path, firmware: Firmware | None
) -> None:
    guest = PlainGuest(tmp_path, {"/boot/efi/EFI/debian/grubx64.efi": GRUB})
    assert guest.fix(context(firmware), UefiFallback()) == []
    assert not boot_directory(guest)


@pytest.mark.parametrize("files", [{}, {"/boot/efi/EFI/debian/readme": ""}])
def test_nothing_to_start_is_a_warning(tmp_path: Path, files: dict[str, str]) -> None:
    (finding,) = PlainGuest(tmp_path, files).fix(context(), UefiFallback())
    assert finding.severity is Severity.WARNING
    assert finding.hint
