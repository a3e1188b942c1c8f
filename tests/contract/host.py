"""The receiver's machine, which can lose its power: what was not flushed may be gone then.

Real files, but every write remembers what was there before until it is flushed.  The image's times
are replaced by a counter, because a file system may bring back an older time after a power cut,
just the one that the manifest knows.
"""

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from p2v_receiver import delta, qcow2, store
from p2v_receiver.manifest import Manifest
from p2v_receiver.place import Draft
from p2v_receiver.target import Image, TargetError
from p2v_receiver.wire import Buffer, ErrorCode

PART = 2048  # half of the smallest block


def _nothing() -> None:
    pass


class Host:
    """``dies_at``: the power goes at that operation (write, flush, commit) from now, 1 the next.

    ``going_down`` is called then; it has to cut the connections.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_dead = False
        self.dies_at: int | None = None
        self.operations = 0
        self.going_down: Callable[[], None] = _nothing
        self.versions: dict[int, int] = defaultdict(int)
        self._flushed: dict[int, int] = {}
        self._unflushed: list[tuple[str, int, bytes]] = []
        self._dropped: dict[tuple[str, int], bytes] = {}
        self.unnamed: dict[str, bytes | None] = {}  # path → what it was before its last rename
        self.torn: set[str] = set()  # files that got their name before they were flushed

    def step(self) -> None:
        """An operation that a dead machine does not do."""
        with self.lock:
            self.operations += 1
            if self.dies_at is not None and not self.is_dead:
                self.dies_at -= 1
                if self.dies_at <= 0:
                    self.is_dead = True
            if not self.is_dead:
                return
        self.going_down()
        raise TargetError(ErrorCode.IO, "the power is gone")

    def touch(self, path: str) -> None:
        """Somebody else changed the file, and flushed it."""
        number = os.stat(path).st_ino
        self.versions[number] += 1
        self._flushed[number] = self.versions[number]

    def wrote(self, image: Image, start: int, length: int) -> None:
        """About to change a range.  Its parts are lost one by one: a write may be torn."""
        before = os.pread(image.fd, length, start)
        for at in range(0, length, PART):
            self._unflushed.append((image.path, start + at, before[at : at + PART]))
            self._dropped.pop((image.path, start + at), None)
        self.versions[os.fstat(image.fd).st_ino] += 1

    def flushed(self, image: Image) -> None:
        self._unflushed = [each for each in self._unflushed if each[0] != image.path]
        number = os.fstat(image.fd).st_ino
        self._flushed[number] = self.versions[number]

    def drop_unflushed(self) -> None:
        """A flush failed: from now on the cache alone has it, and calls it clean."""
        for path, start, before in reversed(self._unflushed):
            self._dropped[path, start] = before
        self._unflushed = []

    def evict(self) -> None:
        """The cache forgets what it had alone, but for what was written again."""
        for (path, start), before in self._dropped.items():
            with open(path, "r+b") as file:
                file.seek(start)
                file.write(before)
        self._dropped = {}

    def come_back(self, *, is_lost: Callable[[], bool], time_goes_back: bool) -> None:
        """Power again.  ``is_lost`` is asked for every write that was not flushed."""
        for path, start, before in reversed(self._unflushed):
            if is_lost() and os.path.exists(path):
                with open(path, "r+b") as file:
                    file.seek(start)
                    file.write(before)
        self._unflushed = []
        for path in self.torn:
            os.truncate(path, os.path.getsize(path) // 2)
        for path, content in self.unnamed.items():
            if is_lost():
                os.unlink(path)
                if content is not None:
                    with open(path, "wb") as file:
                        file.write(content)
        self.torn, self.unnamed = set(), {}
        if time_goes_back:
            self.versions.update(self._flushed)
        self.is_dead = False
        self.dies_at = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The receiver's files are those of this machine."""
        image, manifest = _parts_of(self)
        draft = _draft_of(self)
        with (
            mock.patch.object(delta, "Draft", draft),
            mock.patch.object(qcow2, "Draft", draft),
            mock.patch.object(store, "Image", image),
            mock.patch.object(store, "Manifest", manifest),
        ):
            yield


def _parts_of(host: Host) -> tuple[type[Image], type[Manifest]]:
    class ForgetfulImage(Image):
        def identity(self) -> list[int]:
            status = os.fstat(self.fd)
            return [
                status.st_dev,
                status.st_ino,
                status.st_size,
                host.versions[status.st_ino],
            ]

        def write(self, data: memoryview, start: int) -> None:
            host.step()
            with host.lock:
                host.wrote(self, start, len(data))
                super().write(data, start)

        def make_zero(self, start: int, length: int) -> None:
            host.step()
            with host.lock:
                host.wrote(self, start, length)
                super().make_zero(start, length)

        def sync(self) -> None:
            host.step()
            with host.lock:
                super().sync()
                host.flushed(self)
            host.step()

    class MortalManifest(Manifest):
        @contextlib.contextmanager
        def _change(self, *arguments: Any) -> Iterator[None]:
            host.step()
            with super()._change(*arguments):
                yield

    return ForgetfulImage, MortalManifest


def _draft_of(host: Host) -> type[Draft]:
    class ForgetfulDraft(Draft):
        is_flushed = True

        def write(self, data: Buffer) -> None:
            host.step()
            self.is_flushed = False
            super().write(data)

        def _flush(self) -> None:
            host.step()
            super()._flush()
            self.is_flushed = True
            host.step()

        def _rename(self) -> None:
            host.step()
            there = os.path.exists(self.path)
            host.unnamed[self.path] = Path(self.path).read_bytes() if there else None
            super()._rename()
            if not self.is_flushed:
                host.torn.add(self.path)
            host.step()

        def _flush_name(self) -> None:
            super()._flush_name()
            host.unnamed.pop(self.path, None)
            host.step()

    return ForgetfulDraft
