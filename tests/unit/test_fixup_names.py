"""Which volume a name stands for; and that nothing is guessed."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from p2v_sync.device.storage import NOTHING_KNOWN, Storage, Volume
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.evidence import known_storage
from p2v_sync.fixup.guest import BootLoader, Guest, LoaderKind
from p2v_sync.fixup.names import (
    candidates,
    depends_on_bus,
    is_perhaps_there,
    lasting_spec,
    resolve,
)
from p2v_sync.fixup.tree import Tree

ROOT = Volume(
    "/dev/mapper/p2v-sda1",
    "sda",
    1,
    "ext4",
    uuid="0A1b-ff",
    label="My Root",
    part_uuid="5F3C-01",
    part_label="root part",
    aliases=("disk/by-id/ata-DISK_1-part1", "disk/by-path/pci-0000:00:1f.2-ata-1-part1"),
)
LOGICAL = Volume("", "sda", 0, "xfs", "0c", aliases=("mapper/my--vg-root", "dm-0"))
RAID = Volume("", "sdb", 0, "ext4", "0d", aliases=("md0", "md/host:0"))
OTHER = Volume("", "nvme0n1", 2, "swap", "0e", label="swap")
CCISS = Volume("", "cciss/c0d0", 1, "ext3", "0f", aliases=("cciss/c0d0p1",))
STORAGE = Storage((ROOT, LOGICAL, RAID, OTHER, CCISS), ("sda", "nvme0n1"))


@pytest.mark.parametrize(
    ("spec", "volume"),
    [
        ("/dev/sda1", ROOT),
        ("/dev//sda1", ROOT),
        ("UUID=0a1B-FF", ROOT),
        ('UUID="0a1b-ff"', ROOT),
        ("LABEL=My Root", ROOT),
        ("label='My Root'", ROOT),
        ("PARTUUID=5f3c-01", ROOT),
        ("PARTLABEL=root part", ROOT),
        ("/dev/disk/by-uuid/0a1b-ff", ROOT),
        ("/dev/disk/by-label/My\\x20Root", ROOT),
        ("/dev/disk/by-partuuid/5f3c-01", ROOT),
        ("/dev/disk/by-id/ata-DISK_1-part1", ROOT),
        ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1-part1", ROOT),
        ("/dev/mapper/my--vg-root", LOGICAL),
        ("/dev/my-vg/root", LOGICAL),
        ("/dev/md0", RAID),
        ("/dev/nvme0n1p2", OTHER),
        ("/dev/cciss/c0d0p1", CCISS),
        ("/dev/sda", None),  # the logical volume is on it, but is not the disk
        ("/dev/sda2", None),
        ("LABEL=my root", None),
        ("LABEL=", None),
        ("UUID", None),
        ("sda1", None),
        ("/dev/../etc/passwd", None),
        ("", None),
    ],
)
def test_names(spec: str, volume: Volume | None) -> None:
    assert resolve(spec, STORAGE) is volume


def test_an_ide_disk_is_now_a_scsi_disk_where_there_is_but_one() -> None:
    one = Storage((ROOT,), ("sda",))
    assert resolve("/dev/hda1", one) is ROOT
    assert resolve("/dev/hda1", Storage((ROOT,), ("sda",), is_complete=False)) is None
    assert resolve("/dev/hdb1", one) is None
    assert resolve("/dev/hda2", one) is None
    assert resolve("/dev/hda1", STORAGE) is None


def test_cloned_disks_are_not_told_apart() -> None:
    clone = Volume("", "sdb", 1, "ext4", ROOT.uuid, ROOT.label, part_uuid="b-01")
    storage = Storage((ROOT, clone), ("sda", "sdb"))
    assert resolve("UUID=0a1b-ff", storage) is None
    assert candidates("UUID=0a1b-ff", storage) == [ROOT, clone]
    assert is_perhaps_there("UUID=0a1b-ff", storage)
    assert lasting_spec(ROOT, storage) == "PARTUUID=5F3C-01"


def test_the_best_name_that_lasts() -> None:
    assert lasting_spec(ROOT, STORAGE) == "UUID=0A1b-ff"
    for volume, spec in (
        (Volume("", "sdc", 1, label="data"), "LABEL=data"),
        (Volume("", "sdc", 1, label="my data", part_uuid="7-1"), "PARTUUID=7-1"),
        (Volume("", "sdc", 1, label="my data"), None),
    ):
        assert lasting_spec(volume, Storage((*STORAGE, volume))) == spec


@pytest.mark.parametrize(
    "spec",
    ["/dev/sda1", "/dev/sdaa12", "/dev/hdc", "/dev/vda", "/dev/xvda1", "/dev/cciss/c0d0p1",
     "/dev/nvme0n1p1", "/dev/mmcblk0p2", "/dev/disk/by-id/wwn-0x5-part1",
     "/dev/disk/by-path/pci-0", "/dev/mapper/mpatha1", "/dev/mapper/isw_abc_Volume01"],
)  # fmt: skip
def test_names_that_a_bus_gives(spec: str) -> None:
    assert depends_on_bus(spec)


@pytest.mark.parametrize(
    "spec",
    ["UUID=1", "LABEL=/dev/sda1", "/dev/md0", "/dev/vg/sda1", "/dev/mapper/vg-root", "/dev/sr0",
     "/dev/disk/by-uuid/1", "/dev/shm", "/dev/fd0", "sda1", "nfs:/dev/sda1", "/dev/sd"],
)  # fmt: skip
def test_names_that_last(spec: str) -> None:
    assert not depends_on_bus(spec)


def test_nothing_is_absent_that_may_be_in_a_locked_volume() -> None:
    locked = Storage((ROOT, Volume("", "sda", 2, "crypto_LUKS", "0b")), ("sda",))
    assert is_perhaps_there("/dev/mapper/vg-home", locked)
    assert is_perhaps_there("UUID=77", locked)
    assert not is_perhaps_there("/dev/sdc1", locked)
    assert not is_perhaps_there("UUID=77", STORAGE)
    assert is_perhaps_there("/dev/sdc1", NOTHING_KNOWN)


# The guest's own evidence


def known(root: Path, files: Mapping[str, str], *loaders: BootLoader) -> dict[str, str]:
    """Name → UUID."""
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with Tree(root) as tree:
        storage = known_storage(Draft(tree), Guest(boot_loaders=loaders), NOTHING_KNOWN)
    assert not storage.is_complete
    return {volume.kernel_name or volume.aliases[0]: volume.uuid for volume in storage}


GRUB = BootLoader(LoaderKind.GRUB2, "/boot/grub/grub.cfg")
LEGACY = BootLoader(LoaderKind.GRUB_LEGACY, "/boot/grub/menu.lst")


def test_the_installers_comments(tmp_path: Path) -> None:
    text = (
        "# / was on /dev/sda1 during installation\nUUID=aaaa / ext4 defaults 0 1\n"
        "# swap was on /dev/nvme0n1p5 during installation\nUUID=bbbb none swap sw 0 0\n"
        "# /home was on /dev/sda7 during installation\n/dev/sda7 /home ext4 defaults 0 2\n"
        "# /srv was on /dev/sda8 during installation\nUUID=cccc /other ext4 defaults 0 2\n"
    )
    assert known(tmp_path, {"/etc/fstab": text}) == {"sda1": "aaaa", "nvme0n1p5": "bbbb"}


def test_blkids_cache(tmp_path: Path) -> None:
    text = (
        '<device DEVNO="0x6802" TIME="1" LABEL="/" UUID="aaaa" TYPE="ext3">/dev/cciss/c0d0p2'
        '</device>\n<device TYPE="swap">/dev/sda2</device>\n<device UUID="x'
    )
    assert known(tmp_path, {"/etc/blkid/blkid.tab": text}) == {"cciss/c0d0p2": "aaaa"}


def test_the_root_by_name_here_and_by_uuid_there(tmp_path: Path) -> None:
    files = {
        "/etc/fstab": "/dev/sda2 / ext4 defaults 0 1\n",
        GRUB.config: "linux /boot/vmlinuz root=UUID=aaaa ro\n",
    }
    assert known(tmp_path, files, GRUB) == {"sda2": "aaaa"}


@pytest.mark.parametrize(
    ("loader", "search"),
    [
        (GRUB, "search --no-floppy --fs-uuid --set=root {}"),
        (GRUB, "search --no-floppy --fs-uuid --set {}"),
        (GRUB, "  search --fs-uuid --set=root --hint-bios=hd0,msdos1 --hint='hd0,msdos1'  {}"),
        (LEGACY, "uuid\t\t{}"),
    ],
)
def test_what_grub_searches(tmp_path: Path, loader: BootLoader, search: str) -> None:
    uuid = "8c2da865-13f4-47a2-9c92-2f31738469e8"
    files = {
        "/etc/fstab": "/dev/sda2 / ext4 defaults 0 1\n",
        loader.config: search.format(uuid) + "\n",
    }
    assert known(tmp_path, files, loader) == {"sda2": uuid}
    files["/etc/fstab"] += "/dev/sda1 /boot ext4 defaults 0 1\n"
    assert known(tmp_path, files, loader) == {"sda1": uuid}
    files[loader.config] += search.format("0" * 36) + "\n"
    assert not known(tmp_path, files, loader), "another system's, perhaps"


def test_what_is_told_differently_is_not_believed(tmp_path: Path) -> None:
    files = {
        "/etc/fstab": "# / was on /dev/sda1 during installation\nUUID=aaaa / ext4 defaults 0 1\n",
        "/etc/blkid.tab": '<device UUID="bbbb">/dev/sda1</device>',
    }
    assert not known(tmp_path, files)


def test_with_several_roots_in_the_menu_none_is_believed(tmp_path: Path) -> None:
    files = {
        "/etc/fstab": "UUID=aaaa / ext4 defaults 0 1\n",
        GRUB.config: "linux /a root=/dev/sda1\nlinux /b root=/dev/sda2\n",
    }
    assert not known(tmp_path, files, GRUB)
