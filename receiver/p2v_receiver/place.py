"""Where the files of a job are, and how one gets there: all of it or none (P9, P10).

What is found there is never deleted or overwritten before it is known to be ours: what can't be
used is moved aside within the same directory.
"""

import contextlib
import os
import re
import stat
import time

from .target import TargetError, from_oserror, sync_directory
from .wire import Buffer, ErrorCode

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,99}")


def check_name(name: str, what: str) -> None:
    """Raises TargetError unless ``name`` is a plain file name (P10)."""
    if _NAME.fullmatch(name) is None:
        raise TargetError(
            ErrorCode.REFUSED,
            "{!r} can't be the name of a {}".format(name[:120], what),
            "letters, digits and . _ + @ - are allowed, and no leading dot",
        )


class Place:
    """The files of one disk of one job."""

    def __init__(self, root: str, job: str, disk: str) -> None:
        check_name(job, "job")
        check_name(disk, "disk")
        self.directory = os.path.join(root, job)
        base = os.path.join(self.directory, disk)
        self.image = base + ".img"
        self.manifest = base + ".manifest"
        self.lock = base + ".lock"
        self.map = base + ".map"
        self.delta = base + ".delta"
        self.undo = base + ".undo"
        self.qcow2 = base + ".qcow2"

    def make_directory(self, root: str) -> None:
        """The job's directory; a link in its place is refused (P10).

        Of ``root`` only the last part is made: a mistyped path must not fill some other disk.
        """
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(root)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.directory, 0o700)
                sync_directory(root)
            if not stat.S_ISDIR(os.lstat(self.directory).st_mode):
                raise TargetError(
                    ErrorCode.REFUSED,
                    "{} is not a directory".format(self.directory),
                    "move it away on the host, or use another --job",
                )
        except FileNotFoundError as error:
            raise TargetError(
                ErrorCode.REFUSED,
                "there is no directory {} to make {} in".format(
                    os.path.dirname(os.path.abspath(root)), os.path.basename(root)
                ),
                "check the path, and whether its disk is mounted",
            ) from error
        except OSError as error:
            raise from_oserror(error, "making", self.directory) from error

    def move_aside(self, path: str) -> str:
        """Rename a file that can't be used; returns its new name."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = "{}.aside-{}".format(path, stamp)
        number = 0
        while os.path.lexists(name):
            number += 1
            name = "{}.aside-{}-{}".format(path, stamp, number)
        try:
            os.rename(path, name)
            sync_directory(self.directory)
        except OSError as error:
            raise from_oserror(error, "moving aside", path) from error
        return os.path.basename(name)


class Draft:
    """A file in the making: under its name there is always all of it, or the one before.

    Raises TargetError.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = path + ".new"
        self._is_kept = False
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.name)
            self._fd = os.open(self.name, flags, 0o600)
        except OSError as error:
            raise from_oserror(error, "making", self.name) from error

    def write(self, data: Buffer) -> None:
        """Append."""
        try:
            view = memoryview(data)
            while len(view):
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise from_oserror(error, "writing", self.name) from error

    def keep(self) -> None:
        """It is whole: make it durable, and then its name."""
        try:
            self._flush()
            self._rename()
            self._is_kept = True
            self._flush_name()
        except OSError as error:
            raise from_oserror(error, "keeping", self.path) from error

    def _flush(self) -> None:
        os.fsync(self._fd)

    def _rename(self) -> None:
        os.rename(self.name, self.path)

    def _flush_name(self) -> None:
        sync_directory(os.path.dirname(self.path))

    def close(self) -> None:
        """What was not kept is gone."""
        os.close(self._fd)
        if not self._is_kept:
            with contextlib.suppress(OSError):
                os.unlink(self.name)
