"""Real block devices and file systems, from the command line: as root on the machine itself."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from p2v_sync.units import KIB, MIB
from tests.integration.cli import Lab, assert_equal, change, counters_add_up, stop_when
from tests.integration.loop import Attach, tool

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices and mounts"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs /dev/loop-control"),
]


@contextmanager
def mounted(*argv: str | Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    tool("mount", *argv, at)
    try:
        yield at
    finally:
        tool("umount", "--lazy", at)


def is_read_only(device: Path) -> bool:
    return tool("blockdev", "--getro", device).strip() == "1"


def written_sectors(device: Path) -> list[str]:
    stat = Path("/sys/class/block", device.name, "stat").read_text().split()
    return [stat[at] for at in (4, 6, 11, 13)]  # writes, sectors of them, discards, sectors


# Sources.


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_p1_a_disk(lab: Lab, attach: Attach, sector_size: int) -> None:
    image = lab.image("behind.img", size=16 * MIB)
    content = image.read_bytes()
    loop = attach(image, "--sector-size", str(sector_size))
    before = written_sectors(loop)
    running = lab.start("sync", loop, lab.out, "--json", "--rate", "6M", "--compress", "none")
    stop_when(running, 0.2)
    assert is_read_only(loop)
    (finished,) = running.wait().named("pass_finished")
    assert counters_add_up(finished, 16 * MIB)
    assert not is_read_only(loop)
    # The job is the host's, the disk the kernel's.
    host = os.uname().nodename
    replica = lab.out / host / f"{loop.name}.img"
    assert_equal(loop, replica)
    (finished,) = lab.sync(loop).named("pass_finished")
    assert finished["counters"]["sent"] == 0
    lab.p2v("verify", host)
    assert written_sectors(loop) == before
    assert image.read_bytes() == content
    assert lab.status(host)["path"] == str(loop)


def test_p1_a_disk_is_writable_again_after_every_end(lab: Lab, attach: Attach) -> None:
    loop = attach(lab.noise("behind.img", size=16 * MIB))
    for stop in ("interrupt", "kill"):
        running = lab.start("sync", loop, lab.out, "--json", "--rate", "2M", "--job", "j")
        stop_when(running, 0.1)
        assert is_read_only(loop)
        if stop == "interrupt":
            running.signal(signal.SIGINT)
            running.wait(130)
            assert not is_read_only(loop)
        else:
            running.kill()
    # The next run knows that it was a run of ours that left the flag.
    lab.sync(loop, "--job", "j")
    assert not is_read_only(loop)
    assert_equal(loop, lab.out / "j" / f"{loop.name}.img")


def test_the_same_disk_under_other_names(lab: Lab, attach: Attach) -> None:
    loop = attach(lab.noise("behind.img", size=MIB))
    number = loop.stat().st_rdev
    by_number = Path(f"/dev/block/{os.major(number)}:{os.minor(number)}")
    link = lab.root / "link"
    link.symlink_to(loop)
    node = lab.root / "node"
    os.mknod(node, 0o600 | 0o060000, number)
    others = [link, node, *([by_number] if by_number.exists() else [])]
    for other in others:
        lab.fails(4, "sync", loop, other, lab.out, say="are the same disk")
    # By whatever name, it is the kernel's name that counts.
    lab.sync(link, "--job", "j")
    (finished,) = lab.sync(node, "--job", "j").named("pass_finished")
    assert (finished["number"], finished["counters"]["sent"]) == (2, 0)
    assert_equal(loop, lab.out / "j" / f"{loop.name}.img")


def test_p11_a_mounted_disk_needs_seed(lab: Lab, attach: Attach) -> None:
    image = lab.root / "behind.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    # Its end stays free: from there a disk without serial number or partitions is known again.
    tool("mkfs.ext4", "-q", "-F", "-b", "4096", image, "3500")
    loop = attach(image)
    job = ("--job", "live")
    with mounted(loop, at=lab.root / "mnt") as point:
        (point / "file").write_bytes(os.urandom(2 * MIB))
        os.sync()
        done = lab.fails(12, "sync", loop, lab.out, *job, say="in use by .*mnt.*\n.*--seed")
        assert "--seed" in done.err
        assert not is_read_only(loop)
        running = lab.start("sync", loop, lab.out, *job, "--seed", "--json", "--rate", "2M")
        running.until_it_says("progress")
        for number in range(5):
            (point / f"meanwhile{number}").write_bytes(os.urandom(200 * KIB))
            os.sync()
        done = running.wait()
        assert done.named("pass_finished")[0]["kind"] == "seed"
        disk = lab.status("live")
        assert not disk["cutover_allowed"]
        assert "seed" in disk["cutover_refusal"]
        text = lab.p2v("status", "live").out
        assert "cutover          no: pass 1 is a seed" in text
        assert not is_read_only(loop)
    (finished,) = lab.sync(loop, *job).named("pass_finished")
    assert finished["kind"] == "incremental"
    assert lab.status("live")["cutover_allowed"]
    assert_equal(loop, lab.out / "live" / f"{loop.name}.img")


BAD = ((MIB + 512, 512), (3 * MIB, 1536), (16 * MIB - 512, 512))


@pytest.fixture
def failing(lab: Lab, attach: Attach, cleanup: ExitStack) -> tuple[Path, Path, Path]:
    """(disk that fails at BAD, its image, the map of bad places that nbdkit reads)."""
    for program in ("nbdkit", "nbdfuse"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")
    if not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse")
    image = lab.noise("behind.img", size=16 * MIB)
    lines, position = ["0x0 + 1"], 0
    for start, length in BAD:
        lines += [f"{position:#x} {start - position:#x} +", f"{start:#x} {length:#x} -"]
        position = start + length
    lines += [f"{position:#x} {image.stat().st_size - position:#x} +"] * (position < 16 * MIB)
    bad = lab.root / "bad.map"
    bad.write_text("\n".join(lines) + "\n")
    return serve(lab, image, attach, cleanup, f"ddrescue-mapfile={bad}"), image, bad


def serve(lab: Lab, image: Path, attach: Attach, cleanup: ExitStack, *options: str) -> Path:
    """The image through nbdkit and FUSE, as a disk whose reads really fail with EIO."""
    point = lab.root / "failing.img"
    point.touch()
    filters = ["--filter=ddrescue"] if options else []
    server = ["nbdkit", "--exit-with-parent", "-f", *filters, "file", str(image), *options]
    process = subprocess.Popen(
        ["nbdfuse", "-r", str(point), "[", *server, "]"], stderr=subprocess.DEVNULL
    )
    cleanup.callback(process.wait, 20)
    cleanup.callback(tool, "umount", point)
    deadline = time.monotonic() + 20
    while point.stat().st_size != image.stat().st_size:
        assert process.poll() is None, "nbdfuse ended"
        assert time.monotonic() < deadline, "nbdfuse shows no file"
        time.sleep(0.02)
    return attach(point, "--read-only", "--direct-io=on")


def test_p12_unreadable_sectors(lab: Lab, failing: tuple[Path, Path, Path]) -> None:
    loop, image, _ = failing
    job = ("--job", "old")
    done = lab.p2v("sync", loop, lab.out, *job, code=13)
    total = sum(length for _, length in BAD)
    assert len(done.complaints) == 1, done.err
    assert f"failed: {total} bytes could not be read and are zeros in the replica" in done.err
    for start, length in BAD:
        assert f"{start}+{length}" in done.err
        assert f"can't be read: {length} bytes at {start}" in done.err
    assert "run the same command again to retry just those" in done.err
    wanted = bytearray(image.read_bytes())
    for start, length in BAD:
        wanted[start : start + length] = bytes(length)
    replica = lab.out / "old" / f"{loop.name}.img"
    assert replica.read_bytes() == bytes(wanted)
    disk = lab.status("old")
    assert disk["unreadable"] == total
    assert "could not be read" in lab.p2v("status", "old").out
    # A map that ddrescue's own tools can read.
    lines = replica.with_suffix(".map").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")][1:]
    found = [(int(row[0], 0), int(row[1], 0)) for row in rows if row[2] == "-"]
    assert found == list(BAD)
    # Only those are tried again, and they still fail.
    done = lab.p2v("sync", loop, lab.out, *job, "--json", code=13)
    assert any("only what could not be read" in each["text"] for each in done.named("notice"))
    assert [each["start"] for each in done.named("unreadable_found")] == [at for at, _ in BAD]
    assert replica.read_bytes() == bytes(wanted)
    lab.fails(13, "sync", loop, lab.out, *job, "--on-read-error", "fail", say="512 bytes at")


def test_p12_sectors_that_can_be_read_after_all(lab: Lab, failing: tuple[Path, Path, Path]) -> None:
    loop, image, _ = failing
    lab.p2v("sync", loop, lab.out, "--job", "old", code=13)
    tool("losetup", "--detach", loop)
    tool("losetup", "--read-only", loop, image)
    lab.sync(loop, "--job", "old", "--verify", "full")
    replica = lab.out / "old" / f"{loop.name}.img"
    assert_equal(image, replica)
    rows = replica.with_suffix(".map").read_text().splitlines()
    assert [row.split()[2] for row in rows if row.startswith("0x")][1:] == ["+"]
    assert lab.status("old")["unreadable"] == 0


# Targets.


def test_a_full_target_goes_on_when_there_is_room(lab: Lab) -> None:
    image = lab.noise(size=12 * MIB)
    with mounted("-t", "tmpfs", "-o", "size=6m", "none", at=lab.root / "small") as small:
        to = ("sync", image, small)
        done = lab.fails(41, *to, say="No space left|is full")
        assert len(done.err.splitlines()) == 3, done.err
        assert str(small) in done.err
        lab.fails(41, *to, say="No space left|is full")
        tool("mount", "-o", "remount,size=32m", small)
        (finished,) = lab.sync(image, target=small).named("pass_finished")
        assert finished["number"] == 1
        assert finished["counters"]["same"] > 2 * MIB
        assert_equal(image, small / "noise" / "noise.img")


def test_a_target_without_room_for_a_manifest(lab: Lab) -> None:
    image = lab.noise(size=MIB)
    with mounted("-t", "tmpfs", "-o", "size=64k", "none", at=lab.root / "tiny") as tiny:
        (tiny / "mine").write_bytes(bytes(60 * KIB))
        lab.fails(41, "sync", image, tiny, say="No space left|is full|full")
        assert (tiny / "mine").stat().st_size == 60 * KIB


def test_a_full_state_directory(lab: Lab) -> None:
    image = lab.noise(size=MIB)
    with mounted("-t", "tmpfs", "-o", "size=64k", "none", at=lab.root / "tiny") as tiny:
        (tiny / "mine").write_bytes(bytes(60 * KIB))
        lab.fails(60, "sync", image, lab.out, "--state", tiny, say="full|No space")


def test_a_read_only_target(lab: Lab) -> None:
    image = lab.noise(size=4 * MIB)
    with mounted("-t", "tmpfs", "none", at=lab.root / "mnt") as point:
        lab.sync(image, target=point)
        tool("mount", "-o", "remount,ro", point)
        lab.fails(45, "sync", image, point, say="read-only|Read-only")
        lab.fails(45, "sync", image, point, "--job", "new", say="read-only|Read-only")
        tool("mount", "-o", "remount,rw", point)
        lab.sync(image, target=point)


def test_a_disk_as_target(lab: Lab, attach: Attach) -> None:
    """A volume of the host, linked to where the image would be."""
    image = lab.image(size=8 * MIB)
    disk = lab.noise("volume.img", size=8 * MIB)
    loop = attach(disk)
    (lab.out / "web").mkdir()
    lab.replica("web").symlink_to(loop)
    lab.sync(image, "--verify", "full")
    assert_equal(image, loop)
    change(image, 5 * MIB, b"changed")
    (finished,) = lab.sync(image).named("pass_finished")
    assert finished["counters"]["sent"] == 4 * KIB
    assert_equal(image, loop)
    small = attach(lab.noise("small.img", size=4 * MIB))
    (lab.out / "other").mkdir()
    (lab.out / "other" / "web.img").symlink_to(small)
    lab.fails(41, "sync", image, lab.out, "--job", "other", say="make the device larger")
