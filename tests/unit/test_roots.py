"""Which system is meant, and mounting it: with directories in the place of volumes."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from p2v_sync.device.storage import Storage, Volume
from p2v_sync.errors import FixupError
from p2v_sync.fixup.mounting import mount_guest
from p2v_sync.fixup.roots import Root, find_roots
from tests.guests.build import write

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
XBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"


class Directories:
    """A Mounter that copies: (device, options) → the files of a volume."""

    def __init__(self, files: Mapping[tuple[str, str], Path]) -> None:
        self._files = files
        self._mounted: list[Path] = []
        self.log: list[tuple[str, str, bool, str]] = []

    def mount(self, volume: Volume, point: Path, *, writable: bool, options: str = "") -> None:
        if (volume.device, options) not in self._files:
            raise FixupError(f"{volume.device} is damaged")
        assert not point.is_symlink()
        shutil.copytree(
            self._files[volume.device, options], point, symlinks=True, dirs_exist_ok=True
        )
        self._mounted.append(point)
        self.log.append((volume.device, str(point), writable, options))

    def unmount_all(self) -> None:
        for point in reversed(self._mounted):
            for each in point.iterdir():
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        self._mounted = []


class Lab:
    """Volumes whose files are written as in tests/guests."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[tuple[str, str], Path] = {}
        self.volumes: list[Volume] = []
        self.point = directory / "point"
        self.point.mkdir()

    def add(self, volume: Volume, text: str, options: str = "") -> Volume:
        if volume not in self.volumes:
            self.volumes.append(volume)
        where = self._directory / f"volume{len(self._files)}"
        self._files[volume.device, options] = write(text, where).root
        return volume

    def used(self, volume: Volume, time_s: int) -> None:
        path = self._files[volume.device, ""] / "var" / "log" / "wtmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time_s, time_s))

    @property
    def storage(self) -> Storage:
        return Storage(tuple(self.volumes), ("sda", "sdb"))

    @property
    def mounter(self) -> Directories:
        return Directories(self._files)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def system(name: str, fstab: str = "", more: str = "") -> str:
    return (
        f"=== /etc/os-release\nID=debian\nPRETTY_NAME={name}\n=== /etc/fstab\n{fstab}\n"
        f"=== /usr/bin/sh elf x86_64\n=== /bin -> usr/bin\n=== /etc/machine-id empty\n{more}"
    )


def grub(root: str) -> str:
    return f"=== /boot/grub/grub.cfg\nmenuentry 'x' {{\n linux /vmlinuz root={root} ro\n}}\n"


def part(disk: str, number: int, kind: str = "ext4", part_type: str = "") -> Volume:
    device = f"/dev/mapper/p2v-{disk}-part{number}"
    return Volume(device, disk, number, kind, f"{disk}{number}", part_type=part_type)


def test_the_one_system_is_found_among_other_volumes(lab: Lab) -> None:
    lab.add(part("sda", 1, "vfat", ESP), "=== /EFI/debian/grubx64.efi pe x86_64\n")
    lab.add(part("sda", 2), "=== /data/\n=== /etc/motd empty\n")
    root = lab.add(part("sda", 3), system("Here"))
    lab.add(part("sda", 4, "swap"), "")
    found = find_roots(lab.storage, lab.mounter, lab.point)
    assert found.chosen is not None
    assert (found.chosen.volume, found.chosen.name) == (root, "Here")
    assert (found.others, found.problems) == ((), ())
    assert list(lab.point.iterdir()) == []


def test_nothing_is_mounted_writable_and_nothing_stays(lab: Lab) -> None:
    lab.add(part("sda", 1), system("One"))
    lab.add(part("sda", 2, "btrfs"), system("Two"))
    mounter = lab.mounter
    find_roots(lab.storage, mounter, lab.point)
    assert mounter.log
    assert not any(writable for _, _, writable, _ in mounter.log)


def test_of_several_the_booted_one_is_chosen(lab: Lab) -> None:
    first = lab.add(part("sda", 1), system("Old"))
    second = lab.add(part("sda", 2), system("Booted"))
    lab.add(part("sda", 3), grub("UUID=sda2").replace("/boot/", "/"))
    lab.used(first, 2_000_000_000)
    found = find_roots(lab.storage, lab.mounter, lab.point)
    assert found.chosen is not None
    assert found.chosen.volume == second
    assert [root.volume for root in found.others] == [first]


