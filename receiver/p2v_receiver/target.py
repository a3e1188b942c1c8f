"""The target image: one sparse file or block device, and the only code that touches it.

Nothing here truncates, removes or replaces anything (P9).
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
import struct
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from . import codec
from .wire import SEGMENT_BLOCKS, ZERO, ErrorCode, Json

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_FALLOC_FL_ZERO_RANGE = 0x10
_BLKGETSIZE64 = 0x80081272  # linux/fs.h: _IOR(0x12, 114, size_t)
_F_OFD_GETLK = 36  # asm-generic/fcntl.h; Python has it since 3.9
_FLOCK = struct.Struct("hhqqi4x")  # struct flock where off_t has 64 bits
_READ_SIZE = 1024 * 1024
# Of one pwrite(2): a MiB takes ext4 up to three times as long as 16 such pieces do.
_WRITE_SIZE = 64 * 1024
_EDGE = 1024 * 1024
_SAMPLE_BLOCKS = 32
_ZERO_STEP = 128 * 1024 * 1024  # LIO answers longer requests to zero so late that they time out
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOTTY)


class TargetError(Exception):
    """The image can't be used or failed; ``code`` goes on the wire, ``hint`` is the remedy."""

    def __init__(self, code: ErrorCode, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


def from_oserror(error: OSError, doing: str, path: str) -> TargetError:
    """An OSError on the target as something the operator can act on."""
    text = "{} {}: {}".format(doing, path, error.strerror or error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TargetError(
            ErrorCode.FULL, text, "make room on the host, then run the same command again"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return TargetError(
            ErrorCode.READ_ONLY, text, "make it writable for the receiver's user, or use --sudo"
        )
    return TargetError(ErrorCode.IO, text, "look at the host's disk and its kernel log")


_libc = ctypes.CDLL(None, use_errno=True)
# glibc has a name of its own for 64-bit offsets; elsewhere they are 64 bits anyway.
_libc_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate


def _fallocate(fd: int, mode: int, start: int, length: int) -> None:
    """fallocate(2).  Raises OSError."""
    offset = ctypes.c_int64
    if _libc_fallocate(fd, mode, offset(start), offset(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def aligned_buffer(length: int) -> memoryview:
    """Page-aligned memory: the kernel copies into it five times faster than into a bytearray."""
    return memoryview(mmap.mmap(-1, length))


def _pread_into(fd: int, view: memoryview, start: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], start)
    data = os.pread(fd, len(view), start)  # Python 3.6
    view[: len(data)] = data
    return len(data)


Identity = List[int]


class Image:
    """An open image of ``size`` bytes.  Raises TargetError from everything.

    Methods that take extents are thread-safe for extents that don't overlap.
    """

    def __init__(self, fd: int, path: str, size: int) -> None:
        self.fd = fd
        self.path = path
        self.size = size
        status = os.fstat(fd)
        self.is_device = stat.S_ISBLK(status.st_mode)
        self._device = status.st_rdev
        self._ladder: Tuple[Callable[[int, int], None], ...]
        self._ladder = (self._punch, self._zero_range, self._write_zeros)

    # Opening

    @classmethod
    def create(cls, path: str, size: int) -> "Image":
        """A new, empty sparse file; its name is durable when this returns."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(path, flags, 0o600)
            with _closed_on_failure(fd):
                os.ftruncate(fd, size)
                os.fsync(fd)
                sync_directory(os.path.dirname(path))
        except OSError as error:
            raise from_oserror(error, "creating", path) from error
        return cls(fd, path, size)

    @classmethod
    def open(cls, path: str) -> "Image":
        """An image that is there: a regular file, a block device, or a link to a block device.

        A link to anything else is refused: it could lead out of the directory (P10).  A device is
        opened exclusively, which fails while it is mounted or part of something.
        """
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISBLK(mode):
                return cls._open_device(path)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _not_an_image(path) from error
            raise from_oserror(error, "opening", path) from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise _not_an_image(path)
        with _closed_on_failure(fd):
            _refuse_running(fd, path)
        return cls(fd, path, status.st_size)

    @classmethod
    def _open_device(cls, path: str) -> "Image":
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_EXCL)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise _in_use(path) from error
        with _closed_on_failure(fd):
            answer = fcntl.ioctl(fd, _BLKGETSIZE64, b"\0" * 8)
        return cls(fd, path, struct.unpack("Q", answer)[0])

    def extend(self, size: int) -> None:
        """Make a file longer; what is added reads as zeros."""
        try:
            os.ftruncate(self.fd, max(size, os.fstat(self.fd).st_size))
        except OSError as error:
            raise from_oserror(error, "extending", self.path) from error
        self.size = size

    def close(self) -> None:
        os.close(self.fd)

    # Identity

    def identity(self) -> Identity:
        """What must be unchanged for the image to be as it was at the last commit (P5).

        Device, inode, size and times of a file; number, size, boot and write counter of a device.
        """
        status = os.fstat(self.fd)
        if self.is_device:
            return [self._device, self.size, _boot_number(), self._sectors_written()]
        times = [status.st_mtime_ns, status.st_ctime_ns]
        return [status.st_dev, status.st_ino, status.st_size, *times]

    def is_in_place(self) -> bool:
        """False when the path no longer leads to the open file, or that was cut short."""
        status = os.fstat(self.fd)
        try:
            there = os.stat(self.path)
        except OSError:
            return False
        long_enough = self.is_device or status.st_size >= self.size
        return os.path.samestat(there, status) and long_enough

    def _sectors_written(self) -> int:
        """Since the device appeared (Documentation/block/stat.rst); random when not readable."""
        numbers = (os.major(self._device), os.minor(self._device))
        try:
            with open("/sys/dev/block/{}:{}/stat".format(*numbers)) as file:
                return int(file.read().split()[6])
        except (OSError, ValueError, IndexError):
            return random.getrandbits(62)

    def is_same_file(self, place: Json) -> bool:
        """True when ``place`` (boot id, dev, ino of a source) is this very file."""
        status = os.fstat(self.fd)
        if place.get("boot_id") != boot_id():
            return False
        if self.is_device:
            return place.get("rdev") == self._device
        return (place.get("dev"), place.get("ino")) == (status.st_dev, status.st_ino)

    # Reading

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill ``view`` from ``start``."""
        done = 0
        try:
            while done < len(view):
                count = _pread_into(self.fd, view[done:], start + done)
                if not count:
                    raise self._shortened(start + done)
                done += count
        except OSError as error:
            raise from_oserror(error, "reading", self.path) from error

    def _shortened(self, end: int) -> TargetError:
        return TargetError(
            ErrorCode.CHANGED,
            "{} ends at {}, not at {}".format(self.path, end, self.size),
            "somebody shortened the image: run the same command again, it is compared anew then",
        )

    def _next_data(self, start: int) -> int:
        """Where the next allocated byte lies, from ``start`` on; else the size.

        Where the data ends is not asked for: SEEK_HOLE walks there, however far, and takes longer
        than to read a few zeros.
        """
        if self.is_device:
            return start
        try:
            return os.lseek(self.fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return start  # the file system can't tell: all of it is data
        # Nothing more up to the end of the file, wherever that is by now.
        length = os.fstat(self.fd).st_size
        if length < self.size:
            raise self._shortened(length)
        return self.size

    def entries(
        self, start: int, end: int, block_size: int, digest: codec.Digest, buffer: memoryview
    ) -> bytes:
        """The packed entries of the blocks of ``[start, end)``, read from the disk or its cache."""
        entries = [ZERO] * -(-(end - start) // block_size)
        step = max(block_size, len(buffer) // block_size * block_size)
        data = self._next_data(start)
        while data < end:
            index = (data - start) // block_size
            at = start + index * block_size
            view = buffer[: min(step, end - at)]
            self.read_into(view, at)
            found = codec.entries_of(view, block_size, digest)
            entries[index : index + len(found)] = found
            data = self._next_data(at + len(view))
        return b"".join(entries)

    def forget_cache(self, start: int, length: int) -> None:
        """Drop clean cached pages, so that the next read comes from the disk."""
        os.posix_fadvise(self.fd, start, length, os.POSIX_FADV_DONTNEED)

    # Writing

    def write(self, data: memoryview, start: int) -> None:
        """Write all of ``data`` at ``start``."""
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self.fd, data[done : done + _WRITE_SIZE], start + done)
        except OSError as error:
            raise from_oserror(error, "writing", self.path) from error

    def make_zero(self, start: int, length: int) -> None:
        """Make the range read as zeros, by the cheapest way that really does (P6)."""
        end = start + length
        while start < end:
            step = min(_ZERO_STEP, end - start)
            self._make_zero(start, step)
            start += step

    def _make_zero(self, start: int, length: int) -> None:
        while True:
            ladder = self._ladder
            try:
                ladder[0](start, length)
            except OSError as error:
                if error.errno not in _UNSUPPORTED or len(ladder) == 1:
                    raise from_oserror(error, "zeroing", self.path) from error
            else:
                # A device may take a discard and still return old data (thin pools do).
                if not self.is_device or len(ladder) == 1 or self._is_zero(start, length):
                    return
            if self._ladder is ladder:  # else another thread has stepped down already
                self._ladder = ladder[1:]

    def _punch(self, start: int, length: int) -> None:
        _fallocate(self.fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, start, length)

    def _zero_range(self, start: int, length: int) -> None:
        _fallocate(self.fd, _FALLOC_FL_ZERO_RANGE | _FALLOC_FL_KEEP_SIZE, start, length)

    def _write_zeros(self, start: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, _READ_SIZE)))
        for at in range(start, start + length, len(zeros)):
            self.write(zeros[: start + length - at], at)

    def _is_zero(self, start: int, length: int) -> bool:
        buffer = aligned_buffer(_READ_SIZE)
        self.forget_cache(start, length)
        for at in range(start, start + length, _READ_SIZE):
            view = buffer[: min(_READ_SIZE, start + length - at)]
            self.read_into(view, at)
            if not codec.is_zero(view):
                return False
        return True

    def sync(self) -> None:
        """fdatasync(2).  A failure is final: the kernel may have dropped the pages (P2)."""
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise from_oserror(error, "flushing", self.path) from error


@contextlib.contextmanager
def _closed_on_failure(fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(fd)
        raise


def _in_use(path: str) -> TargetError:
    return TargetError(
        ErrorCode.REFUSED,
        "{} is in use on the host".format(path),
        "unmount it there, or stop the virtual machine",
    )


def _refuse_running(fd: int, path: str) -> None:
    """While a QEMU has the image open, also below an overlay: its locks tell (qemu(1), locking).

    Open file description locks (fcntl(2)) on bytes from 100 (what it does) and 200 (what others
    may not do).
    """
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 100, 200, 0)
    try:
        (kind, *_) = _FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, wanted))
    except OSError:
        return  # a file system without locks
    if kind != fcntl.F_UNLCK:
        raise _in_use(path)


def _not_an_image(path: str) -> TargetError:
    return TargetError(
        ErrorCode.REFUSED,
        "{} is neither a regular file nor a block device".format(path),
        "move it away on the host; only a link to a block device is followed",
    )


def sample_blocks(blocks: int, block_size: int, segments: Sequence[int]) -> List[int]:
    """Which blocks to re-digest before a manifest is believed (P5).

    The first and last MiB, where partition tables and boot loaders live, and a random choice from
    ``segments``, those that hold anything: in a sparse image the others would nearly always be hit.
    """
    edge = max(1, _EDGE // block_size)
    chosen = set(range(min(edge, blocks))) | set(range(max(0, blocks - edge), blocks))
    for _ in range(_SAMPLE_BLOCKS if segments else 0):
        block = random.choice(segments) * SEGMENT_BLOCKS + random.randrange(SEGMENT_BLOCKS)
        chosen.add(min(block, blocks - 1))
    return sorted(chosen)


def sync_directory(path: str) -> None:
    """Make new names in a directory durable.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't; EIO must be heard
            raise
    finally:
        os.close(fd)


def boot_id() -> Optional[str]:
    """This boot of this machine, or None where the kernel does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return None


def _boot_number() -> int:
    boot = boot_id()
    return int(boot.replace("-", "")[:15], 16) if boot else random.getrandbits(62)
