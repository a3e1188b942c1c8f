"""Reading a disk or image file: aligned, thread-safe, read-only, bad sectors narrowed and named."""

import errno
import logging
import mmap
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

from p2v_sync.device import ioctl
from p2v_sync.device.attributes import SYS, read_text
from p2v_sync.errors import DeviceChanged, DeviceError, SourceMissing, SourceReadError
from p2v_sync.extent import Extent, merged
from p2v_sync.units import MIB

log = logging.getLogger(__name__)

OnReadError = Literal["skip", "fail"]

# What a bad place on the medium looks like (blk_status_to_errno, block/blk-core.c): EIO in general,
# ENODATA for medium errors, EILSEQ and EBADMSG for protection checks, EREMOTEIO for a target's.
MEDIA_ERRORS = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EBADMSG, errno.EREMOTEIO})
_GONE_ERRORS = frozenset({errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM})
# device/state of SCSI (drivers/scsi/scsi_sysfs.c) and NVMe (drivers/nvme/host/core.c).
_GONE_STATES = frozenset(
    {"offline", "transport-offline", "cancel", "deleted", "deleting", "deleting (no IO)", "dead"}
)
# Sector size of regular files; what an image's guest will most likely see.
FILE_SECTOR = 512
_SALVAGE_PIECE = MIB
_HINT_KINDS = "name a disk such as /dev/sda, or a raw image file"


class _Outcome(NamedTuple):
    """How far a read got, and the errno that stopped it; 0 at the end of the source or request."""

    done: int
    errno: int


class _BadPlace(NamedTuple):
    extent: Extent
    errno: int


def _refuse_kind(path: Path, mode: int) -> None:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        kind = next((text for test, text in kinds if test(mode)), "no disk")
        raise DeviceError(f"{path} is {kind}, not a disk or image", hint=_HINT_KINDS)


def _explained(path: Path, error: OSError) -> DeviceError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            hint = "'p2v-sync disks' lists what there is"
            return SourceMissing(f"there is no {path}", hint=hint)
        case errno.EACCES | errno.EPERM:
            return DeviceError(f"no permission to read {path}", hint="run as root")
        case errno.ENXIO | errno.ENODEV | errno.ENOMEDIUM:
            hint = "is it connected, with a medium in it?"
            return DeviceError(f"{path} has no disk behind it", hint=hint)
        case _:
            return DeviceError(f"can't open {path}: {error.strerror}", hint=_HINT_KINDS)