def test_the_first_disk_boots_before_the_second(lab: Lab) -> None:
    lab.add(part("sdb", 1), system("Second", more=grub("UUID=sdb1")))
    first = lab.add(part("sda", 1), system("First", more=grub("UUID=sda1")))
    found = find_roots(lab.storage, lab.mounter, lab.point)
    assert found.chosen is not None
    assert found.chosen.volume == first


def test_without_a_boot_loader_the_last_used_is_chosen(lab: Lab) -> None:
    first = lab.add(part("sda", 1), system("Long ago"))
    second = lab.add(part("sda", 2), system("Lately"))
    lab.used(first, 1_000_000_000)
    lab.used(second, 1_500_000_000)
    found = find_roots(lab.storage, lab.mounter, lab.point)
    assert found.chosen is not None
    assert found.chosen.volume == second


def test_a_volume_that_can_not_be_mounted_is_a_problem(lab: Lab) -> None:
    lab.volumes.append(part("sda", 7))
    found = find_roots(lab.storage, lab.mounter, lab.point)
    assert found.chosen is None
    assert found.problems == ("sda7 was not looked into: /dev/mapper/p2v-sda-part7 is damaged",)


def test_windows_is_a_root(lab: Lab) -> None:
    lab.add(part("sda", 1, "ntfs"), "=== /WINDOWS/System32/config/SOFTWARE hive\n")
    found = find_roots(lab.storage, lab.mounter, lab.point)
    assert found.chosen is not None
    assert found.chosen.is_windows


# btrfs


def below(directory: str, text: str) -> str:
    return text.replace("=== /", f"=== /{directory}/")


def test_a_subvolume_that_calls_itself_root_is_the_root(lab: Lab) -> None:
    volume = part("sda", 1, "btrfs")
    own = system("Ubuntu", "UUID=sda1 / btrfs defaults,subvol=/@ 0 0")
    top = below("@", own) + below("0_before_upgrade", own) + "=== /@home/me/\n"
    lab.add(volume, top)
    lab.add(volume, top, "subvolid=5")
    found = find_roots(lab.storage, lab.mounter, lab.point)
    assert found.chosen is not None
    assert found.chosen.options == "subvol=@"
    assert found.others == ()


def test_the_default_subvolume_is_the_root_where_none_calls_itself_so(lab: Lab) -> None:
    volume = part("sda", 1, "btrfs")
    lab.add(volume, system("openSUSE", "UUID=sda1 / btrfs defaults 0 0"))
    lab.add(volume, "=== /@/var/\n=== /@/.snapshots/1/snapshot/etc/fstab\n", "subvolid=5")
    found = find_roots(lab.storage, lab.mounter, lab.point)
    assert found.chosen is not None
    assert (found.chosen.options, found.chosen.name) == ("", "openSUSE")


def test_no_name_of_a_subvolume_becomes_a_mount_option_or_leads_out(
    lab: Lab, tmp_path: Path
) -> None:
    volume = part("sda", 1, "btrfs")
    outside = tmp_path / "outside"
    write(system("Outside", "UUID=sda1 / btrfs subvol=@ 0 0"), outside)
    own = system("X", "UUID=sda1 / btrfs subvol=@,suid,dev 0 0")
    lab.add(volume, "=== /x/\n")
    lab.add(
        volume, f"=== /@ -> {outside}\n=== {outside}/\n{below('@,suid,dev', own)}", "subvolid=5"
    )
    assert find_roots(lab.storage, lab.mounter, lab.point).chosen is None


# Mounting


def test_a_guest_is_mounted_as_its_fstab_says(lab: Lab) -> None:
    fstab = (
        "UUID=sda3 /boot/efi vfat umask=0077 0 2\nUUID=sda2 /boot ext4 noauto 0 2\n"
        "UUID=sda1 / xfs defaults,usrquota 0 1\nUUID=sda4 /home ext4 defaults 0 2\n"
    )
    root = lab.add(part("sda", 1, "xfs"), system("A", fstab, "=== /boot/\n=== /home/\n"))
    lab.add(root, system("A", fstab, "=== /boot/\n=== /home/\n"), "usrquota")
    lab.add(part("sda", 2), "=== /efi/\n=== /vmlinuz empty\n")
    lab.add(part("sda", 3, "vfat", ESP), "=== /EFI/x/y.efi pe x86_64\n")
    lab.add(part("sda", 4), "")
    mounter = lab.mounter
    found = Root(root, quota="usrquota")
    assert mount_guest(found, lab.storage, mounter, lab.point, writable=True) == ()
    mounted = [
        (device[-1], where.removeprefix(str(lab.point))) for device, where, *_ in mounter.log
    ]
    assert mounted == [("1", ""), ("2", "/boot"), ("3", "/boot/efi")]
    assert mounter.log[0][3] == "usrquota"
    assert all(writable for _, _, writable, _ in mounter.log)
    assert (lab.point / "boot" / "efi" / "EFI" / "x" / "y.efi").exists()


