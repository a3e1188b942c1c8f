"""The sender's end of a session: one disk's control connection and its bulk streams.

Each connection has a reader thread here.  The first failure, wherever it happens, ends the session:
it is raised from every call that waits or sends from then on.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from p2v_receiver import codec, wire
from p2v_receiver.wire import ErrorCode, Frame, FrameType, Json, Layout
from p2v_sync import __version__
from p2v_sync.engine.ports import Channel, Dialer, Limiter
from p2v_sync.errors import (
    IntegrityError,
    P2vError,
    ProtocolError,
    ReceiverError,
    SourceIsTarget,
    TargetChanged,
    TargetFull,
    TargetIOError,
    TargetLocked,
    TargetReadOnly,
    TargetRefused,
    TargetTaken,
    VersionMismatch,
    WrongPhase,
)
from p2v_sync.extent import Extent, merged
from p2v_sync.records import TargetState

_TEXT_MOST = 2000  # characters of what a receiver wants the operator to read
_NAME_MOST = 100
_LOGS_MOST = 1000  # messages before an answer

ERROR_CLASSES: dict[ErrorCode, type[P2vError]] = {
    ErrorCode.INTERNAL: ReceiverError,
    ErrorCode.PROTOCOL: ProtocolError,
    ErrorCode.VERSION: VersionMismatch,
    ErrorCode.REFUSED: TargetRefused,
    ErrorCode.LOCKED: TargetLocked,
    ErrorCode.TAKEN: TargetTaken,
    ErrorCode.CHANGED: TargetChanged,
    ErrorCode.READ_ONLY: TargetReadOnly,
    ErrorCode.SAME_FILE: SourceIsTarget,
    ErrorCode.PHASE: WrongPhase,
    ErrorCode.FULL: TargetFull,
    ErrorCode.IO: TargetIOError,
    ErrorCode.INTEGRITY: IntegrityError,
}


@dataclass(frozen=True)
class OpenRequest:
    """What is asked of the receiver; ``None``: as its manifest has it, else its choice."""

    job: str
    disk: str
    size: int
    run: str  # names this process, so that a reconnect may end its own former session
    block_size: int | None = None
    digest: str | None = None
    source_file: Json | None = None
    create: bool = True
    take_back: bool = False  # what was applied to the image; only of a disk that is the image's

    def to_json(self) -> Json:
        return {
            "job": self.job,
            "disk": self.disk,
            "size": self.size,
            "run": self.run,
            "block_size": self.block_size,
            "digest": self.digest,
            "digests": codec.digest_names(),
            "source_file": self.source_file or {},
            "create": self.create,
            "take_back": self.take_back,
        }


@dataclass(frozen=True)
class Target:
    """What the receiver said of the image in OPENED."""

    session: str
    token: str
    window: int
    state: TargetState
    layout: Layout
    digest: str
    seed: int
    created: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    pass_number: int
    pass_complete: bool
    quiesced: bool
    unreadable: tuple[Extent, ...]
    source: Json | None

    @property
    def pass_due(self) -> int:
        """The number of the pass to work on: an incomplete one goes on."""
        return self.pass_number + int(self.pass_complete)

    @classmethod
    def from_json(cls, message: Json, size: int) -> "Target":
        """Raises wire.ProtocolError for what an honest receiver would not say."""
        block_size = wire.get(message, "block_size", int)
        if not wire.is_block_size(block_size):
            raise wire.ProtocolError(f"blocks of {block_size} bytes are not possible")
        digest = wire.get(message, "digest", str)
        if digest not in codec.digest_names():
            raise wire.ProtocolError(f"digest {digest[:40]!r} is not one we offered")
        source = message.get("source")
        return cls(
            session=wire.get(message, "session", str),
            token=wire.get(message, "token", str),
            window=wire.get_int(message, "window", low=2 * wire.MAX_BODY, high=1 << 32),
            state=_target_state(message, _get_name(message, "image")),
            layout=Layout(size, block_size),
            digest=digest,
            seed=wire.get_int(message, "seed", high=(1 << 64) - 1),
            created=wire.get(message, "created", bool),
            reasons=tuple(printable(text) for text in wire.get_names(message, "reasons")),
            notes=tuple(
                printable(text) for text in wire.get_names({"notes": [], **message}, "notes")
            ),
            pass_number=wire.get_int(message, "pass_number", high=1 << 32),
            pass_complete=wire.get(message, "pass_complete", bool),
            quiesced=wire.get(message, "quiesced", bool),
            unreadable=_unreadable(message, size),
            source=source if isinstance(source, dict) else None,
        )


def _target_state(message: Json, image: str) -> TargetState:
    return TargetState(
        image,
        wire.get_int(message, "generation"),
        _get_name(message, "commit"),
    )


def _get_name(message: Json, name: str) -> str:
    """A field that goes into the ledger.  Raises wire.ProtocolError."""
    value = wire.get(message, name, str)
    if len(value) > _NAME_MOST or not (value.isascii() and value.isprintable()):
        raise wire.ProtocolError(f"field {name!r} is not a plain name")
    return value


def _unreadable(message: Json, size: int) -> tuple[Extent, ...]:
    extents = [Extent(*pair) for pair in wire.get_pairs(message, "unreadable")]
    if any(extent.end > size for extent in extents):
        raise wire.ProtocolError("field 'unreadable' names places that are not on this disk")
    return tuple(merged(extents))


def printable(text: str) -> str:
    """What a receiver says, made fit for a terminal and the ledger."""
    return "".join(each if each.isprintable() else " " for each in text[:_TEXT_MOST])


@dataclass(frozen=True)
class Commit:
    """A COMMITTED acknowledgement: these segments are durable as sent (P2)."""

    state: TargetState
    complete: Sequence[tuple[int, int]]  # (first, count) of segments
    number: int | None  # of the checkpoint, on its last frame


@dataclass
class Question:
    """Which digests do the pages of these blocks have at the target?"""

    blocks: wire.BlockSet
    length: int  # of the answer
    wire: int  # bytes that question and answer take on the link
    answer: bytes | None = None

    @property
    def is_answered(self) -> bool:
        return self.answer is not None


class BulkStream:
    """One connection as workers use it: frames out, within the window and the rate."""

    def __init__(self, session: "Session", channel: Channel, limiter: Limiter) -> None:
        self._session = session
        self._channel = channel
        self._limiter = limiter
        self.outstanding_frames = 0
        self.outstanding = 0  # bytes

    def send(self, kind: FrameType, meta: bytes, body: bytes | memoryview = b"") -> int:
        """Send one bulk frame when there is room; returns the bytes it took on the link."""
        self._session.reserve(self, len(body))
        return self.ask(kind, meta, body)

    def acknowledge(self, written: wire.Written) -> None:
        """The session's lock is held.  Raises wire.ProtocolError."""
        self.outstanding_frames -= written.frames
        self.outstanding -= written.length
        is_absurd = self.outstanding < 0 or self.outstanding_frames < 0
        if is_absurd or (self.outstanding and not self.outstanding_frames):
            raise wire.ProtocolError("something else was acknowledged than was sent")

    def ask_pages(self, blocks: wire.BlockSet) -> Question:
        """Ask for the digests of these blocks' pages; ``answer_to`` waits for them."""
        question = self._session.expect_pages(blocks)
        question.wire += self.ask(FrameType.ASK_PAGES, blocks.pack())
        return question

    def answer_to(self, question: Question) -> bytes:
        """The packed digests."""
        return self._session.wait_pages(question)

    def ask(self, kind: FrameType, meta: bytes, body: bytes | memoryview = b"") -> int:
        """Send a frame that has an answer of its own, so that it takes no room."""
        self._limiter.take(len(meta) + len(body) + wire.HEADER.size)
        return self._session.guard(self._channel.send, kind, meta, body)


