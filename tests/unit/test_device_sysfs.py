"""Sniffing /sys/block, on trees built as the kernel builds them."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2v_sync.cli.disks import disks
from p2v_sync.device.describe import names_of_device
from p2v_sync.device.sysfs import Disk, scan
from p2v_sync.errors import DeviceError

PCI = "pci0000:00/0000:00:1f.2"
ATA = f"{PCI}/ata1/host0/target0:0:0/0:0:0:0/block"
VIRTUAL = "virtual/block"
GIB_SECTORS = 2 * 1024 * 1024


class Machine:
    """Builds /sys and /proc of a machine below a directory."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc = root / "sys", root / "proc"
        self._minor = 0
        (self.sys / "block").mkdir(parents=True)
        (self.sys / "dev" / "block").mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self" / "mountinfo").write_text("22 27 0:21 / /proc rw - proc proc rw\n")
        (self.proc / "swaps").write_text("Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")

    def set(self, directory: Path, **attributes: str | bytes) -> Path:
        """Write attributes; '__' in a keyword is a directory."""
        for key, value in attributes.items():
            path = directory / key.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value if isinstance(value, bytes) else value.encode() + b"\n")
        return directory

    def _register(self, directory: Path) -> Path:
        self._minor += 1
        directory.mkdir(parents=True)
        self.set(directory, dev=f"8:{self._minor}", ro="0", size=str(GIB_SECTORS))
        (self.sys / "dev" / "block" / f"8:{self._minor}").symlink_to(directory)
        return directory

    def disk(self, name: str, where: str = VIRTUAL, **attributes: str | bytes) -> Path:
        directory = self._register(self.sys / "devices" / where / name)
        (self.sys / "block" / name).symlink_to(directory)
        sectors = {"queue__logical_block_size": "512", "queue__physical_block_size": "512"}
        return self.set(directory, **{"removable": "0", **sectors, **attributes})

    def part(self, disk: str, name: str) -> Path:
        directory = self._register((self.sys / "block" / disk).resolve() / name)
        return self.set(directory, partition=name[-1], start="2048")

    def directory(self, name: str) -> Path:
        whole = self.sys / "block" / name
        return whole if whole.exists() else next(self.sys.glob(f"block/*/{name}"))

    def dev(self, name: str) -> str:
        return (self.directory(name) / "dev").read_text().strip()

    def stack(self, upper: str, *lowers: str) -> None:
        """Both sides of "upper is built of lowers", as the kernel links them."""
        for lower in lowers:
            for owner, kind, other in ((upper, "slaves", lower), (lower, "holders", upper)):
                link = self.directory(owner) / kind / other
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(self.directory(other).resolve())

    def mount(self, dev: str, point: str, source: str) -> None:
        with (self.proc / "self" / "mountinfo").open("a") as file:
            file.write(f"40 27 {dev} / {point} rw,relatime shared:1 - ext4 {source} rw\n")

    def swap(self, path: str) -> None:
        with (self.proc / "swaps").open("a") as file:
            file.write(f"{path}                               partition\t1000\t0\t-2\n")

    def scan(self) -> dict[str, Disk]:
        return {disk.name: disk for disk in scan(self.sys, self.proc)}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def vpd(code: int, payload: bytes) -> bytes:
    return struct.pack("!BBH", 0, code, len(payload)) + payload


def test_ata_disk_is_described(machine: Machine) -> None:
    machine.disk(
        "sda",
        ATA,
        size="7814037168",
        device__vendor="ATA     ",
        device__model="WDC WD40EFRX-68W",
        device__wwid="naa.50014ee2b5c1d2e3",
        device__vpd_pg80=vpd(0x80, b"     WD-WCC4E1234567"),
        queue__physical_block_size="4096",
        ro="1",
    )
    assert scan(machine.sys, machine.proc) == [
        Disk(
            name="sda",
            path="/dev/sda",
            size=4000787030016,
            model="WDC WD40EFRX-68W",
            serial="WD-WCC4E1234567",
            wwn="naa.50014ee2b5c1d2e3",
            bus="ata",
            logical_sector_size=512,
            physical_sector_size=4096,
            read_only=True,
            removable=False,
            partition_table="",
            mounted=(),
            holders=(),
            excluded=None,
        )
    ]


