"""A delta as a file: runs of a disk that are others than in the replica, or were before (undo).

::

    "P2VDELTA", version (1 byte)
    parts: kind (1 byte), meta length (4), body length (4), meta, body
        "H"  once, first: JSON {image, pass, size, chunk_size}: which replica it belongs to
        "R"  a RUNS frame (wire.Runs) as it came
        "E"  once, last: JSON {runs, bytes, digest}, the end record

Without its end record it is no delta (P7).  The digest is taken of all (start, digest) in order.
"""

import contextlib
import os
import struct
from typing import Iterator, List, NamedTuple, Tuple

from . import codec, wire
from .place import Draft
from .target import TargetError, from_oserror
from .wire import Buffer, ErrorCode, Json, ProtocolError, Run, Runs

_MAGIC = b"P2VDELTA\x01"
_PART = struct.Struct("!cII")
_HEADER, _RUNS, _END = b"H", b"R", b"E"


class Base(NamedTuple):
    """Which replica a delta belongs to: that of an image as a pass left it."""

    image: str  # uuid
    number: int  # of the pass
    size: int  # bytes of the disk
    chunk_size: int  # bytes; where runs may begin and end

    def to_json(self) -> Json:
        return {
            "image": self.image,
            "pass": self.number,
            "size": self.size,
            "chunk_size": self.chunk_size,
        }

    @classmethod
    def from_json(cls, message: Json) -> "Base":
        """Raises ProtocolError."""
        base = cls(
            wire.get(message, "image", str),
            wire.get_int(message, "pass"),
            wire.get_int(message, "size", low=1),
            wire.get_int(message, "chunk_size"),
        )
        if not wire.is_chunk_size(base.chunk_size):
            raise ProtocolError("chunks of {} bytes are not possible".format(base.chunk_size))
        return base