def greet(channel: Channel) -> Json:
    """HELLO, and the WELCOME that answers it.  Raises P2vError, wire.ProtocolError."""
    hello = {
        "version": wire.VERSION,
        "oldest": wire.VERSION,
        "software": __version__,
        "digests": codec.digest_names(),
        "codecs": codec.codec_names(),
    }
    channel.send(FrameType.HELLO, wire.pack_json(hello))
    welcome = expect(channel, FrameType.WELCOME)
    if wire.get_int(welcome, "version") != wire.VERSION:
        raise VersionMismatch(
            f"the receiver answers with protocol {welcome['version']}, not {wire.VERSION}",
            hint="use the same version of p2v-sync on both ends",
        )
    return welcome


def expect(channel: Channel, kind: FrameType) -> Json:
    """The next frame that is no LOG, which must be a ``kind``.  Raises as ``greet``."""
    for _ in range(_LOGS_MOST):
        frame = channel.receive()
        if frame.kind is FrameType.ERROR:
            raise receiver_error(frame)
        if frame.kind is kind:
            return wire.unpack_json(frame.meta)
        if frame.kind is not FrameType.LOG:
            raise wire.ProtocolError(f"{frame.kind.name} came instead of {kind.name}")
    raise wire.ProtocolError(f"only LOG messages came instead of {kind.name}")