@pytest.mark.parametrize(
    ("name", "where", "bus", "path"),
    [
        ("sda", ATA, "ata", "/dev/sda"),
        ("sdaa", f"{PCI}/host6/port-6:0/end_device-6:0/target6:0:0/6:0:0:0/block", "sas", None),
        ("sdb", f"{PCI}/usb2/2-1/2-1:1.0/host7/target7:0:0/7:0:0:0/block", "usb", None),
        ("sdc", f"{PCI}/host1/rport-1:0-2/target1:0:0/1:0:0:0/block", "fc", None),
        ("sdd", "platform/host9/session1/target9:0:0/9:0:0:0/block", "iscsi", None),
        ("sde", f"{PCI}/host2/target2:2:0/2:2:0:0/block", "scsi", None),
        ("sdf", f"{PCI}/virtio2/host3/target3:0:0/3:0:0:0/block", "virtio", None),
        ("hda", f"{PCI}/ide0/0.0/block", "ide", "/dev/hda"),
        ("vda", f"{PCI}/virtio1/block", "virtio", "/dev/vda"),
        ("xvda", "vbd-51712/block", "xen", "/dev/xvda"),
        ("nvme0n1", f"{PCI}/nvme/nvme0", "nvme", "/dev/nvme0n1"),
        ("nvme1n2", "virtual/nvme-subsystem/nvme-subsys1", "nvme", "/dev/nvme1n2"),
        ("mmcblk0", f"{PCI}/mmc_host/mmc0/mmc0:0001/block", "mmc", "/dev/mmcblk0"),
        ("cciss!c0d0", f"{PCI}/cciss0/c0d0/block", "cciss", "/dev/cciss/c0d0"),
        ("md126", VIRTUAL, "md", "/dev/md126"),
        ("md_d0", VIRTUAL, "md", "/dev/md_d0"),
        # Copies of a tree often lose where the disk hangs.
        ("sdz", VIRTUAL, "scsi", "/dev/sdz"),
        ("nvme9n1", VIRTUAL, "nvme", "/dev/nvme9n1"),
        ("pmem0", VIRTUAL, "", "/dev/pmem0"),
    ],
)
def test_every_family_is_a_candidate(
    machine: Machine, name: str, where: str, bus: str, path: str | None
) -> None:
    machine.disk(name, where)
    disk = machine.scan()[name]
    assert (disk.excluded, disk.bus, disk.path) == (None, bus, path or f"/dev/{name}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("loop0", "loop device"),
        ("ram0", "RAM disk"),
        ("zram1", "compressed RAM disk"),
        ("sr0", "CD or DVD drive"),
        ("scd0", "CD or DVD drive"),
        ("fd0", "floppy drive"),
        ("nbd3", "network block device"),
        ("rbd0", "network block device"),
        ("drbd1", "DRBD device: its backing disk is copied"),
        ("bcache0", "bcache device: its backing disk is copied"),
        ("zd16", "ZFS volume: its pool's disks are copied"),
        ("mtdblock2", "flash memory"),
        ("mmcblk0boot0", "boot area of a memory card"),
        ("mmcblk0rpmb", "replay-protected area of a memory card"),
        ("mmcblk0gp1", "general-purpose area of a memory card"),
        ("nvme0c1n1", "path to nvme0n1"),
        ("dm-9", "device-mapper device"),
        ("blorp7", "not a kind of disk p2v-sync knows"),
    ],
)
def test_what_is_no_disk_is_left_out_with_a_reason(
    machine: Machine, name: str, reason: str
) -> None:
    machine.disk(name)
    assert machine.scan()[name].excluded == reason


def test_empty_drives_are_left_out(machine: Machine) -> None:
    machine.disk("sdb", size="0", removable="1")
    machine.disk("hdc", device__media="cdrom")
    machine.disk("md127", size="0")
    found = machine.scan()
    assert found["sdb"].excluded == "no medium, or size zero"
    assert found["sdb"].removable
    assert found["hdc"].excluded == "CD, tape or floppy drive"
    assert found["md127"].excluded == "array is not running"


