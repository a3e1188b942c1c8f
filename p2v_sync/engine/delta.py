"""The sender's end of a cutover: one disk's delta sent, applied, taken back; its definitions kept.

One connection, one question at a time.  Every action can be repeated: what was done is done.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from p2v_receiver import codec, wire
from p2v_receiver.wire import FrameType, Json, Run, Runs
from p2v_sync.engine.compression import Compressor, make_compressor
from p2v_sync.engine.ports import Channel, Dialer, Limiter
from p2v_sync.engine.session import OpenRequest, Target, expect, greet, printable
from p2v_sync.errors import IntegrityError, P2vError, PeerLost, ProtocolError, VersionMismatch

Chunk = tuple[int, bytes]  # offset, content

_NUMBER_MOST = 1 << 40  # as seconds it is a date still (gmtime(3))


@dataclass(frozen=True)
class Kept:
    """A whole delta at the receiver."""

    runs: int
    length: int
    digest: str
    is_current: bool  # it belongs to the replica as it is


@dataclass(frozen=True)
class Status:
    """Where a disk stands at the receiver."""

    phase: str  # "": the image is the replica; "applied", "qcow2"; "applying", "undoing": neither
    delta: Kept | None
    refusal: str  # why it can't be cut over (P11); "": it can
    unreadable: int  # bytes that are zeros because they could not be read (P12)
    programs: tuple[str, ...]  # that define and start machines there
    files: tuple[str, ...]  # definitions that are kept there
    directory: str  # of the images, absolute
    reached: int | None = None  # segments up to the last one that is known; None: it doesn't say
    since: int | None = None  # when the manifest was written, seconds since 1970

    @classmethod
    def from_json(cls, message: Json) -> "Status":
        """Raises wire.ProtocolError."""
        kept = message.get("delta")
        if not isinstance(kept, dict | None):
            raise wire.ProtocolError("field 'delta' is no object")
        return cls(
            phase=printable(wire.get(message, "phase", str)),
            delta=None if kept is None else _kept(kept),
            refusal=printable(wire.get(message, "refusal", str)),
            unreadable=wire.get_int(message, "unreadable"),
            programs=tuple(map(printable, wire.get_names(message, "programs"))),
            files=tuple(map(printable, wire.get_names(message, "files"))),
            directory=wire.get(message, "directory", str),
            reached=_get_optional(message, "reached"),
            since=_get_optional(message, "since"),
        )


def _get_optional(message: Json, name: str) -> int | None:
    return wire.get_int(message, name, high=_NUMBER_MOST) if name in message else None


def _kept(message: Json) -> Kept:
    return Kept(
        wire.get_int(message, "runs"),
        wire.get_int(message, "bytes"),
        wire.get(message, "digest", str),
        wire.get(message, "current", bool),
    )


class CutoverSession:
    """A disk that is opened at the receiver for what comes after the passes.

    Every method raises P2vError; after one that did the session is over.
    """

    def __init__(self, dialer: Dialer, limiter: Limiter) -> None:
        self._dialer = dialer
        self._limiter = limiter
        self._channel: Channel | None = None
        self._compressor: Compressor
        self.target: Target

    def open(self, request: OpenRequest) -> None:
        """Dial and open the disk.  Nothing is taken back by that, and no image is made."""
        channel = self._channel = self._dialer.dial()
        try:
            welcome = greet(channel)
            if wire.DELTA not in wire.get_names(welcome, "features"):
                raise VersionMismatch(
                    "the receiver is too old for a cutover",
                    hint="use the same version of p2v-sync on both ends",
                )
            theirs = wire.get_names(welcome, "codecs")
            self._compressor = make_compressor(
                "auto",
                [name for name in codec.codec_names() if name in theirs],
                is_local=self._dialer.is_local,
            )
            channel.send(FrameType.CUTOVER, wire.pack_json(request.to_json()))
            message = expect(channel, FrameType.OPENED)
            self.target = Target.from_json(message, request.size)
        except wire.ProtocolError as error:
            raise ProtocolError(str(error)) from error

    def hang_up(self) -> None:
        """Part without a word: ``listen --once`` ends after the first session that is closed."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Part in due form, as far as that is possible after a failure."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        with contextlib.suppress(P2vError, wire.ProtocolError):
            channel.send(FrameType.CLOSE)
            while channel.receive().kind not in (FrameType.CLOSED, FrameType.ERROR):
                pass
        channel.close()

    def _act(self, action: str, fields: Json | None = None, body: bytes = b"") -> Json:
        channel = self._channel
        if channel is None:
            raise ProtocolError("the session is over")
        try:
            meta = wire.pack_json({**(fields or {}), "action": action})
            _send(channel, FrameType.ACT, meta, body)
            return expect(channel, FrameType.ACTED)
        except wire.ProtocolError as error:
            raise ProtocolError(str(error)) from error

    def _status(self, message: Json) -> Status:
        try:
            return Status.from_json(message)
        except wire.ProtocolError as error:
            raise ProtocolError(str(error)) from error

    def status(self) -> Status:
        return self._status(self._act("status"))

    def send_delta(self, chunks: Iterable[Chunk], *, number: int, chunk_size: int) -> Kept:
        """All that differs from the replica as pass ``number`` left it.

        ``chunks`` in ascending order, none overlapping another one, each at a multiple of
        ``chunk_size`` and, but at the end of the disk, of so many bytes or a multiple of it.  The
        receiver refuses others.  It replaces the delta that is there; until the end record is
        agreed on that one stays (P7).
        """
        size = self.target.layout.size
        base = {"image": self.target.state.image, "pass": number, "size": size}
        self._act("delta", {**base, "chunk_size": chunk_size})
        tally = codec.Tally()
        for batch in _batches(chunks):
            self._send_runs(batch, tally)
        end = tally.end_record()
        kept = self._status(self._act("end", end)).delta
        said = (end["runs"], end["bytes"], end["digest"])
        if kept is None or (kept.runs, kept.length, kept.digest) != said:
            raise IntegrityError("the receiver ended the delta with another end record")
        return kept

    def _send_runs(self, batch: list[Chunk], tally: codec.Tally) -> None:
        runs = [Run(start, len(data), codec.entries_digest(data)) for start, data in batch]
        for run in runs:
            tally.add(run)
        raw = bytearray().join(data for _, data in batch)
        number, body = self._compressor.body(memoryview(raw))
        meta = Runs(number, runs).pack()
        self._limiter.take(len(meta) + len(body) + wire.HEADER.size)
        channel = self._channel
        if channel is None:
            raise ProtocolError("the session is over")
        try:
            channel.send(FrameType.RUNS, meta, body)
        except PeerLost:
            # The receiver may have said why it hung up.
            with contextlib.suppress(PeerLost, wire.ProtocolError):
                expect(channel, FrameType.ACTED)
            raise

    def apply(self, mode: str) -> Status:
        """``mode``: "in-place" or "qcow2"."""
        return self._status(self._act("apply", {"mode": mode}))

    def roll_back(self) -> str:
        """The image is the replica again; returns the name under which an overlay was kept."""
        kept = self._act("rollback").get("kept")
        return printable(kept) if isinstance(kept, str) else ""

    def put(self, name: str, content: bytes) -> None:
        """Keep a file (.xml .cfg .sh .yaml .json .log, 1 MiB at most) beside the images."""
        self._act("put", {"name": name, "digest": codec.entries_digest(content).hex()}, content)

    def run(self, hypervisor: str, what: str, name: str) -> str | None:
        """Define, start or convert; returns what the program there said.

        None: it is not done after some seconds, and goes on; ask again.  It ends with the session.
        """
        fields = {"hypervisor": hypervisor, "what": what, "name": name}
        answer = self._act("run", fields).get("output")
        return printable(answer) if isinstance(answer, str) else None


def _send(channel: Channel, kind: FrameType, meta: bytes, body: memoryview | bytes) -> None:
    """A receiver that refuses says why and hangs up, perhaps while we still send: that counts."""
    try:
        channel.send(kind, meta, body)
    except PeerLost:
        with contextlib.suppress(PeerLost, wire.ProtocolError):
            expect(channel, FrameType.ACTED)
        raise


def _batches(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """As much as one frame takes; chunks that touch become one run."""
    batch: list[Chunk] = []
    room = wire.MAX_REQUEST
    for start, data in _joined(chunks):
        if batch and (len(data) > room or len(batch) == wire.MAX_RUNS):
            yield batch
            batch, room = [], wire.MAX_REQUEST
        batch.append((start, data))
        room -= len(data)
    if batch:
        yield batch


def _joined(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    start, data = 0, bytearray()
    for at, chunk in chunks:
        if data and (at != start + len(data) or len(data) + len(chunk) > wire.MAX_REQUEST):
            yield start, bytes(data)
            data = bytearray()
        if not data:
            start = at
        data += chunk
    if data:
        yield start, bytes(data)
