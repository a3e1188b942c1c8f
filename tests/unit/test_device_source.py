"""Reading image files, and what a failing disk does to a read."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.device import source as source_module
from p2v_sync.device.readonly import read_only
from p2v_sync.device.source import DiskSource, OnReadError, is_gone
from p2v_sync.errors import DeviceChanged, DeviceError, SourceMissing, SourceReadError
from p2v_sync.extent import Extent
from p2v_sync.units import KIB, MIB

if TYPE_CHECKING:
    from p2v_sync.engine.ports import Source

    def conforms(source: DiskSource) -> Source:
        return source


Preadv = Callable[[int, Sequence[memoryview], int], int]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(2 * MIB + 777))
    return path


def read(source: DiskSource, start: int, length: int) -> tuple[bytes, Sequence[Extent]]:
    buffer = bytearray(b"\xa5" * length)
    bad = source.read_into(memoryview(buffer), start)
    return bytes(buffer), bad


def failing(bad: Sequence[Extent], code: int = errno.EIO, limit: int = 1 << 40) -> Preadv:
    """A preadv of a medium with bad ranges: short before one, an error at one."""
    real = os.preadv

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        end = offset + min(len(buffers[0]), limit)
        for extent in bad:
            if extent.start <= offset < extent.end:
                raise OSError(code, os.strerror(code))
            if offset < extent.start < end:
                end = extent.start
        return real(fd, [buffers[0][: end - offset]], offset)

    return preadv


@pytest.mark.parametrize("size", [1, 511, 512, 513, 4095, 4096])
def test_tiny_and_odd_sizes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(size))
    with DiskSource(path) as source:
        assert (source.size, source.sector_size, source.is_block) == (size, 512, False)
        assert source.path == path
        assert read(source, 0, size) == (path.read_bytes(), [])
        assert read(source, size - 1, 1) == (path.read_bytes()[-1:], [])


def test_short_reads_are_continued(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.preadv", failing([], limit=1000))
    with DiskSource(image) as source:
        assert read(source, 5, 10_000) == (image.read_bytes()[5:10_005], [])


def test_close_is_idempotent(image: Path) -> None:
    source = DiskSource(image)
    source.close()
    source.close()


def test_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none" / "deeper"):
        with pytest.raises(SourceMissing, match=r"p2v-sync disks"):
            DiskSource(path)
    with pytest.raises(SourceMissing):
        DiskSource(Path("a\0b"))


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    with pytest.raises(DeviceError, match="nothing to copy"):
        DiskSource(tmp_path / "empty.img")


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkdir, "a directory"),
        (os.mkfifo, "a named pipe"),
        (make_socket, "a socket"),
        (lambda path: path.symlink_to("/dev/null"), "a character device"),
    ],
)
def test_wrong_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("x"))
    with pytest.raises(DeviceError, match=rf"x is {kind}, .*\(name a disk such as"):
        DiskSource(Path("x"))


def test_a_pipe_put_there_in_between_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    looks = iter([False, True])
    real = source_module._refuse_kind

    def refuse_second(path: Path, mode: int) -> None:
        if next(looks):
            real(path, mode)

    monkeypatch.setattr(source_module, "_refuse_kind", refuse_second)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceError, match="named pipe"):
        DiskSource(fifo)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.EACCES, "run as root"),
        (errno.EPERM, "run as root"),
        (errno.ENXIO, "is it connected"),
        (errno.ENOMEDIUM, "is it connected"),
        (errno.ELOOP, "name a disk"),
    ],
)
def test_open_errors_name_the_remedy(
    image: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str
) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(DeviceError, match=hint) as caught:
        DiskSource(image)
    assert str(image) in caught.value.message


def test_p1_opened_for_reading_only(image: Path) -> None:
    with DiskSource(image) as source, pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(source._fd, b"x", 0)


@given(
    bad_sectors=st.sets(st.integers(0, 127), max_size=12),
    start=st.integers(0, 20_000),
    length=st.integers(1, 45_000),
    limit=st.sampled_from([700, 4096, 1 << 40]),
)
def test_p12_exactly_the_bad_sectors_are_zeroed_and_named(
    tmp_path_factory: pytest.TempPathFactory,
    bad_sectors: set[int],
    start: int,
    length: int,
    limit: int,
) -> None:
    path = tmp_path_factory.mktemp("p12") / "disk.img"
    content = bytes(at % 251 for at in range(64 * KIB + 100))
    path.write_bytes(content)
    bad = [Extent(number * 512, 512) for number in sorted(bad_sectors)]
    wanted = bytearray(content)
    for extent in bad:
        wanted[extent.start : extent.end] = bytes(512)
    with pytest.MonkeyPatch.context() as patch, DiskSource(path) as source:
        patch.setattr("os.preadv", failing(bad, limit=limit))
        data, found = read(source, start, length)
    assert data == wanted[start : start + length]
    lost = {at for extent in found for at in range(extent.start, extent.end)}
    assert lost == {at for at in range(start, start + length) if at // 512 in bad_sectors}
    assert list(found) == sorted(found)
    assert all(one.end < other.start for one, other in pairwise(found))


@pytest.mark.parametrize("code", sorted(source_module.MEDIA_ERRORS))
def test_p12_every_media_error_is_narrowed(
    image: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr("os.preadv", failing([Extent(MIB, 1024)], code))
    with DiskSource(image) as source:
        data, bad = read(source, 0, source.size)
    content = image.read_bytes()
    assert bad == [Extent(MIB, 1024)]
    assert data == content[:MIB] + bytes(1024) + content[MIB + 1024 :]


def test_p12_bad_tail_of_an_odd_file(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = Extent(2 * MIB + 512, 265)
    monkeypatch.setattr("os.preadv", failing([tail]))
    with DiskSource(image) as source:
        data, bad = read(source, MIB, source.size - MIB)
    assert bad == [tail]
    assert data == image.read_bytes()[MIB : tail.start] + bytes(265)


def test_p12_without_o_direct(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DiskSource(image) as source:
        real = os.open

        def refuse_direct(path: str, flags: int) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "no O_DIRECT here")
            return real(path, flags)

        monkeypatch.setattr("os.open", refuse_direct)
        monkeypatch.setattr("os.preadv", failing([Extent(4096, 512)]))
        assert read(source, 0, 64 * KIB)[1] == [Extent(4096, 512)]


def test_p12_where_o_direct_wants_larger_pieces(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = failing([Extent(4096, 512)])
    with DiskSource(image) as source:

        def preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            if fd == source._direct_fd and (offset % 4096 or len(buffers[0]) % 4096):
                raise OSError(errno.EINVAL, "Invalid argument")
            return broken(fd, buffers, offset)

        monkeypatch.setattr("os.preadv", preadv)
        assert read(source, 0, 64 * KIB)[1] == [Extent(4096, 512)]


def test_p12_fail_names_extent_and_error(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.preadv", failing([Extent(1024, 512)]))
    policy: OnReadError = "fail"
    with DiskSource(image, on_read_error=policy) as source:
        with pytest.raises(SourceReadError, match=r"512 bytes at 1024 .*Input/output error"):
            read(source, 0, 4096)
        assert source.probe_into(memoryview(bytearray(4096)), 0) == [Extent(1024, 512)]
        assert read(source, 4096, 512)[1] == []


@pytest.mark.parametrize("code", [errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM])
@pytest.mark.parametrize("first_code", [None, errno.EIO])
def test_p12_a_vanished_disk_is_no_bad_sector(
    image: Path, monkeypatch: pytest.MonkeyPatch, code: int, first_code: int | None
) -> None:
    codes = iter([first_code] if first_code else [])

    def preadv(*_args: object) -> int:
        current = next(codes, code)
        raise OSError(current, os.strerror(current))

    monkeypatch.setattr("os.preadv", preadv)
    with DiskSource(image) as source, pytest.raises(SourceReadError, match="is gone"):
        read(source, 0, 4096)


def test_p12_other_errors_are_no_bad_sectors(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.preadv", failing([Extent(512, 512)], errno.ETIMEDOUT))
    with DiskSource(image) as source, pytest.raises(SourceReadError, match="no bad sector"):
        read(source, 0, 4096)


def test_p12_a_disk_that_fails_all_over_because_it_was_pulled(
    image: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "node" / "device" / "state"
    state.parent.mkdir(parents=True)
    with DiskSource(image) as source:
        source._node = tmp_path / "node"
        monkeypatch.setattr("os.preadv", failing([Extent(0, MIB)]))
        state.write_text("running\n")
        assert read(source, 0, 4096)[1] == [Extent(0, 4096)]
        state.write_text("offline\n")
        with pytest.raises(SourceReadError, match="is gone"):
            read(source, 0, 4096)


def test_is_gone(tmp_path: Path) -> None:
    assert is_gone(tmp_path / "none")
    assert not is_gone(tmp_path)
    (tmp_path / "device").mkdir()
    for state, gone in (("running", False), ("live", False), ("transport-offline", True)):
        (tmp_path / "device" / "state").write_text(state + "\n")
        assert is_gone(tmp_path) is gone


def test_a_source_that_shrinks_is_noticed(image: Path) -> None:
    with DiskSource(image) as source:
        os.truncate(image, MIB)
        with pytest.raises(DeviceChanged, match=r"ends at 1048576, was 2097929 bytes"):
            read(source, MIB - 512, 1024)
        with pytest.raises(DeviceChanged, match="shrank"):
            source.check_size()


def test_a_source_that_shrinks_behind_a_bad_sector(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DiskSource(image) as source:
        os.truncate(image, MIB)
        monkeypatch.setattr("os.preadv", failing([Extent(MIB - 1024, 512)]))
        with pytest.raises(DeviceChanged):
            read(source, MIB - 4096, 8192)


def test_a_source_that_grows_is_noticed(image: Path) -> None:
    with DiskSource(image) as source:
        source.check_size()
        os.truncate(image, 3 * MIB)
        with pytest.raises(DeviceChanged, match="grew while it was read: from 2097929 to 3145728"):
            source.check_size()


def test_stamp_of_a_file(image: Path) -> None:
    with DiskSource(image) as source:
        stamp = source.stamp()
        read(source, 0, 4096)
        assert source.changed_since(stamp) is None
        assert source.changed_since(list(stamp)) is None
        before = image.stat()
        with image.open("r+b") as file:
            file.write(b"changed")
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert source.changed_since(stamp) == "it was written to"
        os.truncate(image, 5)
        assert source.changed_since(stamp) == "its size was 2097929, is 5"
        assert source.changed_since([]) == "it was written to"


def write_sparse(path: Path, size: int, data: Sequence[Extent]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for extent in data:
            file.seek(extent.start)
            file.write(b"x" * extent.length)
        file.flush()
        os.fsync(file.fileno())


def test_next_data(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    write_sparse(path, 10 * MIB, [Extent(MIB, 64 * KIB), Extent(8 * MIB, MIB)])
    with DiskSource(path) as source:
        data = [source.next_data(at * MIB) for at in range(11)]
        assert data == [MIB, MIB, *[8 * MIB] * 7, 10 * MIB, 10 * MIB]
        assert source.next_data(MIB + 4097) == MIB + 4097


def test_next_data_of_nothing_but_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    write_sparse(path, MIB + 1, [])
    with DiskSource(path) as source:
        assert source.next_data(0) == source.size


def test_the_end_of_an_extent_is_never_looked_for(image: Path, seeks: list[int]) -> None:
    """SEEK_HOLE takes as long as the extent; a pass asks for every MiB of it."""
    with DiskSource(image) as source:
        for start in range(0, source.size, 64 * KIB):
            assert source.next_data(start) == start
    assert set(seeks) == {os.SEEK_DATA}


def test_data_that_was_written_after_the_disk_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    write_sparse(path, 4 * MIB, [Extent(MIB, MIB)])
    with DiskSource(path) as source:
        assert source.next_data(2 * MIB) == 4 * MIB
        with path.open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"x" * MIB)
            file.flush()
            os.fsync(file.fileno())
        assert source.next_data(2 * MIB) == 3 * MIB


def test_next_data_of_a_file_that_has_grown_since(image: Path) -> None:
    with DiskSource(image) as source:
        with image.open("ab") as file:
            file.truncate(8 * MIB)
            file.seek(7 * MIB)
            file.write(b"x")
        assert source.next_data(4 * MIB) == source.size


def test_the_end_of_a_file_that_has_shrunk_since_is_no_hole(image: Path) -> None:
    with DiskSource(image) as source:
        os.truncate(image, 64 * KIB)
        with pytest.raises(DeviceChanged, match="it ends at 65536"):
            source.next_data(MIB)


def test_next_data_where_unsupported(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.lseek", refuse)
    with DiskSource(image) as source:
        assert source.next_data(5) == 5


def test_reads_and_seeks_from_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    data = [Extent(2 * at * MIB, 64 * KIB) for at in range(8)]
    write_sparse(path, 16 * MIB, data)
    wrong: list[object] = []

    def work(source: DiskSource, mine: Extent) -> None:
        for _ in range(50):
            if source.next_data(max(0, mine.start - MIB)) != mine.start:
                wrong.append(mine)
            if read(source, mine.start, mine.length) != (b"x" * mine.length, []):
                wrong.append(mine)

    with DiskSource(path) as source:
        threads = [threading.Thread(target=work, args=(source, mine)) for mine in data]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_forget_leaves_files_alone(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fadvise")
    with DiskSource(image) as source:
        source.forget(0, MIB)


def test_read_only_has_nothing_to_do_for_files(image: Path, tmp_path: Path) -> None:
    for path in (image, tmp_path / "none", tmp_path):
        with read_only(path) as changed:
            assert changed == []