def test_multipath_is_one_disk_with_the_name_of_its_legs(machine: Machine) -> None:
    for leg in ("sda", "sdb"):
        machine.disk(leg, ATA.replace("ata1", leg), device__wwid="naa.600508b4000156d7")
    machine.disk("dm-0", dm__uuid="mpath-3600508b4000156d7", dm__name="mpatha")
    machine.disk("dm-1", dm__uuid="part1-mpath-3600508b4000156d7", dm__name="mpatha1")
    machine.stack("dm-0", "sda", "sdb")
    machine.stack("dm-1", "dm-0")
    found = machine.scan()
    assert found["dm-0"].excluded is None
    assert (found["dm-0"].path, found["dm-0"].bus) == ("/dev/mapper/mpatha", "dm")
    assert found["dm-0"].wwn == found["sda"].wwn == "naa.600508b4000156d7"
    assert found["sda"].excluded == found["sdb"].excluded == "path to mpatha"
    assert found["dm-1"].excluded == "partition on dm-0"


def test_bios_raid_by_dmraid_is_one_disk(machine: Machine) -> None:
    machine.disk("sda")
    machine.disk("dm-0", dm__uuid="DMRAID-isw_abc_Volume0", dm__name="isw_abc_Volume0")
    machine.stack("dm-0", "sda")
    found = machine.scan()
    assert found["dm-0"].excluded is None
    assert found["sda"].excluded == "part of isw_abc_Volume0"


def test_volumes_are_left_out_and_their_disk_is_not(machine: Machine) -> None:
    machine.disk("sda", ATA)
    machine.part("sda", "sda1")
    machine.part("sda", "sda2")
    machine.disk("dm-0", dm__uuid="LVM-abc", dm__name="vg-root")
    machine.disk("dm-1", dm__uuid="CRYPT-LUKS2-abc-home", dm__name="home")
    machine.disk("dm-2", dm__name="old-snap")
    machine.stack("dm-0", "sda2")
    machine.stack("dm-1", "dm-0")
    machine.stack("dm-2", "sda1")
    machine.mount(machine.dev("dm-1"), "/home", "/dev/mapper/home")
    found = machine.scan()
    assert found["sda"].excluded is None
    assert found["sda"].mounted == ("/home",)
    assert found["sda"].holders == ("old-snap", "vg-root", "home")
    assert found["dm-0"].excluded == "logical volume on sda"
    assert found["dm-1"].excluded == "encrypted volume on dm-0"
    assert found["dm-2"].excluded == "device-mapper device on sda"


def test_md_of_whole_disks_is_the_disk(machine: Machine) -> None:
    machine.disk("sda", ATA)
    machine.disk("sdb", ATA)
    machine.disk("md126", md__level="raid1", md__uuid="1f2e3d4c:00000000:11111111:22222222")
    machine.disk("md127", size="0")  # the IMSM container that holds the array
    machine.stack("md126", "sda", "sdb")
    machine.stack("md127", "sda", "sdb")
    found = machine.scan()
    assert found["md126"].excluded is None
    assert (found["md126"].model, found["md126"].serial[:8]) == ("raid1", "1f2e3d4c")
    assert found["sda"].excluded == found["sdb"].excluded == "part of md126"


def test_md_that_takes_up_its_members_partitions_is_the_disk(machine: Machine) -> None:
    for disk in ("sda", "sdb"):
        machine.disk(disk, ATA)
        machine.part(disk, f"{disk}1")
    machine.disk("md0")
    machine.stack("md0", "sda1", "sdb1")
    found = machine.scan()
    assert found["md0"].excluded is None
    note = "part of md0 (its own partition table and boot loader are not in there)"
    assert found["sda"].excluded == found["sdb"].excluded == note


