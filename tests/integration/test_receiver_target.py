"""The image on real devices and real file systems that are full or read-only (P2, P6, P9, P10)."""

import contextlib
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2v_receiver import codec, target
from p2v_receiver.target import Image, TargetError
from p2v_receiver.wire import ErrorCode
from tests.contract.bench import BLOCK, SEGMENT, SIZE, Bench, cut
from tests.integration.loop import Attach, tool

DEVICE_SIZE = 4 * SEGMENT


@pytest.fixture
def device(attach: Attach, tmp_path: Path) -> Path:
    """A loop device that is larger than the disk, full of somebody's data."""
    backing = tmp_path / "backing"
    backing.write_bytes(b"old data" * (DEVICE_SIZE // 8))
    return attach(backing)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def on_device(bench: Bench, device: Path) -> Bench:
    """Its image is a link to the device."""
    bench.image.parent.mkdir()
    bench.image.symlink_to(device)
    return bench


def mounted(cleanup: ExitStack, directory: Path, options: str) -> Path:
    directory.mkdir()
    tool("mount", "-t", "tmpfs", "-o", options, "tmpfs", directory)
    cleanup.callback(tool, "umount", directory)
    return directory


def fill_up(root: Path) -> None:
    """Take what is left of a file system; ``ballast`` can be removed again."""
    fd = os.open(root / "ballast", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, bytes(4096))
    os.close(fd)


# Block devices.


def test_p6_zeros_on_a_device_are_read_back(on_device: Bench, device: Path) -> None:
    with on_device.work(finish=True) as worker:
        assert worker.reasons == ["the manifest was missing"]
        assert not worker.target.created, "what a device holds is anything but zeros"
        worker.begin()
        worker.zero(0, 256)
        worker.zero(256, 10)
    content = device.read_bytes()
    assert content[: 266 * BLOCK] == bytes(266 * BLOCK)
    assert content[266 * BLOCK :] == (b"old data" * (DEVICE_SIZE // 8))[266 * BLOCK :]


@pytest.mark.parametrize("lies", [False, True])
def test_p6_a_device_that_can_not_zero_or_says_it_did(
    on_device: Bench, device: Path, monkeypatch: pytest.MonkeyPatch, lies: bool
) -> None:
    def fail(*_: object) -> None:
        if not lies:
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr(target, "_fallocate", fail)
    with on_device.work(finish=True) as worker:
        worker.begin()
        worker.zero(0, 300)
    assert device.read_bytes()[: 300 * BLOCK] == bytes(300 * BLOCK)


def test_a_pass_onto_a_device(on_device: Bench, device: Path) -> None:
    on_device.fill("A")
    with on_device.work(finish=True) as worker:
        assert worker.reasons == [], "the same boot, and nobody wrote to it"
        expected = worker.content("A", 0, on_device.layout.blocks)
        entries = worker.fetch()
    assert device.read_bytes()[:SIZE] == expected
    assert device.read_bytes()[SIZE:] == (b"old data" * (DEVICE_SIZE // 8))[SIZE:]
    assert len(entries) == on_device.layout.segments


def test_p5_somebody_else_wrote_to_the_device(on_device: Bench, device: Path) -> None:
    on_device.fill("A")
    with device.open("r+b") as file:
        file.seek(SEGMENT)
        file.write(b"!" * BLOCK)
        file.flush()
        os.fsync(file.fileno())
    with on_device.work() as worker:
        assert worker.reasons == ["the image was changed since the last checkpoint"]
        assert cut(worker.fetch()[1])[0] != worker.digest(worker.content("A", 256))


def test_p10_a_device_in_use_is_refused_and_not_kept(
    on_device: Bench, device: Path, tmp_path: Path, cleanup: ExitStack
) -> None:
    tool("mkfs.ext4", "-q", device)
    point = tmp_path / "point"
    point.mkdir()
    tool("mount", device, point)
    cleanup.callback(subprocess.run, ["umount", str(point)], check=False)
    with pytest.raises(TargetError, match="is in use on the host") as caught, on_device.work():
        pass
    assert caught.value.code is ErrorCode.REFUSED
    tool("umount", point)
    with on_device.work():
        pass


def test_p10_a_refused_open_lets_the_device_go(on_device: Bench, device: Path) -> None:
    place = {"boot_id": target.boot_id(), "rdev": device.stat().st_rdev}
    with (
        pytest.raises(TargetError, match="source itself") as caught,
        on_device.work(source_file=place),
    ):
        pass
    assert caught.value.code is ErrorCode.SAME_FILE
    os.close(os.open(device, os.O_RDWR | os.O_EXCL))


def test_p10_a_device_that_is_too_small(device: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, DEVICE_SIZE + 1)
    bench.image.parent.mkdir()
    bench.image.symlink_to(device)
    with pytest.raises(TargetError, match="bytes, the disk") as caught, bench.work():
        pass
    assert caught.value.code is ErrorCode.FULL
    os.close(os.open(device, os.O_RDWR | os.O_EXCL))


def test_p10_a_device_that_is_read_only(bench: Bench, device: Path) -> None:
    bench.image.parent.mkdir()
    bench.image.symlink_to(device)
    tool("blockdev", "--setro", device)
    with bench.work() as worker:
        worker.begin()
        with pytest.raises(TargetError, match="writing") as caught:
            worker.write("A", 0)
        worker.session.finish()
    tool("blockdev", "--setrw", device)
    assert caught.value.code is ErrorCode.READ_ONLY


def test_entries_of_a_device_and_of_a_file_are_the_same(device: Path, tmp_path: Path) -> None:
    digest = codec.digest_function("blake2b", 1)
    buffer = target.aligned_buffer(1 << 20)
    found = []
    for path in (device, tmp_path / "backing"):
        image = Image.open(str(path))
        found.append(image.entries(0, DEVICE_SIZE - 5, BLOCK, digest, buffer))
        image.close()
    assert found[0] == found[1]


# Full and read-only.


def test_p2_p9_a_full_target_says_so_and_loses_nothing(tmp_path: Path, cleanup: ExitStack) -> None:
    root = mounted(cleanup, tmp_path / "small", "size=1500k")
    small = Bench(root)
    with small.work() as worker:
        worker.begin()
        worker.write("A", 0, 200)
        worker.session.checkpoint(quiet=True)
        with pytest.raises(TargetError, match="writing") as caught:
            worker.write("A", 200, 300)
        assert caught.value.code is ErrorCode.FULL
        worker.session.finish()
    small.certain()
    tool("mount", "-o", "remount,size=10m", root)
    with small.work(finish=True) as worker:
        entries = cut(worker.fetch()[0])
        assert entries[0] == worker.digest(worker.content("A", 0))
    small.fill("A")
    assert small.certain() == {0, 1, 2}


def test_a_target_that_is_full_from_the_start(tmp_path: Path, cleanup: ExitStack) -> None:
    root = mounted(cleanup, tmp_path / "full", "size=64k")
    (root / "ballast").write_bytes(bytes(64 * 1024))
    with pytest.raises(TargetError) as caught, Bench(root).work():
        pass
    assert caught.value.code is ErrorCode.FULL
    assert caught.value.hint


def test_a_read_only_target(tmp_path: Path, cleanup: ExitStack) -> None:
    root = mounted(cleanup, tmp_path / "ro", "size=10m")
    for _ in range(2):
        tool("mount", "-o", "remount,ro", root)
        with pytest.raises(TargetError) as caught, Bench(root).work():
            pass
        assert caught.value.code is ErrorCode.READ_ONLY
        tool("mount", "-o", "remount,rw", root)
        Bench(root).fill("A")


def test_p2_a_manifest_on_a_full_disk(tmp_path: Path, cleanup: ExitStack) -> None:
    """The image has room, but what is in it can't be recorded."""
    root = mounted(cleanup, tmp_path / "small", "size=6m")
    bench = Bench(root)
    bench.fill("A")
    with bench.work() as worker:
        worker.begin()
        fill_up(root)
        with pytest.raises(TargetError, match="manifest") as caught:
            worker.write("B", 0)
        assert caught.value.code is ErrorCode.FULL
        worker.session.finish()
    assert bench.image.read_bytes()[:3] == b"<('", "nothing was written without its intent"
    (root / "ballast").unlink()
    assert bench.certain() == {0, 1, 2}