class Order(codec.Tally):
    """Counts and digests runs that are in order, on the disk, and apart."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self._base = base
        self._end = 0

    def add(self, run: Run) -> None:
        """Raises ProtocolError."""
        size, chunk_size = self._base.size, self._base.chunk_size
        if not run.length or run.start < self._end or run.end > size:
            raise ProtocolError(
                "run {}+{} is not on this disk, or not behind the one before".format(*run[:2])
            )
        if run.start % chunk_size or (run.end % chunk_size and run.end != size):
            raise ProtocolError("run {}+{} is not of whole chunks".format(*run[:2]))
        self._end = run.end
        super().add(run)


def pieces(runs: Runs, body: Buffer) -> Iterator[Tuple[Run, memoryview]]:
    """Each run and its bytes, which are what its digest says (P4).  Raises TargetError."""
    try:
        raw = codec.decompress(runs.codec, memoryview(body), runs.raw_length)
    except codec.CodecError as error:
        raise TargetError(ErrorCode.INTEGRITY, str(error)) from error
    at = 0
    for run in runs.runs:
        piece = raw[at : at + run.length]
        at += run.length
        if codec.entries_digest(piece) != run.digest:
            raise TargetError(
                ErrorCode.INTEGRITY,
                "run {}+{} of the delta is damaged: its digest differs".format(*run[:2]),
                "run the same command again; if it happens again, check both machines' memory",
            )
        yield run, piece


class Writer:
    """Writes a delta; ``keep`` gives it its name.  Raises TargetError, ProtocolError."""

    def __init__(self, path: str, base: Base) -> None:
        self._order = Order(base)
        self._draft = Draft(path)
        try:
            self._draft.write(_MAGIC)
            self._write(_HEADER, wire.pack_json(base.to_json()))
        except BaseException:
            self._draft.close()
            raise

    def _write(self, kind: bytes, meta: bytes, body: Buffer = b"") -> None:
        self._draft.write(_PART.pack(kind, len(meta), len(body)) + meta)
        self._draft.write(body)

    def add(self, runs: Runs, body: Buffer) -> None:
        """A part as it came over the wire, or as ``pack`` made it."""
        for run in runs.runs:
            self._order.add(run)
        self._write(_RUNS, runs.pack(), body)

    def end_record(self) -> Json:
        return self._order.end_record()

    def keep(self, said: Json) -> None:
        """P7: both sides must have counted and digested the same."""
        if not _agrees(said, self.end_record()):
            raise TargetError(
                ErrorCode.INTEGRITY,
                "the end record of the delta does not agree: {} here".format(self.end_record()),
                "run the same command again",
            )
        self._write(_END, wire.pack_json(self.end_record()))
        self._draft.keep()

    def close(self) -> None:
        self._draft.close()


def _agrees(said: Json, counted: Json) -> bool:
    return {name: said.get(name) for name in counted} == counted


class DeltaDamaged(TargetError):
    """The file is not there, or not a whole delta."""

    def __init__(self, path: str, why: str) -> None:
        text = "{} can't be used: {}".format(path, why)
        super().__init__(ErrorCode.CHANGED, text, "run p2v-sync sync: it makes the replica right")


class Delta:
    """A whole delta; its runs were counted, their bytes were not looked at yet.

    Raises DeltaDamaged, and TargetError when it can't be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._file = os.fdopen(os.open(path, flags), "rb")
        except FileNotFoundError as error:
            raise DeltaDamaged(path, "it is not there") from error
        except OSError as error:
            raise from_oserror(error, "opening", path) from error
        try:
            self.base, self.end = self._scan()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Delta":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Read all of it: what is damaged must be known before the first byte is used."""
        for _ in self.pieces():
            pass

    def pieces(self) -> Iterator[Tuple[Run, memoryview]]:
        """Each run and its bytes, in order."""
        with self._damage():
            for kind, meta, length in self._parts():
                if kind == _RUNS:
                    yield from pieces(Runs.unpack(meta), self._read(length))

    def runs(self) -> Iterator[Run]:
        """In order."""
        with self._damage():
            for kind, meta, length in self._parts():
                if kind == _RUNS:
                    yield from Runs.unpack(meta).runs
                    self._file.seek(length, os.SEEK_CUR)

    def _scan(self) -> Tuple[Base, Json]:
        with self._damage():
            parts = self._parts()
            kind, meta, _ = next(parts, (b"", b"", 0))
            if kind != _HEADER:
                raise ProtocolError("it has no header")
            base = Base.from_json(wire.unpack_json(meta))
            order = Order(base)
            for kind, meta, length in parts:
                if kind == _END:
                    break
                for run in self._runs_of(kind, meta):
                    order.add(run)
                self._file.seek(length, os.SEEK_CUR)
            end = order.end_record()
            if kind != _END or not _agrees(wire.unpack_json(meta), end):
                raise ProtocolError("it has no end record, or another one")
            return base, end

    def _runs_of(self, kind: bytes, meta: bytes) -> List[Run]:
        if kind != _RUNS:
            raise ProtocolError("a part of it is of unknown kind")
        return Runs.unpack(meta).runs

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            raise DeltaDamaged(self.path, str(error)) from error
        except TargetError as error:
            raise DeltaDamaged(self.path, error.message) from error
        except OSError as error:
            raise from_oserror(error, "reading", self.path) from error

    def _parts(self) -> Iterator[Tuple[bytes, bytes, int]]:
        """Kind, meta, and length of the body, which is for the caller to read or skip."""
        self._file.seek(0)
        if self._file.read(len(_MAGIC)) != _MAGIC:
            raise ProtocolError("it is not a delta")
        while True:
            head = self._file.read(_PART.size)
            if not head:
                return
            if len(head) != _PART.size:
                raise ProtocolError("it ends too early")
            kind, meta_length, length = _PART.unpack(head)
            if meta_length > wire.MAX_META or length > wire.MAX_BODY:
                raise ProtocolError("a part of it is too long")
            yield kind, self._read(meta_length), length

    def _read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise ProtocolError("it ends too early")
        return data
