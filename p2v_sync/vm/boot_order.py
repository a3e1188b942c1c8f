"""In which order the virtual machine's firmware tries the disks (F31)."""

from collections.abc import Sequence

from p2v_sync.device.storage import Storage, Volume
from p2v_sync.fixup.guest import Firmware, Guest

_ESP_TYPES = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef")
_ESP_POINTS = ("/boot/efi", "/efi", "/boot")


def boot_order(
    disks: Sequence[str], bios: Sequence[str], guest: Guest, storage: Storage
) -> list[str]:
    """``disks``, the one that the guest starts from first; the rest as given.

    By UEFI that is the disk whose EFI system partition the guest mounts, else any that has one; by
    BIOS ``bios`` says it, the disks whose number is known (``device.edd``).
    """
    if guest.firmware is Firmware.UEFI:
        ranks = {name: _esp_rank(name, guest, storage) for name in disks}
    else:
        ranks = {name: at for at, name in enumerate(bios)}
    return sorted(disks, key=lambda name: ranks.get(name, len(disks)))


def _esp_rank(disk: str, guest: Guest, storage: Storage) -> int:
    mine = [volume for volume in storage if volume.disk == disk and _is_esp(volume)]
    points = {mount.device: mount.point for mount in guest.mounts if mount.device}
    if any(points.get(volume.device) in _ESP_POINTS for volume in mine):
        return 0
    return 1 if mine else 2


def _is_esp(volume: Volume) -> bool:
    return volume.part_type.lower() in _ESP_TYPES