def test_md_on_some_partitions_leaves_the_disks(machine: Machine) -> None:
    for disk in ("sda", "sdb"):
        machine.disk(disk, ATA)
        machine.part(disk, f"{disk}1")
        machine.part(disk, f"{disk}2")
    machine.disk("md0")
    machine.disk("md1")
    machine.stack("md0", "sda1", "sdb1")
    machine.stack("md1", "sda2", "sdb2")
    found = machine.scan()
    assert found["sda"].excluded is found["sdb"].excluded is None
    reason = "array on partitions of sda, sdb, which are copied whole"
    assert found["md0"].excluded == found["md1"].excluded == reason


def test_md_on_volumes_is_left_out(machine: Machine) -> None:
    machine.disk("sda", ATA)
    machine.disk("dm-3", dm__uuid="LVM-abc", dm__name="vg-r1")
    machine.disk("md5")
    machine.stack("dm-3", "sda")
    machine.stack("md5", "dm-3")
    found = machine.scan()
    assert found["md5"].excluded == "array on dm-3, which is part of a disk that is copied whole"
    assert found["sda"].excluded is None


@pytest.mark.parametrize("point", ["/run/live/medium", "/lib/live/mount/medium"])
def test_live_medium_is_left_out(machine: Machine, point: str) -> None:
    machine.disk("sdb", ATA)
    machine.part("sdb", "sdb1")
    machine.mount(machine.dev("sdb1"), point, "/dev/sdb1")
    assert machine.scan()["sdb"].excluded == "medium this system was started from"


def test_mounts_swap_and_escapes(machine: Machine) -> None:
    machine.disk("sda", ATA)
    for number in "123":
        machine.part("sda", f"sda{number}")
    machine.mount(machine.dev("sda1"), "/", "/dev/root")
    machine.mount(machine.dev("sda1"), "/mnt/my\\040disk", "/dev/root")
    machine.mount("0:45", "/data", "/dev/sda2")  # btrfs mounts under an anonymous number
    machine.swap("/dev/sda3")
    users = ("/", "/mnt/my disk", "/data", "swap on /dev/sda3")
    assert machine.scan()["sda"].mounted == users


def test_every_member_of_a_btrfs_is_mounted(machine: Machine) -> None:
    machine.disk("sda", ATA)
    machine.disk("sdb", ATA)
    devices = machine.sys / "fs" / "btrfs" / "4ee1f3f4-1111" / "devices"
    devices.mkdir(parents=True)
    for name in ("sda", "sdb"):
        (devices / name).symlink_to(machine.directory(name).resolve())
    machine.mount("0:45", "/data", "/dev/sda")
    found = machine.scan()
    assert found["sda"].mounted == found["sdb"].mounted == ("/data",)


def test_loop_over_a_disk_counts_as_its_user(machine: Machine) -> None:
    machine.disk("sda", ATA)
    machine.part("sda", "sda1")
    machine.disk("loop4", loop__backing_file="/dev/sda1")
    machine.mount(machine.dev("loop4"), "/mnt", "/dev/loop4")
    assert machine.scan()["sda"].mounted == ("/mnt",)


def test_a_circle_of_holders_ends(machine: Machine) -> None:
    machine.disk("dm-0")
    machine.disk("dm-1")
    machine.stack("dm-0", "dm-1")
    machine.stack("dm-1", "dm-0")
    assert {disk.excluded for disk in machine.scan().values()} == {
        "device-mapper device on dm-0",
        "device-mapper device on dm-1",
    }


def test_disks_come_as_people_count(machine: Machine) -> None:
    for name in ("sdaa", "sdb", "sda", "md10", "md2"):
        machine.disk(name)
    assert list(machine.scan()) == ["md2", "md10", "sda", "sdb", "sdaa"]