def open_read_only(path: Path) -> int:
    """A descriptor of a regular file or block device (P1).  Raises DeviceError, SourceMissing.

    Looked at before it is opened: opening rewinds a tape and arms a watchdog.  O_NONBLOCK, so that
    a pipe put there in between can't hang us; a block device is opened without it, because then
    sd skips its check for a changed medium.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        mode = path.stat().st_mode
        _refuse_kind(path, mode)
        fd = os.open(path, flags if stat.S_ISBLK(mode) else flags | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError):
            raise SourceMissing("no path has a zero byte in it", hint=_HINT_KINDS) from error
        raise _explained(path, error) from error
    try:
        _refuse_kind(path, os.fstat(fd).st_mode)
    except DeviceError:
        os.close(fd)
        raise
    return fd


def is_gone(directory: Path) -> bool:
    """True when the disk of a sysfs directory was unplugged or given up by its driver.

    Reads of such a disk fail with plain EIO as if every sector were bad.
    """
    return not directory.exists() or read_text(directory / "device" / "state") in _GONE_STATES


def _halves(extent: Extent, sector: int) -> tuple[Extent, Extent]:
    """Split at a sector boundary; the extent touches at least two sectors."""
    middle = (extent.start + extent.end) // 2 // sector * sector
    if middle <= extent.start:
        middle = (extent.start // sector + 1) * sector
    return Extent(extent.start, middle - extent.start), Extent(middle, extent.end - middle)


def _is_one_sector(extent: Extent, sector: int) -> bool:
    return extent.start // sector == (extent.end - 1) // sector


class DiskSource:
    """A block device or raw image, open for reading.  Satisfies ``engine.ports.Source``.

    Thread-safe: ``preadv`` does not use the file offset, and what ``lseek`` returns depends on its
    arguments alone.  The source is never written to, not even opened for it (P1).
    """

    def __init__(self, path: Path, *, on_read_error: OnReadError = "skip") -> None:
        """Raises SourceMissing; DeviceError for what can't be copied."""
        self._path = Path(path)
        self._on_read_error = on_read_error
        self._fd = open_read_only(self._path)
        self._direct_fd: int | None = None
        self._direct_lock = threading.Lock()
        self._is_closed = False
        try:
            self._status = os.fstat(self._fd)
            self._size = self._current_size()
            self._sector = ioctl.logical_sector_size(self._fd) if self.is_block else FILE_SECTOR
            if self._size == 0:
                hint = "is a medium in the drive?" if self.is_block else "name another file"
                raise DeviceError(f"{self._path} is empty: nothing to copy", hint=hint)
        except OSError as error:
            self.close()
            raise _explained(self._path, error) from error
        except DeviceError:
            self.close()
            raise
        self._node = (SYS / "dev" / "block" / self.dev).resolve() if self.is_block else None
        # Without sysfs there is nothing to miss later.
        if self._node is not None and not self._node.exists():
            self._node = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent.  No read may be under way."""
        if self._is_closed:
            return
        self._is_closed = True
        os.close(self._fd)
        if self._direct_fd is not None:
            os.close(self._direct_fd)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def size(self) -> int:
        """Bytes, as it was when opened."""
        return self._size

    @property
    def sector_size(self) -> int:
        """Logical sector size, bytes; 512 for files."""
        return self._sector

    @property
    def is_block(self) -> bool:
        return stat.S_ISBLK(self._status.st_mode)

    @property
    def dev(self) -> str:
        """``major:minor`` of a block device; of the file system's device for a file."""
        number = self._status.st_rdev if self.is_block else self._status.st_dev
        return f"{os.major(number)}:{os.minor(number)}"

    def _current_size(self) -> int:
        return ioctl.device_size(self._fd) if self.is_block else os.fstat(self._fd).st_size

    def read_into(self, buffer: memoryview, start: int) -> Sequence[Extent]:
        """Fill ``buffer`` from ``start`` (bytes); returns what could not be read, zeroed (P12).

        Raises SourceReadError for unreadable sectors under ``on_read_error='fail'`` and in any case
        when the disk is gone; DeviceChanged when the source ends before the buffer is full.
        """
        bad = self._read(buffer, start)
        if bad and self._on_read_error == "fail":
            raise SourceReadError(
                f"{self._path}: {bad[0].extent.length} bytes at {bad[0].extent.start} can't be read"
                f": {os.strerror(bad[0].errno)}",
                hint="--on-read-error skip copies the rest and fills such places with zeros",
            )
        return list(merged(place.extent for place in bad))

    def probe_into(self, buffer: memoryview, start: int) -> Sequence[Extent]:
        """As ``read_into`` but bad sectors never raise, whatever was asked for."""
        return list(merged(place.extent for place in self._read(buffer, start)))

    def _read(self, buffer: memoryview, start: int) -> list[_BadPlace]:
        done, error = self._fill(self._fd, buffer, start)
        if done == len(buffer):
            return []
        if error == 0:
            raise self._ended_at(start + done)
        log.debug("%s: reading at %d: %s", self._path, start + done, os.strerror(error))
        return self._salvage(buffer[done:], start + done)

    def _fill(self, fd: int, view: memoryview, start: int) -> _Outcome:
        """Read until the view is full, the source ends or a media error comes; others raise.

        Short reads are normal; EINTR is retried by Python itself (PEP 475).
        """
        done = 0
        while done < len(view):
            try:
                count = os.preadv(fd, [view[done:]], start + done)
            except OSError as error:
                if error.errno not in MEDIA_ERRORS:
                    raise self._failure(error, start + done) from error
                return _Outcome(done, error.errno)
            if count == 0:
                break
            done += count
        return _Outcome(done, 0)

    def _failure(self, error: OSError, start: int) -> SourceReadError:
        if error.errno in _GONE_ERRORS:
            return self._gone()
        return SourceReadError(
            f"{self._path}: reading at {start} failed: {error.strerror}",
            hint="this is no bad sector; the same command goes on from here",
        )

    def _gone(self) -> SourceReadError:
        return SourceReadError(
            f"{self._path} is gone: the disk no longer answers",
            hint="check its cable and power, then run the same command again",
        )

    def _ended_at(self, position: int) -> DeviceChanged:
        self._check_present()
        return DeviceChanged(
            f"{self._path} shrank while it was read: it ends at {position}, was {self._size} bytes",
            hint="a disk that changes its size is copied as a new job",
        )

    def _salvage(self, buffer: memoryview, start: int) -> list[_BadPlace]:
        """Read what can be read of a range with bad sectors in it; zero the rest (P12).

        Halves until single sectors fail, without the page cache where possible: there one bad
        512-byte sector takes its whole 4 KiB page with it.
        """
        bad: list[_BadPlace] = []
        end = start + len(buffer)
        pieces = range(start, end, _SALVAGE_PIECE)
        pending = [Extent(at, min(_SALVAGE_PIECE, end - at)) for at in reversed(pieces)]
        with mmap.mmap(-1, _SALVAGE_PIECE + 2 * max(self._sector, mmap.PAGESIZE)) as scratch:
            while pending:
                extent = pending.pop()
                view = buffer[extent.start - start : extent.end - start]
                done, error = self._read_piece(view, extent, scratch)
                rest = Extent(extent.start + done, extent.length - done)
                if rest.length == 0:
                    continue
                if _is_one_sector(rest, self._sector):
                    self._check_present()
                    view[done:] = bytes(rest.length)
                    bad.append(_BadPlace(rest, error))
                else:
                    pending.extend(reversed(_halves(rest, self._sector)))
        return bad

    def _read_piece(self, view: memoryview, extent: Extent, scratch: mmap.mmap) -> _Outcome:
        """Read an extent by way of a page-aligned buffer, in whole sectors, as O_DIRECT wants."""
        low = extent.start // self._sector * self._sector
        high = -(-extent.end // self._sector) * self._sector
        with memoryview(scratch) as whole, whole[: high - low] as aligned:
            got, error = self._fill_direct(aligned, low)
            done = max(0, min(low + got, extent.end) - extent.start)
            if error == 0 and done < extent.length:
                raise self._ended_at(extent.start + done)
            skipped = extent.start - low
            view[:done] = aligned[skipped : skipped + done]
        return _Outcome(done, error)

    def _fill_direct(self, view: memoryview, start: int) -> _Outcome:
        fd = self._open_direct()
        if fd is None:
            return self._fill(self._fd, view, start)
        try:
            count = os.preadv(fd, [view], start)
        except OSError as error:
            if error.errno in MEDIA_ERRORS:
                return _Outcome(0, error.errno)
            if error.errno != errno.EINVAL:
                raise self._failure(error, start) from error
            # The file system below wants larger pieces than a sector.
            return self._fill(self._fd, view, start)
        if count == len(view):
            return _Outcome(count, 0)
        # Short before a bad place or at the end of a file; the rest can't go on from an unaligned
        # position in memory and on disk, so the page cache decides which.
        rest = self._fill(self._fd, view[count:], start + count)
        return _Outcome(count + rest.done, rest.errno)

    def _open_direct(self) -> int | None:
        """A second descriptor that bypasses the page cache; None where that does not exist."""
        with self._direct_lock:
            if self._direct_fd is None:
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT
                try:
                    self._direct_fd = os.open(f"/proc/self/fd/{self._fd}", flags)
                except OSError as error:
                    log.debug("%s: no O_DIRECT: %s", self._path, error.strerror)
            return self._direct_fd

    def _check_present(self) -> None:
        """Raise unless the disk is still there: a vanished one must not be taken for zeros.

        Many drivers set the size to zero first (blk_mark_disk_dead), so reads find its end.
        """
        is_dead = self._node is not None and is_gone(self._node)
        if is_dead or (self.is_block and self._current_size() == 0):
            raise self._gone()

    def next_data(self, start: int) -> int:
        """Where the next allocated byte lies, from ``start`` on; else the size (man 2 lseek).

        Block devices, and file systems that can't tell, have no holes.  Where the data ends is not
        asked for: SEEK_HOLE walks there, however far, and takes longer than to read a few zeros.

        Raises DeviceChanged when the source has become shorter: what is missing is no hole.
        """
        if self.is_block or start >= self._size:
            return min(start, self._size)
        try:
            return min(os.lseek(self._fd, start, os.SEEK_DATA), self._size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return start
        # Nothing more up to the end of the file, wherever that is by now.
        length = self._current_size()
        if length < self._size:
            raise self._ended_at(length)
        return self._size

    def stamp(self) -> tuple[int, ...]:
        """Numbers that change when the source is written to; compare with ``changed_since``.

        Files: dev, inode, size, mtime_ns, ctime_ns.  Block devices: size, sectors written, sectors
        discarded, by anybody, counted from boot (Documentation/block/stat.rst).
        """
        if not self.is_block:
            now = os.fstat(self._fd)
            return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
        fields = read_text(self._node / "stat").split() if self._node else []
        counters = [int(field) for field in fields if field.isdigit()]
        written = counters[6] if len(counters) > 6 else 0
        discarded = counters[13] if len(counters) > 13 else 0
        return (self._current_size(), written, discarded)

    def changed_since(self, stamp: Sequence[int]) -> str | None:
        """Why the source is not as it was at ``stamp()``, in words; None when it is."""
        old, new = tuple(stamp), self.stamp()
        if old == new:
            return None
        size_at = 0 if self.is_block else 2
        if len(old) == len(new) and old[size_at] != new[size_at]:
            return f"its size was {old[size_at]}, is {new[size_at]}"
        return "it was written to"

    def check_size(self) -> None:
        """Raises DeviceChanged when the source grew or shrank since it was opened."""
        try:
            size = self._current_size()
        except OSError as error:
            raise self._failure(error, 0) from error
        if size != self._size:
            self._check_present()
            verb = "grew" if size > self._size else "shrank"
            raise DeviceChanged(
                f"{self._path} {verb} while it was read: from {self._size} to {size} bytes",
                hint="a disk that changes its size is copied as a new job",
            )

    def forget(self, start: int, length: int) -> None:
        """Tell the kernel that a range of a block device will not be read again soon.

        A pass over a disk larger than memory would otherwise push everything else out of it.
        """
        if self.is_block:
            os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_DONTNEED)
