"""Real block devices: sector sizes, flags, counters, mounts, and sectors that really fail."""

import hashlib
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from p2v_sync.device.identity import difference, read_identity
from p2v_sync.device.mounts import users_of
from p2v_sync.device.readonly import read_only
from p2v_sync.device.source import DiskSource
from p2v_sync.device.sysfs import read_head, scan
from p2v_sync.device.table import parse_table
from p2v_sync.errors import DeviceBusy, DeviceChanged, DeviceError, SourceReadError
from p2v_sync.extent import Extent
from p2v_sync.units import KIB, MIB
from tests.integration.loop import Attach, tool

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs /dev/loop-control"),
]

SIZE = 16 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def partitioned(image: Path, attach: Attach, cleanup: ExitStack) -> Path:
    """A loop device with a GPT and two partitions the kernel knows of."""
    tool(
        "sfdisk",
        image,
        stdin="label: gpt\nlabel-id: 5F3C1E0A-9D8B-4C7A-A1B2-C3D4E5F60718\n,6M\n,6M\n",
    )
    loop = attach(image, "--partscan")
    # Kernels built without partition tables are told by hand.
    if not part_of(loop, 1).exists():
        tool("partx", "--add", loop)
        cleanup.callback(tool, "partx", "--delete", loop)
    return loop


def part_of(loop: Path, number: int) -> Path:
    return Path(f"{loop}p{number}")


@contextmanager
def mounted(device: Path, point: Path) -> Iterator[Path]:
    tool("mkfs.ext4", "-q", "-F", device)
    point.mkdir()
    tool("mount", device, point)
    try:
        yield point
    finally:
        tool("umount", point)


def read(source: DiskSource, start: int, length: int) -> tuple[bytes, Sequence[Extent]]:
    with mmap.mmap(-1, length) as buffer, memoryview(buffer) as view:
        view[:] = b"\xa5" * length
        bad = source.read_into(view, start)
        return bytes(view), bad


def written_sectors(device: Path) -> list[str]:
    stat = Path("/sys/class/block", device.name, "stat").read_text().split()
    return [stat[at] for at in (4, 6, 11, 13)]  # writes, sectors of them, discards, sectors


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_p1_reading_a_disk_leaves_it_as_it_is(
    image: Path, attach: Attach, sector_size: int
) -> None:
    loop = attach(image, "--sector-size", str(sector_size))
    content = image.read_bytes()
    before = (hashlib.sha256(content).digest(), written_sectors(loop))
    with read_only(loop) as changed, DiskSource(loop) as source:
        assert changed == [loop]
        assert (source.size, source.sector_size, source.is_block) == (SIZE, sector_size, True)
        assert read(source, 0, SIZE) == (content, [])
        assert read(source, SIZE - 777, 777) == (content[-777:], [])
        assert [source.next_data(at) for at in (0, MIB, SIZE, 99 * MIB)] == [0, MIB, SIZE, SIZE]
        source.forget(0, SIZE)
        read_identity(source)
    assert (hashlib.sha256(image.read_bytes()).digest(), written_sectors(loop)) == before


def write_sector(device: Path) -> None:
    fd = os.open(device, os.O_WRONLY | os.O_SYNC)
    try:
        os.pwrite(fd, b"x" * 4096, 0)
    finally:
        os.close(fd)


def is_flagged(device: Path) -> bool:
    return tool("blockdev", "--getro", device).strip() == "1"


def test_p1_disk_and_partitions_are_read_only_and_writable_again(partitioned: Path) -> None:
    devices = [partitioned, part_of(partitioned, 1), part_of(partitioned, 2)]
    assert not any(map(is_flagged, devices))
    with read_only(partitioned) as changed:
        assert all(map(is_flagged, devices))
        assert changed[0] == partitioned
        assert set(changed) <= set(devices)
        for device in devices:
            with pytest.raises(OSError, match=r"not permitted|Read-only|denied"):
                write_sector(device)
    assert not any(map(is_flagged, devices))