def test_names_from_vpd_pages(machine: Machine) -> None:
    t10 = bytes([2, 1, 0, 8]) + b"ACME ABC"
    port = bytes([1, 0x93, 0, 8]) + bytes.fromhex("5000c50012345678")
    unit = bytes([1, 3, 0, 8]) + bytes.fromhex("5000c500a1b2c3d4")
    machine.disk("sda", device__vpd_pg83=vpd(0x83, t10 + port + unit))
    machine.disk("sdb", device__vpd_pg83=vpd(0x83, t10))
    machine.disk("sdc", device__vpd_pg83=vpd(0x83, bytes([1, 2, 0, 8, 0, 0x25, 1, 2, 3, 4, 5, 6])))
    machine.disk("sdd", device__vpd_pg83=vpd(0x83, bytes([3, 8, 0, 12]) + b"naa.5000c5\0\0"))
    found = machine.scan()
    assert found["sda"].wwn == "naa.5000c500a1b2c3d4"
    assert found["sdb"].wwn == "t10.ACME ABC"
    assert found["sdc"].wwn == "eui.0025010203040506"
    assert found["sdd"].wwn == "naa.5000c5"


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\0",
        b"\0\x83\xff\xff",
        vpd(0x80, b"x"),
        vpd(0x83, b"\1\3\0\xff123"),
        vpd(0x83, b"\1\3"),
        vpd(0x83, b"\1\3\0\0"),
        bytes(70_000),
    ],
)
def test_garbage_vpd_names_nothing(machine: Machine, page: bytes) -> None:
    machine.disk("sda", device__vpd_pg83=page)
    assert machine.scan()["sda"].wwn == ""


def test_virtio_nvme_mmc_and_hpsa_names(machine: Machine) -> None:
    machine.disk("vda", f"{PCI}/virtio1/block", serial="web01-root", device__vendor="0x1af4")
    machine.disk(
        "nvme0n1", wwid="eui.0025385b71b0a3c4", device__serial="S4EV ", device__model="970 EVO"
    )
    machine.disk("mmcblk0", device__name="SD32G", device__serial="0x1234abcd")
    machine.disk("cciss!c0d0", device__unique_id="600508B1001030364545304634303300")
    found = machine.scan()
    assert (found["vda"].serial, found["vda"].model) == ("web01-root", "")
    nvme = found["nvme0n1"]
    assert (nvme.wwn, nvme.serial, nvme.model) == ("eui.0025385b71b0a3c4", "S4EV", "970 EVO")
    assert (found["mmcblk0"].model, found["mmcblk0"].serial) == ("SD32G", "0x1234abcd")
    assert found["cciss!c0d0"].wwn == "600508B1001030364545304634303300"


def test_usb_bridge_lends_its_serial(machine: Machine) -> None:
    bridge = f"{PCI}/usb2/2-1"
    machine.disk("sdb", f"{bridge}/2-1:1.0/host7/target7:0:0/7:0:0:0/block")
    machine.set(machine.sys / "devices" / bridge, idVendor="0bda", serial="MSFT30A1")
    assert machine.scan()["sdb"].serial == "MSFT30A1"


@pytest.mark.parametrize("bogus", ["naa.0000000000000000", "eui.ffffffffffffffff", "0", "  "])
def test_bogus_names_are_unknown(machine: Machine, bogus: str) -> None:
    machine.disk("sda", device__wwid=bogus, device__serial=bogus)
    disk = machine.scan()["sda"]
    assert (disk.wwn, disk.serial) == ("", "")


def test_hostile_attributes_are_bounded_and_printable(machine: Machine) -> None:
    machine.disk(
        "sda",
        device__model=b"\x1b[2Jevil\x00\xff\xe2\x80\xae " + b"A" * 100_000,
        device__serial=b"\xff" * 9000 + b"1",
        size="9" * 400,
        queue__logical_block_size="-1",
        dev="\x07:\n",
    )
    disk = machine.scan()["sda"]
    assert disk.model.startswith("[2Jevil")
    assert disk.model.isprintable()
    assert len(disk.model) < 5000
    assert len(disk.serial) <= 256
    assert (disk.size, disk.logical_sector_size) == (0, 512)


def test_p10_partition_is_known_by_its_disk_and_number(machine: Machine) -> None:
    machine.disk("sda", device__wwid="naa.50014ee2b5c1d2e3", device__serial="WD-1")
    machine.part("sda", "sda2")
    assert names_of_device(machine.dev("sda2"), machine.sys) == (
        "naa.50014ee2b5c1d2e3-part2",
        "WD-1-part2",
    )
    assert names_of_device(machine.dev("sda"), machine.sys).serial == "WD-1"