class Session:
    """An opened disk at the receiver.

    Every method raises the session's first failure: a TransportError when the link went, what the
    receiver said otherwise.
    """

    def __init__(self, dialer: Dialer, limiter: Limiter) -> None:
        self._dialer = dialer
        self._limiter = limiter
        self.on_commit: Callable[[Commit], None] | None = None
        self.on_refused: Callable[[wire.BlockSet], None] | None = None
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._channels: list[Channel] = []
        self._readers: list[threading.Thread] = []
        self._asked: set[int] = set()  # segments; what nobody asked for is not kept
        self._entries: dict[int, bytes] = {}
        self._fetched: set[int] = set()
        self._verifying: dict[int, range] = {}  # number → blocks
        self._verified: dict[int, list[tuple[int, int]]] = {}
        self._questions: dict[wire.BlockSet, Question] = {}
        self._ended: Json | None = None
        self._is_beginning = False
        self._closed = 0
        self._checkpoints_sent = 0
        self._checkpoints_done = 0
        self.codecs: list[str] = []
        self.features: list[str] = []  # what the receiver can do beyond version 1
        self.streams: list[BulkStream] = []
        self.target: Target

    # Opening

    def open(self, request: OpenRequest, streams: int) -> Target:
        """Dial, open the disk, attach further connections.  Raises what went wrong."""
        try:
            control = self._dial()
            control.send(FrameType.OPEN, wire.pack_json(request.to_json()))
            message = expect(control, FrameType.OPENED)
            self.target = Target.from_json(message, request.size)
            self._add_stream(control, carries_bulk=not control.bulk)
            for channel in self._further(control, streams):
                attach = {"session": self.target.session, "token": self.target.token}
                channel.send(FrameType.ATTACH, wire.pack_json(attach))
                expect(channel, FrameType.ATTACHED)
                self._add_stream(channel, carries_bulk=True)
        except wire.ProtocolError as error:
            self.abort(ProtocolError(str(error)))
            raise ProtocolError(str(error)) from error
        except BaseException as error:
            self.abort(error)
            raise
        return self.target

    def _further(self, control: Channel, streams: int) -> Iterator[Channel]:
        if control.bulk:
            yield from map(self._greet, control.bulk)
        else:
            for _ in range(min(streams, self._dialer.max_streams) - 1):
                yield self._dial()

    def _dial(self) -> Channel:
        return self._greet(self._dialer.dial())

    def _greet(self, channel: Channel) -> Channel:
        self._channels.append(channel)
        self.check()  # an abort() meanwhile did not close this one
        welcome = greet(channel)
        self.features = wire.get_names(welcome, "features")
        theirs = wire.get_names(welcome, "codecs")
        self.codecs = [name for name in codec.codec_names() if name in theirs]
        return channel

    def _add_stream(self, channel: Channel, *, carries_bulk: bool) -> None:
        stream = BulkStream(self, channel, self._limiter)
        if carries_bulk:
            self.streams.append(stream)
        reader = threading.Thread(
            target=self._read, args=(channel, stream), name="reader", daemon=True
        )
        self._readers.append(reader)
        reader.start()

    # Reading

    def _read(self, channel: Channel, stream: BulkStream) -> None:
        try:
            while self._handle(channel.receive(), stream):
                pass
        except wire.ProtocolError as error:
            self.abort(ProtocolError(str(error)))
        except Exception as error:  # noqa: BLE001 - raised again from whoever waits
            self.abort(error)

    def _handle(self, frame: Frame, stream: BulkStream) -> bool:
        """Take one frame in.  False after the last one of a connection."""
        if frame.kind is FrameType.ERROR:
            raise receiver_error(frame)
        if frame.kind is FrameType.COMMITTED:
            self._handle_commit(wire.unpack_json(frame.meta))
            return True
        if frame.kind is FrameType.REFUSED:
            self._handle_refused(wire.BlockSet.unpack(frame.meta))
            return True
        with self._changed:
            if frame.kind is FrameType.WRITTEN:
                stream.acknowledge(wire.Written.unpack(frame.meta))
            elif frame.kind is FrameType.BEGUN:
                if not self._is_beginning:
                    raise wire.ProtocolError("BEGUN came for what was not begun")
                self._is_beginning = False
            elif frame.kind is FrameType.ENDED:
                self._ended = wire.unpack_json(frame.meta)
            elif frame.kind is FrameType.CLOSED:
                self._closed += 1
            else:
                self._handle_answer(frame)
            self._changed.notify_all()
        return frame.kind is not FrameType.CLOSED

    def _handle_answer(self, frame: Frame) -> None:
        """What was asked for.  The lock is held."""
        if frame.kind is FrameType.DIGESTS:
            self._handle_digests(wire.Segments.unpack(frame.meta), bytes(frame.body))
        elif frame.kind is FrameType.PAGE_DIGESTS:
            self._handle_pages(wire.BlockSet.unpack(frame.meta), bytes(frame.body))
        elif frame.kind is FrameType.VERIFIED:
            self._handle_verified(wire.unpack_json(frame.meta))

    def _handle_digests(self, segments: wire.Segments, entries: bytes) -> None:
        numbers = range(segments.first, segments.first + segments.total)
        if len(numbers) > len(self._asked) or not self._asked.issuperset(numbers):
            raise wire.ProtocolError("DIGESTS came for segments that were not asked for")
        if entries:
            blocks = self.target.layout.blocks_in(segments.first)
            if segments.total != 1 or len(entries) != wire.ENTRY_SIZE * blocks:
                raise wire.ProtocolError("DIGESTS of the wrong length")
            self._entries[segments.first] = entries
        self._asked.difference_update(numbers)
        self._fetched.update(numbers)

    def _handle_verified(self, message: Json) -> None:
        number = wire.get_int(message, "number")
        wrong = wire.get_pairs(message, "wrong")
        blocks = self._verifying.pop(number, None)
        if blocks is None:
            raise wire.ProtocolError("VERIFIED came for what was not asked")
        if any(
            not total or first not in blocks or first + total > blocks.stop
            for first, total in wrong
        ):
            raise wire.ProtocolError("VERIFIED names blocks that were not asked for")
        self._verified[number] = wrong

    def _handle_pages(self, blocks: wire.BlockSet, digests: bytes) -> None:
        question = self._questions.pop(blocks, None)
        if question is None:
            raise wire.ProtocolError("PAGE_DIGESTS came for what was not asked")
        if len(digests) != question.length:
            raise wire.ProtocolError("PAGE_DIGESTS of the wrong length")
        question.answer = digests

    def _handle_refused(self, blocks: wire.BlockSet) -> None:
        if self.on_refused is None:
            raise wire.ProtocolError("REFUSED came before anything was sent")
        self.on_refused(blocks)

    def _handle_commit(self, message: Json) -> None:
        complete = wire.get_pairs(message, "complete")
        if sum(count for _, count in complete) > self.target.layout.segments:
            raise wire.ProtocolError("COMMITTED names more segments than there are")
        state = _target_state(message, self.target.state.image)
        if self.on_commit is None or not self.checkpoint_pending:
            raise wire.ProtocolError("COMMITTED came before a checkpoint was asked for")
        number = None
        if message.get("number") is not None:
            due = self._checkpoints_done + 1
            number = wire.get_int(message, "number", low=due, high=due)
        self.on_commit(Commit(state, complete, number))
        if number is not None:
            with self._changed:
                self._checkpoints_done = number
                self._changed.notify_all()

    # Failing

    def abort(self, error: BaseException) -> None:
        """End the session now; ``error`` is what everybody waiting gets, unless one came before."""
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()
        for channel in self._channels:
            channel.close()

    def guard(self, call: Callable[..., int], *arguments: Any) -> int:
        """Call into a channel; a failure is the session's, whose first one tells more."""
        try:
            return call(*arguments)
        except wire.ProtocolError as error:
            self.abort(ProtocolError(str(error)))
        except P2vError as error:
            # The receiver may have said why it hung up: let its ERROR be read first.
            self.join_readers()
            self.abort(error)
        self.check()
        raise AssertionError("a failed session has a failure")

    def check(self) -> None:
        """Raise the session's failure, if it has one."""
        if self._failure is not None:
            raise self._failure

    def join_readers(self) -> None:
        """Until nothing that came in is worked on any more."""
        for reader in self._readers:
            if reader is not threading.current_thread():
                reader.join(2.0)

    def _wait(self, condition: Callable[[], object]) -> None:
        """The lock is held.  Until ``condition`` holds; raises the session's failure."""
        self._changed.wait_for(lambda: self._failure is not None or condition())
        self.check()

    # Speaking

    def reserve(self, stream: BulkStream, length: int) -> None:
        """Wait until ``length`` more bytes fit into the stream's window."""
        with self._changed:
            self._wait(lambda: stream.outstanding + length <= self.target.window)
            stream.outstanding += length
            stream.outstanding_frames += 1

    def _send_control(self, kind: FrameType, meta: bytes) -> None:
        self.guard(self._channels[0].send, kind, meta)

    def begin(self, kind: str, source: Json) -> None:
        """A pass begins or goes on."""
        self._is_beginning = True
        self._send_control(FrameType.BEGIN, wire.pack_json({"kind": kind, "source": source}))
        # What goes over the other connections could overtake it.
        with self._changed:
            self._wait(lambda: not self._is_beginning)

    def fetch(self, first: int, total: int) -> None:
        """Ask what the target holds in these segments; ``entries`` waits for the answer."""
        with self._changed:
            self._asked.update(range(first, first + total))
        self._send_control(FrameType.FETCH, wire.Segments(first, total).pack())

    def entries(self, first: int, total: int) -> dict[int, bytes]:
        """The fetched entries of these segments; those that are all zero are left out."""
        wanted = range(first, first + total)
        with self._changed:
            self._wait(lambda: self._fetched.issuperset(wanted))
            self._fetched.difference_update(wanted)
            return {
                number: self._entries.pop(number) for number in wanted if number in self._entries
            }

    def expect_pages(self, blocks: wire.BlockSet) -> Question:
        """The answer to a question that goes out next."""
        layout = self.target.layout
        pages = 0
        for block in blocks.blocks:
            start, end = layout.extent(block, 1)
            pages += -(-(end - start) // wire.PAGE_SIZE)
        length = pages * wire.PAGE_DIGEST_SIZE
        answer_wire = wire.HEADER.size + len(blocks.pack()) + length
        question = Question(blocks, length, answer_wire)
        with self._changed:
            self._questions[blocks] = question
        return question

    def wait_pages(self, question: Question) -> bytes:
        with self._changed:
            self._wait(lambda: question.is_answered)
        return cast(bytes, question.answer)

    def checkpoint(self) -> int:
        """Ask for a durable checkpoint; returns its number."""
        with self._changed:
            self._checkpoints_sent += 1
            number = self._checkpoints_sent
        self._send_control(FrameType.CHECKPOINT, wire.pack_number(number))
        return number

    @property
    def checkpoint_pending(self) -> bool:
        return self._checkpoints_done < self._checkpoints_sent

    def wait_checkpoint(self, number: int) -> None:
        with self._changed:
            self._wait(lambda: self._checkpoints_done >= number)

    def drain(self) -> None:
        """Until the receiver has handled every bulk frame."""
        with self._changed:
            self._wait(lambda: not any(stream.outstanding_frames for stream in self.streams))

    def end(self, message: Json) -> TargetState:
        """The end record (P7): returns the state of the finished target."""
        self._ended = None
        self._send_control(FrameType.END, wire.pack_json(message))
        with self._changed:
            self._wait(lambda: self._ended is not None)
            ended = cast(Json, self._ended)
        if ended.get("digest") != message["digest"]:
            raise IntegrityError("the receiver ended the pass with another digest")
        try:
            return _target_state(ended, self.target.state.image)
        except wire.ProtocolError as error:
            raise ProtocolError(str(error)) from error

    def verify(
        self, stream: BulkStream, number: int, first: int, total: int, digests: bytes
    ) -> None:
        """Ask for blocks to be read back; ``wait_verified`` has the answer to ``number``."""
        with self._changed:
            self._verifying[number] = range(first, first + total)
        stream.ask(FrameType.VERIFY, wire.Verify(number, first, total).pack(), digests)

    def wait_verified(self, number: int) -> list[tuple[int, int]]:
        """``(first, count)`` runs of blocks that were wrong."""
        with self._changed:
            self._wait(lambda: number in self._verified)
            return self._verified.pop(number)

    def close(self) -> None:
        """Part in due form: everything is said.  The control connection goes last."""
        self._say_goodbye(self._channels[1:])
        self._say_goodbye(self._channels[:1])
        for channel in self._channels:
            channel.close()

    def _say_goodbye(self, channels: Sequence[Channel]) -> None:
        expected = self._closed + len(channels)
        for channel in channels:
            self.guard(channel.send, FrameType.CLOSE)
        with self._changed:
            self._wait(lambda: self._closed == expected)


def receiver_error(frame: Frame) -> P2vError:
    """An ERROR frame as the exception it stands for."""
    message = wire.unpack_json(frame.meta)
    try:
        kind = ERROR_CLASSES[ErrorCode(wire.get_int(message, "code"))]
    except ValueError:
        kind = ReceiverError
    hint = message.get("hint")
    return kind(
        f"receiver: {printable(wire.get(message, 'message', str))}",
        hint=printable(hint) if isinstance(hint, str) and hint else None,
    )
