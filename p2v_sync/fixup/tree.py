"""A guest's files, seen through a root that nothing leads out of.

Every path is resolved by openat2(2) with RESOLVE_IN_ROOT, so that an absolute link, or one that
climbs, ends inside the guest, and with RESOLVE_NO_MAGICLINKS.  What is opened was looked at first:
a device node or a FIFO of the guest is never opened at all.
"""

import ctypes
import errno
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from p2v_sync.errors import FixupError, GuestFileError
from p2v_sync.units import MIB

TEXT_MOST = 8 * MIB  # a "configuration file" longer than that is none

_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10  # linux/openat2.h
_SYS_OPENAT2 = 437  # on every architecture (syscall_64.tbl and scripts/syscall.tbl)
_LABEL = "security.selinux"


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def _openat2(root: int, path: str, flags: int, mode: int = 0) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    fd: int = _libc.syscall(_SYS_OPENAT2, root, name, ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


@dataclass(frozen=True)
class Status:
    """What a file is.  ``size`` in bytes; ``links``: names of the same inode."""

    mode: int  # with the type, as st_mode
    uid: int = 0
    gid: int = 0
    size: int = 0
    links: int = 1

    @property
    def permissions(self) -> int:
        return stat.S_IMODE(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


def split(path: str) -> tuple[str, str]:
    """``/etc/fstab`` → (``/etc``, ``fstab``)."""
    parent, _, name = path.rstrip("/").rpartition("/")
    return parent or "/", name


class Tree:
    """The files below one directory, by the guest's own absolute paths.

    Methods raise FileNotFoundError for what is not there, GuestFileError for what can't be read.
    """

    def __init__(self, root: Path) -> None:
        """Raises FixupError."""
        try:
            self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise FixupError(
                f"{root} can't be opened as a guest's root: {error.strerror}",
                hint="name the directory where the guest's root file system is",
            ) from error
        self.root = root.resolve()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    # Looking

    @contextmanager
    def _found(self, path: str, *, follow: bool = True) -> Iterator[int]:
        """An O_PATH descriptor: nothing is opened yet."""
        flags = os.O_PATH | (0 if follow else os.O_NOFOLLOW)
        try:
            fd = _openat2(self._root, path, flags)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, "not in the guest", path) from error
        except OSError as error:
            raise _explained(path, error) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def resolve(self, path: str) -> str:
        """The path without links.  The last part need not exist."""
        try:
            with self._found(path) as fd:
                return self._name_of(fd)
        except FileNotFoundError:
            if self._is_dangling(path):
                raise GuestFileError(f"{path} in the guest is a link to nothing") from None
            parent, name = split(path)
            if name in ("", ".", ".."):
                raise
            return f"{self.resolve(parent).rstrip('/')}/{name}"

    def _is_dangling(self, path: str) -> bool:
        try:
            with self._found(path, follow=False):
                return True
        except FileNotFoundError:
            return False

    def _name_of(self, fd: int) -> str:
        name = Path(os.readlink(f"/proc/self/fd/{fd}"))
        return f"/{name.relative_to(self.root)}" if name != self.root else "/"

    def status(self, path: str, *, follow: bool = True) -> Status:
        with self._found(path, follow=follow) as fd:
            return _status_of(fd)

    def readlink(self, path: str) -> str:
        """Where a link points, as it says.  Raises GuestFileError when it is none."""
        with self._found(path, follow=False) as fd:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                raise GuestFileError(f"{path} in the guest is no link")
            return os.fsdecode(os.readlink("", dir_fd=fd))

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        with self._found(path) as fd:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise FileNotFoundError(errno.ENOTDIR, "no directory in the guest", path)
            try:
                return sorted(os.listdir(f"/proc/self/fd/{fd}"))
            except OSError as error:
                raise _explained(path, error) from error

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A regular file, for reading."""
        with self._regular(path, os.O_RDONLY) as fd:
            yield fd

    @contextmanager
    def _regular(self, path: str, flags: int) -> Iterator[int]:
        with self._found(path) as found:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise GuestFileError(f"{path} in the guest is no regular file")
            # Through the descriptor that was looked at: it is the same file, whatever happens.
            try:
                fd = os.open(f"/proc/self/fd/{found}", flags | os.O_CLOEXEC)
            except OSError as error:
                raise _explained(path, error) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def read(self, path: str, most: int = TEXT_MOST) -> bytes:
        """All of a file.  Raises GuestFileError when it is longer than ``most`` bytes."""
        with self.opened(path) as fd:
            size = os.fstat(fd).st_size
            if size > most:
                raise GuestFileError(f"{path} in the guest is too long to be read: {size} bytes")
            return self._read(fd, path, size, 0)

    def read_part(self, path: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer at the end."""
        with self.opened(path) as fd:
            return self._read(fd, path, length, start)

    @staticmethod
    def _read(fd: int, path: str, length: int, start: int) -> bytes:
        parts, at = [], start
        while at < start + length:
            try:
                part = os.pread(fd, start + length - at, at)
            except OSError as error:
                raise _explained(path, error) from error
            if not part:
                break
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def free_space(self, path: str) -> tuple[int, int]:
        """Of the file system on which a directory is: its device number, and bytes."""
        with self.directory(path) as fd:
            found = os.fstatvfs(fd)
            return os.fstat(fd).st_dev, found.f_bavail * found.f_frsize

    def label(self, path: str) -> bytes | None:
        """The SELinux label, if the file has one."""
        with self._found(path) as fd:
            try:
                return os.getxattr(f"/proc/self/fd/{fd}", _LABEL)
            except OSError:
                return None

    # Changing: only ``apply`` does that

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """A directory, for the calls that take one (dir_fd); names must have no slash then."""
        try:
            fd = _openat2(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, "not in the guest", path) from error
        except OSError as error:
            raise _explained(path, error) from error
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def writable(self, path: str) -> Iterator[int]:
        """A regular file that is there, for reading and writing."""
        with self._regular(path, os.O_RDWR) as fd:
            yield fd


def _status_of(fd: int) -> Status:
    found = os.fstat(fd)
    return Status(found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_nlink)


def _explained(path: str, error: OSError) -> FixupError:
    if error.errno == errno.ENOSYS:
        return FixupError(
            f"this kernel ({platform.release()}) has no openat2(2), which keeps links in the guest",
            hint="Linux 5.6 or newer is needed",
        )
    return GuestFileError(f"{path} in the guest can't be read: {error.strerror}")