def test_p1_partitions_that_do_not_follow_their_disk_are_set_too(
    partitioned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before Linux 5.11 a partition stayed writable when its disk was set read-only.
    monkeypatch.setattr("p2v_sync.device.ioctl.is_read_only", lambda _fd: False)
    devices = [partitioned, part_of(partitioned, 1), part_of(partitioned, 2)]
    with read_only(partitioned) as changed:
        assert changed == devices
    assert not any(map(is_flagged, devices))


def test_p1_what_was_read_only_stays_so(partitioned: Path) -> None:
    part = part_of(partitioned, 1)
    tool("blockdev", "--setro", part)
    with read_only(partitioned) as changed:
        assert part not in changed
    assert is_flagged(part)
    assert not is_flagged(partitioned)


def test_p1_the_flag_is_cleared_after_an_error(image: Path, attach: Attach) -> None:
    loop = attach(image)
    with pytest.raises(KeyError), read_only(loop):
        raise KeyError("anything")
    assert not is_flagged(loop)


def test_read_only_without_the_right_to(
    image: Path, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = attach(image)

    def refuse(_fd: int, _flag: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("p2v_sync.device.ioctl.mark_read_only", refuse)
    with pytest.raises(DeviceError, match=r"read-only: Permission denied \(run as root\)"):
        read_only(loop).__enter__()


def test_p11_a_mounted_disk_is_busy(partitioned: Path, tmp_path: Path) -> None:
    with mounted(part_of(partitioned, 2), tmp_path / "mnt"):
        with pytest.raises(DeviceBusy, match=r"in use by .*/mnt \(unmount it"):
            read_only(partitioned).__enter__()
        assert not is_flagged(partitioned)


def test_mounted_partition_is_found_from_its_disk_and_its_image(
    partitioned: Path, image: Path, tmp_path: Path
) -> None:
    assert users_of(partitioned) == users_of(image) == []
    with mounted(part_of(partitioned, 2), tmp_path / "my disk") as point:
        assert users_of(partitioned) == users_of(image) == [str(point)]
        assert users_of(part_of(partitioned, 2)) == [str(point)]
        assert users_of(part_of(partitioned, 1)) == []
        (disk,) = (disk for disk in scan() if disk.path == str(partitioned))
        assert (disk.mounted, disk.excluded) == ((str(point),), "loop device")
    assert users_of(partitioned) == []


def test_loop_over_a_disk_is_its_user(image: Path, attach: Attach, tmp_path: Path) -> None:
    lower = attach(image)
    upper = attach(lower)
    with mounted(upper, tmp_path / "mnt") as point:
        assert users_of(lower) == users_of(image) == [str(point)]


def test_swap_is_a_user(image: Path, attach: Attach) -> None:
    loop = attach(image)
    tool("mkswap", loop)
    tool("swapon", loop)
    try:
        assert users_of(loop) == [f"swap on {loop}"]
    finally:
        tool("swapoff", loop)


def test_who_is_in_no_table_is_found_by_his_claim(image: Path, attach: Attach) -> None:
    loop = attach(image)
    fd = os.open(loop, os.O_RDONLY | os.O_EXCL)
    try:
        assert users_of(loop) == [
            "something that opened it exclusively (another mount namespace, ZFS)"
        ]
    finally:
        os.close(fd)
    assert users_of(loop) == []


def test_users_of_what_is_no_disk(tmp_path: Path) -> None:
    assert users_of(tmp_path / "none") == users_of(tmp_path) == users_of(Path("/dev/null")) == []


def test_the_disk_this_system_runs_from_is_in_use() -> None:
    root = os.stat("/").st_dev
    if not Path(f"/sys/dev/block/{os.major(root)}:{os.minor(root)}").exists():
        pytest.skip("needs a root file system on a block device")
    assert any("/" in disk.mounted for disk in scan())


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_p10_identity_of_a_real_disk(image: Path, attach: Attach, sector_size: int) -> None:
    loop = attach(image, "--sector-size", str(sector_size))
    tool("sfdisk", loop, stdin="label: gpt\nlabel-id: 5F3C1E0A-9D8B-4C7A-A1B2-C3D4E5F60718\n,6M\n")
    with DiskSource(loop) as source:
        old = read_identity(source)
    assert (old.kind, old.size, old.sector_size) == ("block", SIZE, sector_size)
    assert old.table_id == "5f3c1e0a-9d8b-4c7a-a1b2-c3d4e5f60718"
    with DiskSource(image) as source:
        assert read_identity(source).table_id == old.table_id
    tool("sfdisk", loop, stdin="label: dos\nlabel-id: 0x1234abcd\n,6M\n")
    with DiskSource(loop) as source:
        new = read_identity(source)
    reason = difference(old, new)
    assert reason == f"its partition table or file system id was {old.table_id}, is 1234abcd"


def test_tables_as_sfdisk_writes_them(image: Path) -> None:
    tool("sfdisk", image, stdin="label: dos\nlabel-id: 0x1234abcd\n,6M\n")
    table = parse_table(image.read_bytes()[:8192], 512)
    assert (table and table.kind, table and table.id) == ("dos", "1234abcd")


def test_p1_the_table_of_a_real_disk_is_read_without_writing(partitioned: Path) -> None:
    before = written_sectors(partitioned)
    table = parse_table(read_head(str(partitioned)), 512)
    assert (table and table.kind) == "gpt"
    assert written_sectors(partitioned) == before
    assert read_head(f"{partitioned}p99") == b""


def test_a_file_system_without_a_table_is_no_table(image: Path) -> None:
    tool("mkfs.ext4", "-q", "-F", image)
    assert parse_table(image.read_bytes()[:8192], 512) is None


def test_stamp_of_a_disk(image: Path, attach: Attach) -> None:
    loop = attach(image)
    with DiskSource(loop) as source:
        stamp = source.stamp()
        read(source, 0, MIB)
        assert source.changed_since(stamp) is None
        write_sector(loop)
        assert source.changed_since(stamp) == "it was written to"


def test_a_disk_that_changes_its_size_is_noticed(image: Path, attach: Attach) -> None:
    loop = attach(image)
    with DiskSource(loop) as source:
        stamp = source.stamp()
        os.truncate(image, 2 * SIZE)
        tool("losetup", "--set-capacity", loop)
        with pytest.raises(DeviceChanged, match="grew"):
            source.check_size()
        assert source.changed_since(stamp) == f"its size was {SIZE}, is {2 * SIZE}"
        os.truncate(image, SIZE // 2)
        tool("losetup", "--set-capacity", loop)
        with pytest.raises(DeviceChanged, match="shrank"):
            source.check_size()
        with pytest.raises(DeviceChanged, match=f"ends at {SIZE // 2}"):
            read(source, SIZE // 2 - MIB, 2 * MIB)


def test_p12_a_disk_without_a_size_any_more_is_gone(image: Path, attach: Attach) -> None:
    loop = attach(image)
    with DiskSource(loop) as source:
        os.truncate(image, 0)
        tool("losetup", "--set-capacity", loop)
        with pytest.raises(SourceReadError, match="is gone"):
            read(source, 0, MIB)
        with pytest.raises(SourceReadError, match="is gone"):
            source.check_size()


def test_a_loop_device_without_a_file_is_no_disk(image: Path, attach: Attach) -> None:
    loop = attach(image)
    tool("losetup", "--detach", loop)
    try:
        with pytest.raises(DeviceError, match=r"nothing to copy|no disk behind it"):
            DiskSource(loop)
    finally:
        tool("losetup", loop, image)  # for the fixture to take away


BAD = (Extent(MIB + 512, 512), Extent(3 * MIB, 1536), Extent(SIZE - 512, 512))


def mapfile(bad: Sequence[Extent]) -> str:
    """A ddrescue map of a disk with bad ranges, as nbdkit's filter wants it."""
    lines, position = ["0x0 + 1"], 0
    for extent in bad:
        lines += [f"{position:#x} {extent.start - position:#x} +"] * (extent.start > position)
        lines += [f"{extent.start:#x} {extent.length:#x} -"]
        position = extent.end
    return (
        "\n".join([*lines, *[f"{position:#x} {SIZE - position:#x} +"] * (position < SIZE)]) + "\n"
    )


@pytest.fixture
def failing_file(image: Path, tmp_path: Path, cleanup: ExitStack) -> Path:
    """The image through nbdkit and FUSE, where reads of BAD really fail with EIO."""
    for program in ("nbdkit", "nbdfuse"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")
    if not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse")
    point, bad_map = tmp_path / "failing.img", tmp_path / "map"
    point.touch()
    bad_map.write_text(mapfile(BAD))
    server = ["nbdkit", "--exit-with-parent", "-f", "--filter=ddrescue", "file", str(image)]
    argv = ["nbdfuse", "-r", str(point), "[", *server, f"ddrescue-mapfile={bad_map}", "]"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    cleanup.callback(process.wait, 20)
    cleanup.callback(tool, "umount", point)
    deadline = time.monotonic() + 20
    while point.stat().st_size != SIZE:
        assert process.poll() is None, "nbdfuse ended"
        assert time.monotonic() < deadline, "nbdfuse shows no file"
        time.sleep(0.02)
    return point


def zeroed(content: bytes, bad: Sequence[Extent]) -> bytes:
    wanted = bytearray(content)
    for extent in bad:
        wanted[extent.start : extent.end] = bytes(extent.length)
    return bytes(wanted)


def test_p12_a_failing_disk_is_narrowed_to_its_sectors(
    failing_file: Path, image: Path, attach: Attach
) -> None:
    # Direct I/O on the loop device as well, or the page cache below it widens each place to 4 KiB.
    loop = attach(failing_file, "--read-only", "--direct-io=on")
    with DiskSource(loop) as source:
        data, bad = read(source, 0, SIZE)
    assert tuple(bad) == BAD
    assert data == zeroed(image.read_bytes(), BAD)


def test_p12_a_failing_4k_disk_is_narrowed_to_4k(
    failing_file: Path, image: Path, attach: Attach
) -> None:
    loop = attach(failing_file, "--read-only", "--direct-io=on", "--sector-size", "4096")
    with DiskSource(loop) as source:
        data, bad = read(source, 0, SIZE)
    wide = [Extent(extent.start // 4096 * 4096, 4096) for extent in BAD]
    assert list(bad) == wide
    assert data == zeroed(image.read_bytes(), wide)


@pytest.mark.parametrize(
    ("start", "lost"), [(MIB + 100, Extent(MIB + 512, 512)), (MIB + 700, Extent(MIB + 700, 324))]
)
def test_p12_a_failing_disk_read_from_an_odd_place(
    failing_file: Path, image: Path, attach: Attach, start: int, lost: Extent
) -> None:
    loop = attach(failing_file, "--read-only", "--direct-io=on")
    length = 64 * KIB + 3
    with DiskSource(loop) as source:
        data, bad = read(source, start, length)
    assert bad == [lost]
    assert data == zeroed(image.read_bytes(), BAD)[start : start + length]


def test_p12_a_failing_file_is_narrowed(failing_file: Path, image: Path) -> None:
    with DiskSource(failing_file) as source:
        data, bad = read(source, 0, SIZE)
        assert data == zeroed(image.read_bytes(), bad)
    lost = {at for extent in bad for at in range(extent.start, extent.end)}
    assert lost >= {at for extent in BAD for at in range(extent.start, extent.end)}
    # At worst a page for each place, where FUSE has no direct I/O.
    assert sum(extent.length for extent in bad) <= 4096 * len(BAD)


def test_p12_fail_stops_and_names_the_first_place(failing_file: Path, attach: Attach) -> None:
    loop = attach(failing_file, "--read-only", "--direct-io=on")
    with DiskSource(loop, on_read_error="fail") as source:
        assert read(source, 0, MIB)[1] == []
        with pytest.raises(SourceReadError, match=rf"512 bytes at {MIB + 512} can't be read"):
            read(source, MIB, MIB)
        identity = read_identity(source)
    assert (len(identity.first_mib), identity.last_mib) == (32, "")
