"""Whether the guest is started by BIOS or by UEFI."""

from collections.abc import Sequence

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import Storage
from p2v_sync.fixup.guest import BootLoader, Firmware, LoaderKind, Mount
from p2v_sync.fixup.inspect import fstab
from p2v_sync.fixup.inspect.loaders import efi_directories, programs_of
from p2v_sync.fixup.inspect.reader import Reader

ESP_TYPES = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef")
_BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"
_ESP_POINTS = ("/boot/efi", "/efi", "/boot")
_ONLY_BIOS = (LoaderKind.LILO, LoaderKind.EXTLINUX)


def find_firmware(
    reader: Reader,
    storage: Storage,
    machine: Machine,
    mounts: Sequence[Mount],
    loaders: Sequence[BootLoader],
) -> Firmware | None:
    """None when there is no sign of either (a tree without its /boot)."""
    efi = _has_efi(reader, storage, mounts)
    bios = _has_bios(reader, storage, loaders)
    if efi and bios:
        return _of_both(reader, machine, mounts)
    if efi:
        return Firmware.UEFI
    return Firmware.BIOS if bios or storage.is_complete else None


def _has_efi(reader: Reader, storage: Storage, mounts: Sequence[Mount]) -> bool:
    """A system partition with programs in it; one that is not mounted can't be looked into."""
    esps = efi_directories(reader, mounts)
    has_programs = any(programs_of(reader, esp) for esp in esps)
    has_partition = any(volume.part_type.lower() in ESP_TYPES for volume in storage)
    if storage.is_complete:
        return has_partition and (has_programs or not esps)
    return has_programs


def _platforms(reader: Reader) -> set[str]:
    """GRUB's: i386-pc, x86_64-efi."""
    return {path.rpartition("/")[2] for path in reader.glob("/boot/grub*/*-*")}


def _has_bios(reader: Reader, storage: Storage, loaders: Sequence[BootLoader]) -> bool:
    if any(volume.part_type.lower() == _BIOS_BOOT for volume in storage):
        return True
    legacy = reader.files("/boot/grub/stage2", "/boot/grub/stage1")
    return (
        bool(legacy)
        or "i386-pc" in _platforms(reader)
        or any(loader.kind in _ONLY_BIOS for loader in loaders)
    )


def _of_both(reader: Reader, machine: Machine, mounts: Sequence[Mount]) -> Firmware:
    mounted = any(
        fstab.point_of(mount) in _ESP_POINTS and mount.kind in ("vfat", "msdos") for mount in mounts
    )
    if mounted and machine.is_uefi:
        return Firmware.UEFI
    platforms = _platforms(reader)
    if "i386-pc" in platforms and not any(name.endswith("-efi") for name in platforms):
        return Firmware.BIOS
    chosen = Firmware.UEFI if machine.is_uefi else Firmware.BIOS
    reader.note(
        "the guest could be started by BIOS and by UEFI; taken is what started this system: "
        f"{chosen.value.upper()}"
    )
    return chosen