def test_only_candidates_are_read_for_their_table(machine: Machine) -> None:
    machine.disk("sda", ATA)
    machine.disk("loop0")
    mbr = bytearray(8192)
    mbr[446 + 4], mbr[510:512] = 0x83, b"\x55\xaa"
    asked: list[str] = []

    def head(path: str) -> bytes:
        asked.append(path)
        return bytes(mbr)

    found = {disk.name: disk for disk in scan(machine.sys, machine.proc, head)}
    assert asked == ["/dev/sda"]
    assert (found["sda"].partition_table, found["loop0"].partition_table) == ("dos", "")


def test_p1_a_copied_tree_opens_no_device(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.disk("vda", f"{PCI}/virtio1/block")
    machine.mount("0:45", "/data", "/dev/vda")

    def refuse(path: object, *_args: object) -> int:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr("os.open", refuse)
    assert machine.scan()["vda"].mounted == ("/data",)


def test_without_sysfs_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="is sysfs mounted"):
        scan(tmp_path)


@pytest.fixture
def run_disks(machine: Machine) -> Callable[..., str]:
    def run(*options: str) -> str:
        result = CliRunner().invoke(disks, ["--sys-root", str(machine.sys), *options])
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_disks_table(machine: Machine, run_disks: Callable[..., str]) -> None:
    machine.disk("sda", ATA, device__model="QEMU HARDDISK", device__serial="QM0001")
    machine.disk("vda", f"{PCI}/virtio1/block", ro="1")
    machine.disk("sr0", ATA)
    machine.disk("dm-0", dm__uuid="LVM-x", dm__name="root")
    machine.stack("dm-0", "vda")
    machine.mount(machine.dev("sda"), "/srv", "/dev/sda")
    assert run_disks().splitlines() == [
        "name      size     model          serial/WWN  bus     sectors  ro   table  in use",
        "/dev/sda  1.0 GiB  QEMU HARDDISK  QM0001      ata     512/512  no   -      /srv",
        "/dev/vda  1.0 GiB  -              -           virtio  512/512  yes  -      (holds root)",
        "",
        "left out:",
        "  /dev/sr0          CD or DVD drive",
        "  /dev/mapper/root  logical volume on vda",
    ]


def test_disks_json(machine: Machine, run_disks: Callable[..., str]) -> None:
    machine.disk("nvme0n1", f"{PCI}/nvme/nvme0", wwid="eui.0025385b71b0a3c4")
    machine.disk("ram0")
    ram, nvme = (json.loads(line) for line in run_disks("--json").splitlines())
    assert nvme == {
        "name": "nvme0n1",
        "path": "/dev/nvme0n1",
        "size": 1024**3,
        "model": None,
        "serial": None,
        "wwn": "eui.0025385b71b0a3c4",
        "bus": "nvme",
        "logical_sector_size": 512,
        "physical_sector_size": 512,
        "read_only": False,
        "removable": False,
        "partition_table": None,
        "mounted": [],
        "holders": [],
        "excluded": None,
    }
    assert ram["excluded"] == "RAM disk"


def test_disks_on_a_machine_without_any(machine: Machine, run_disks: Callable[..., str]) -> None:
    assert run_disks() == "No disk found that could be copied.\n"
    assert run_disks("--json") == ""
    machine.disk("ram0")
    assert "left out:\n  /dev/ram0  RAM disk\n" in run_disks()


def test_gpt_of_a_4kn_disk_is_seen(machine: Machine) -> None:
    machine.disk("sda", ATA, queue__logical_block_size="4096")
    header = struct.pack("<8sIII", b"EFI PART", 0x10000, 92, 0) + bytes(92 - 20)
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    mbr = bytes(450) + b"\xee" + bytes(59) + b"\x55\xaa"
    disk = scan(machine.sys, machine.proc, lambda _: mbr + bytes(4096 - 512) + header)[0]
    assert (disk.partition_table, disk.logical_sector_size) == ("gpt", 4096)