def test_what_fstab_does_not_name_is_known_by_its_type(lab: Lab) -> None:
    root = lab.add(part("sda", 1), system("A", more="=== /efi/\n=== /boot/\n"))
    lab.add(part("sda", 2, "vfat", ESP), "")
    lab.add(part("sda", 3, "ext4", XBOOTLDR), "")
    lab.add(part("sdb", 1, "vfat", ESP), "")
    mounter = lab.mounter
    mount_guest(Root(root), lab.storage, mounter, lab.point, writable=False)
    mounted = [
        (device[-9:], where.removeprefix(str(lab.point))) for device, where, *_ in mounter.log
    ]
    assert mounted[1:] == [("sda-part3", "/boot"), ("sda-part2", "/efi")]


def test_what_was_opened_is_called_as_the_crypttab_says(lab: Lab) -> None:
    fstab = "/dev/mapper/sda5_crypt / ext4 x 0 1\n/dev/mapper/logs /var ext4 defaults 0 2\n"
    crypttab = "# x\nsda5_crypt /dev/sda5 none luks\nlogs UUID=sda6 none luks\nsda7 UUID=no x\n"
    more = f"=== /var/\n=== /etc/crypttab\n{crypttab}"
    for number in (5, 6):
        lab.volumes.append(part("sda", number, "crypto_LUKS"))
    opened = [
        Volume(f"/dev/mapper/p2v-luks-{each}", "", 0, "ext4", aliases=(f"mapper/luks-{each}",))
        for each in ("sda5", "sda6")
    ]
    root = lab.add(opened[0], system("A", fstab, more))
    lab.add(opened[1], "=== /log/\n")
    mounter = lab.mounter
    assert mount_guest(Root(root), lab.storage, mounter, lab.point, writable=True) == ()
    assert [device for device, *_ in mounter.log] == [each.device for each in opened]


def test_a_link_in_the_guest_moves_no_mount_out_of_it(lab: Lab, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    fstab = "UUID=sda2 /boot ext4 defaults 0 2"
    text = system("A", fstab, f"=== /boot -> {outside}\n=== {outside}/\n")
    root = lab.add(part("sda", 1), text)
    lab.add(part("sda", 2), "=== /vmlinuz empty\n")
    mounter = lab.mounter
    mount_guest(Root(root), lab.storage, mounter, lab.point, writable=True)
    assert [where for _, where, *_ in mounter.log][1:] == [f"{lab.point}{outside}"]
    assert list(outside.iterdir()) == []


def test_what_is_not_there_is_said(lab: Lab) -> None:
    fstab = (
        "UUID=none /usr ext4 defaults 0 0\nUUID=sda2 /var ext4 defaults 0 0\n"
        "UUID=sda3 /boot ext4 defaults 0 0\nUUID=sda2 / ext4 defaults 0 0\n"
    )
    root = lab.add(part("sda", 1), system("A", fstab, "=== /boot/\n"))
    lab.add(part("sda", 2), "")
    lab.volumes.append(part("sda", 3))
    problems = mount_guest(Root(root), lab.storage, lab.mounter, lab.point, writable=False)
    assert problems == (
        "fstab of the system on sda1 says that its root is on sda2",
        "/usr (UUID=none) is on no disk here",
        "/var is no directory in the guest, so nothing was mounted there",
        "/boot was not mounted: /dev/mapper/p2v-sda-part3 is damaged",
    )


def test_windows_is_never_mounted_writable(lab: Lab) -> None:
    volume = lab.add(part("sda", 1, "ntfs"), "")
    mounter = lab.mounter
    mount_guest(Root(volume, is_windows=True), lab.storage, mounter, lab.point, writable=True)
    assert [writable for _, _, writable, _ in mounter.log] == [False]
