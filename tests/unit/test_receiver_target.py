"""The image: what zero means on real files (P6), what is opened (P10), and what goes wrong."""

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2v_receiver import codec, target
from p2v_receiver.target import Image, TargetError, aligned_buffer, sample_blocks
from p2v_receiver.wire import SEGMENT_BLOCKS, UNKNOWN, ZERO, ErrorCode
from tests.contract.lab import ram_directory

BLOCK = 4096
MIB = 1 << 20
DIGEST = codec.digest_function("blake2b", 1)


@pytest.fixture
def path() -> Iterator[Path]:
    with ram_directory() as root:
        yield root / "disk.img"


@pytest.fixture
def image(path: Path) -> Iterator[Image]:
    """2 MiB and a bit of data."""
    made = Image.create(str(path), 2 * MIB + 100)
    made.write(memoryview(b"data" * (MIB // 2 + 25)), 0)
    yield made
    made.close()


def raising(number: int, left: int = 1 << 30) -> Callable[..., int]:
    """Fails with ``number``, ``left`` times."""
    failures = iter(range(left))

    def fail(*_: object) -> int:
        if next(failures, None) is None:
            return 0
        raise OSError(number, os.strerror(number))

    return fail


def entries_of(image: Image, start: int, end: int, buffer: int = MIB) -> list[bytes]:
    packed = image.entries(start, end, BLOCK, DIGEST, aligned_buffer(buffer))
    return [packed[at : at + 16] for at in range(0, len(packed), 16)]


# P6: zero is made zero.


def test_p6_a_hole_is_punched_and_frees_what_it_held(image: Image) -> None:
    occupied = os.fstat(image.fd).st_blocks
    image.make_zero(BLOCK, MIB)
    assert os.pread(image.fd, MIB, BLOCK) == bytes(MIB)
    assert os.pread(image.fd, 4, 0) == b"data"
    assert os.pread(image.fd, 4, BLOCK + MIB) == b"data"
    assert os.fstat(image.fd).st_blocks == occupied - MIB // 512
    assert os.fstat(image.fd).st_size == image.size


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize(("start", "length"), [(0, MIB), (5, MIB + 1), (2 * MIB, 100), (7, 1)])
def test_p6_where_nothing_can_be_punched_zeros_are_written(
    image: Image, monkeypatch: pytest.MonkeyPatch, number: int, start: int, length: int
) -> None:
    monkeypatch.setattr(target, "_fallocate", raising(number))
    before = os.pread(image.fd, image.size, 0)
    image.make_zero(start, length)
    after = os.pread(image.fd, image.size, 0)
    assert after == before[:start] + bytes(length) + before[start + length :]


def test_p6_the_ladder_goes_down_one_rung_at_a_time(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    real = target._fallocate

    def only_zero_range(fd: int, mode: int, start: int, length: int) -> None:
        modes.append(mode)
        if mode & target._FALLOC_FL_PUNCH_HOLE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        with os.fdopen(os.dup(fd), "r+b") as file:
            file.seek(start)
            file.write(bytes(length))

    monkeypatch.setattr(target, "_fallocate", only_zero_range)
    image.make_zero(0, MIB)
    image.make_zero(MIB, BLOCK)
    punch, zero_range = modes[:2]
    assert punch & zero_range & target._FALLOC_FL_KEEP_SIZE
    assert modes == [punch, zero_range, zero_range], "what failed once is not tried again"
    assert codec.is_zero(memoryview(os.pread(image.fd, MIB + BLOCK, 0)))
    monkeypatch.setattr(target, "_fallocate", real)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EPERM])
def test_p6_a_real_failure_is_no_reason_to_step_down(
    image: Image, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(target, "_fallocate", raising(number))
    with pytest.raises(TargetError, match="zeroing"):
        image.make_zero(0, BLOCK)
    assert len(image._ladder) == 3
    assert os.pread(image.fd, 4, 0) == b"data"


def test_p6_many_connections_step_down_at_once(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(8)

    def fail(*_: object) -> None:
        together.wait(10)
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(target, "_fallocate", fail)
    failures: list[BaseException] = []

    def zero(start: int) -> None:
        try:
            image.make_zero(start, BLOCK)
        except BaseException as error:  # noqa: BLE001 - for the assertion
            failures.append(error)

    threads = [threading.Thread(target=zero, args=(at * BLOCK,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert codec.is_zero(memoryview(os.pread(image.fd, 8 * BLOCK, 0)))


def test_p6_long_ranges_go_in_steps(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(target, "_fallocate", lambda *call: calls.append(call[2:]))
    image.make_zero(5, 2 * target._ZERO_STEP + 7)
    step = target._ZERO_STEP
    assert calls == [(5, step), (5 + step, step), (5 + 2 * step, 7)]


def test_p6_a_device_that_lies_gets_its_zeros_written(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thin pools take a discard and still return what was there."""
    image.is_device = True
    monkeypatch.setattr(target, "_fallocate", lambda *_: None)
    image.make_zero(0, MIB + 1)
    assert os.pread(image.fd, MIB + 2, 0) == bytes(MIB + 1) + b"a"
    assert len(image._ladder) == 1


# Reading.


def test_entries_of_data_and_holes(image: Image, path: Path) -> None:
    image.make_zero(256 * BLOCK, 128 * BLOCK)
    content = path.read_bytes()
    expected = [
        ZERO if not any(content[at : at + BLOCK]) else DIGEST(content[at : at + BLOCK])
        for at in range(0, len(content), BLOCK)
    ]
    for buffer in (BLOCK, 3 * BLOCK, MIB):
        assert entries_of(image, 0, image.size, buffer) == expected
    assert entries_of(image, 200 * BLOCK, 300 * BLOCK) == expected[200:300]
    assert entries_of(image, 260 * BLOCK, 270 * BLOCK) == [ZERO] * 10


def test_entries_of_scattered_data(path: Path) -> None:
    """Small extents in large blocks: every block is read once."""
    image = Image.create(str(path), MIB)
    chance = random.Random(3)
    for _ in range(40):
        image.write(memoryview(b"x" * 10), chance.randrange(MIB // 512 - 1) * 512)
    content = path.read_bytes()
    for block in (BLOCK, 8 * BLOCK):
        packed = image.entries(0, MIB, block, DIGEST, aligned_buffer(MIB))
        pieces = [memoryview(content)[at : at + block] for at in range(0, MIB, block)]
        assert packed == b"".join(ZERO if codec.is_zero(p) else DIGEST(p) for p in pieces)
    image.close()


def test_the_end_of_an_extent_is_never_looked_for(image: Image, seeks: list[int]) -> None:
    """SEEK_HOLE takes as long as the extent; digesting anew asks for every MiB of it."""
    expected = entries_of(image, 0, image.size)
    for start in range(0, image.size, BLOCK):
        end = min(start + BLOCK, image.size)
        assert entries_of(image, start, end) == [expected[start // BLOCK]]
    assert set(seeks) == {os.SEEK_DATA}


def test_entries_of_data_that_changed_meanwhile(image: Image) -> None:
    image.make_zero(MIB, MIB)
    first = entries_of(image, 0, BLOCK)
    image.make_zero(0, BLOCK)
    assert entries_of(image, 0, 2 * BLOCK) == [ZERO, *first]
    image.write(memoryview(b"data" * (BLOCK // 4)), MIB)
    assert entries_of(image, MIB, MIB + 2 * BLOCK) == [*first, ZERO]


def test_entries_where_holes_can_not_be_asked_for(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = entries_of(image, 0, image.size)
    monkeypatch.setattr(os, "lseek", raising(errno.EINVAL))
    assert entries_of(image, 0, image.size) == expected


@pytest.mark.parametrize("had", ["data", "hole"])
def test_an_image_that_was_cut_is_not_full_of_zeros(image: Image, path: Path, had: str) -> None:
    if had == "hole":
        image.make_zero(MIB, MIB + 100)
    assert image.is_in_place()
    os.truncate(path, MIB)
    assert not image.is_in_place()
    for start in (0, MIB, MIB + 5 * BLOCK):
        with pytest.raises(TargetError, match="ends at") as caught:
            entries_of(image, start, image.size)
        assert caught.value.code is ErrorCode.CHANGED


def test_reading_on_the_oldest_python(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = entries_of(image, 0, image.size)
    monkeypatch.delattr(os, "preadv")
    assert entries_of(image, 0, image.size) == expected


def test_what_can_not_be_read(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", raising(errno.EIO))
    with pytest.raises(TargetError, match="reading") as caught:
        entries_of(image, 0, BLOCK)
    assert caught.value.code is ErrorCode.IO


# Writing.


def test_a_write_that_is_cut_short_goes_on(
    image: Image, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:1000], at))
    image.write(memoryview(b"N" * 4500), 7)
    assert path.read_bytes()[:5000] == (b"data" * 2)[:7] + b"N" * 4500 + (b"data" * 200)[3:496]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, ErrorCode.FULL),
        (errno.EDQUOT, ErrorCode.FULL),
        (errno.EFBIG, ErrorCode.FULL),
        (errno.EROFS, ErrorCode.READ_ONLY),
        (errno.EIO, ErrorCode.IO),
    ],
)
def test_failures_have_a_code_and_a_remedy(
    image: Image, monkeypatch: pytest.MonkeyPatch, number: int, code: ErrorCode
) -> None:
    acts: dict[str, Callable[[], None]] = {
        "pwrite": lambda: image.write(memoryview(b"x"), 0),
        "fdatasync": image.sync,
        "ftruncate": lambda: image.extend(image.size + 1),
    }
    for name, act in acts.items():
        with monkeypatch.context() as patch:
            patch.setattr(os, name, raising(number))
            with pytest.raises(TargetError) as caught:
                act()
        assert caught.value.code is code
        assert image.path in caught.value.message
        assert caught.value.hint


def test_p9_extending_never_cuts(image: Image, path: Path) -> None:
    image.extend(3 * MIB)
    assert (path.stat().st_size, image.size) == (3 * MIB, 3 * MIB)
    image.extend(MIB)
    assert path.stat().st_size == 3 * MIB


# Identity (P5).


def test_p5_identity_of_a_file(image: Image, path: Path) -> None:
    before = image.identity()
    assert image.identity() == before
    os.pwrite(image.fd, b"x", 0)
    assert image.identity() != before
    status = path.stat()
    os.utime(path, ns=(0, status.st_mtime_ns))
    changed = image.identity()
    assert changed[:4] == [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def test_p10_the_path_must_lead_to_the_open_file(image: Image, path: Path) -> None:
    assert image.is_in_place()
    path.rename(path.with_suffix(".away"))
    assert not image.is_in_place()
    path.write_bytes(bytes(image.size))
    assert not image.is_in_place()


def test_without_a_boot_id_nothing_is_taken_for_the_same(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open

    def no_proc(name: Any, *arguments: Any) -> Any:
        if str(name).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return real(name, *arguments)

    monkeypatch.setattr("builtins.open", no_proc)
    assert target.boot_id() is None
    assert target._boot_number() != target._boot_number()
    assert image._sectors_written() != image._sectors_written()


# Opening and making (P10).


def test_making_one_where_there_is_one(path: Path) -> None:
    content = b"precious"
    path.write_bytes(content)
    with pytest.raises(TargetError, match="File exists"):
        Image.create(str(path), 5)
    assert path.read_bytes() == content


def test_p9_a_file_that_can_not_be_made_long_enough_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "ftruncate", raising(errno.EFBIG))
    with pytest.raises(TargetError, match="creating") as caught:
        Image.create(str(path), 5)
    assert caught.value.code is ErrorCode.FULL
    assert path.exists()


def test_a_directory_that_can_not_be_flushed_at_all_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some network file systems."""
    monkeypatch.setattr(os, "fsync", raising(errno.EINVAL))
    target.sync_directory(str(path.parent))
    monkeypatch.setattr(os, "fsync", raising(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        target.sync_directory(str(path.parent))


# The sample (P5).


@pytest.mark.parametrize("block_size", [BLOCK, 256 * 1024, 4 * MIB])
@pytest.mark.parametrize("blocks", [1, 2, 255, 256, 257, 100_000])
def test_p5_the_sample_has_both_ends_and_what_holds_data(block_size: int, blocks: int) -> None:
    last = (blocks - 1) // SEGMENT_BLOCKS
    chosen = sample_blocks(blocks, block_size, [last])
    edge = min(blocks, max(1, MIB // block_size))
    assert {*range(edge), *range(blocks - edge, blocks)} <= {*chosen}
    assert chosen == sorted({*chosen})
    assert all(0 <= block < blocks for block in chosen)
    inner = {*chosen} - {*range(edge)} - {*range(blocks - edge, blocks)}
    assert all(block // SEGMENT_BLOCKS == last for block in inner)
    assert len(sample_blocks(blocks, block_size, [])) == len(
        {*range(edge)} | {*range(blocks - edge, blocks)}
    )


def test_unknown_is_no_entry_of_anything(image: Image) -> None:
    assert UNKNOWN not in entries_of(image, 0, image.size)
