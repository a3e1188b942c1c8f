"""The connections of one opened disk, and what is done with the frames that come over them.

One thread a connection; while a pass is made, one more to digest ahead and one to checkpoint.
"""

import contextlib
import queue
import secrets
import sys
import threading
import traceback
from typing import Any, Callable, Dict, List, Optional

from . import wire
from .cutover import Cutover
from .session import Session
from .stream import FrameStream, StreamLost
from .target import TargetError
from .wire import ErrorCode, Frame, FrameType, Json, ProtocolError

_MOST_REQUESTS = 4096  # of one kind, queued
_MOST_TEXT = 2000
_ACKNOWLEDGE = 4 * 1024 * 1024


def log(text: str) -> None:
    """One line for whoever runs the receiver."""
    sys.stderr.write("p2v-receiver: {}\n".format(text))
    sys.stderr.flush()


def error_message(error: BaseException) -> Json:
    """What an ERROR frame says of a failure."""
    if isinstance(error, TargetError):
        return _message(error.code, error.message, error.hint)
    if isinstance(error, ProtocolError):
        return _message(ErrorCode.PROTOCOL, str(error), "")
    log("this is a bug in the receiver:\n" + traceback.format_exc())
    text = "{}: {}".format(type(error).__name__, error)
    return _message(ErrorCode.INTERNAL, text, "please report this")


def _message(code: ErrorCode, text: str, hint: str) -> Json:
    # It may quote what the peer sent, and has to fit into a frame all the same.
    return {"code": int(code), "message": text[:_MOST_TEXT], "hint": hint}


class Live:
    """An opened disk and its connections."""

    def __init__(self, control: FrameStream, run: str) -> None:
        self.run = run
        self.id = secrets.token_hex(8)
        self.token = secrets.token_hex(16)
        self._control = control
        self._streams: List[FrameStream] = [control]
        self._changed = threading.Condition()
        self._closing = False

    def attach(self, stream: FrameStream) -> None:
        with self._changed:
            if self._closing:
                raise ProtocolError("the session is closing")
            self._streams.append(stream)

    def detach(self, stream: FrameStream) -> None:
        with self._changed:
            self._streams.remove(stream)
            self._changed.notify_all()

    def abort(self, reason: str) -> None:
        """Close all connections; their threads end by themselves."""
        with self._changed:
            self._closing = True
            streams = list(self._streams)
        for stream in streams:
            stream.abort(reason)

    def fail(self, error: BaseException) -> None:
        """Tell the sender why, on every connection: it believes the first thing it hears."""
        message = error_message(error)
        log(message["message"])
        with self._changed:
            self._closing = True
            streams = list(self._streams)
        for stream in streams:
            with contextlib.suppress(StreamLost, ProtocolError):
                stream.send(FrameType.ERROR, wire.pack_json(message))
        self.abort("the session failed")

    def wait_alone(self) -> None:
        """Until only the control connection's thread is left."""
        with self._changed:
            while len(self._streams) > 1:
                self._changed.wait()

    def end(self) -> None:
        """Nothing comes in any more: record what there is.  Raises TargetError."""
        raise NotImplementedError

    # Frames

    def run_control(self) -> bool:
        """Work off the control connection.  True when the sender closed it in due form."""
        raise NotImplementedError

    def run_stream(self, stream: FrameStream) -> bool:
        """Work off another connection."""
        del stream
        raise ProtocolError("this session has one connection")

    def _work_off(self, stream: FrameStream, handle: Callable[[Frame], None]) -> bool:
        """Until CLOSE (True) or ERROR (False)."""
        while True:
            frame = stream.receive()
            if frame.kind is FrameType.CLOSE:
                stream.send(FrameType.CLOSED)
                return True
            if frame.kind is FrameType.ERROR:
                return False
            handle(frame)


class LivePass(Live):
    """A disk that is opened for a pass or its verification."""

    def __init__(self, session: Session, control: FrameStream, run: str) -> None:
        super().__init__(control, run)
        self._session = session
        # Unbounded, so that the end can always be queued; ``_queue`` keeps them short.
        self._fetches: "queue.Queue[Optional[wire.Segments]]" = queue.Queue()
        self._checkpoints: "queue.Queue[Optional[int]]" = queue.Queue()
        self._workers = [
            threading.Thread(target=self._work, args=work, daemon=True)
            for work in (
                (self._fetches, self._answer_fetch),
                (self._checkpoints, self._answer_checkpoint),
            )
        ]
        for worker in self._workers:
            worker.start()

    def end(self) -> None:
        for tasks in (self._fetches, self._checkpoints):
            tasks.put(None)
        for worker in self._workers:
            worker.join()
        self._session.finish()

    def run_control(self) -> bool:
        bulk = BulkHandler(self._session, self._control)
        steering: Dict[FrameType, Callable[[Frame], None]] = {
            FrameType.BEGIN: self._begin,
            FrameType.FETCH: lambda frame: self._queue(
                self._fetches, wire.Segments.unpack(frame.meta)
            ),
            FrameType.CHECKPOINT: lambda frame: self._queue(
                self._checkpoints, wire.unpack_number(frame.meta)
            ),
            FrameType.END: self._end,
        }
        return self._work_off(
            self._control, lambda frame: steering.get(frame.kind, bulk.handle)(frame)
        )

    def run_stream(self, stream: FrameStream) -> bool:
        return self._work_off(stream, BulkHandler(self._session, stream).handle)

    def _queue(self, tasks: "queue.Queue[Any]", task: Any) -> None:
        if tasks.qsize() >= _MOST_REQUESTS:
            raise ProtocolError("too many requests at once")
        tasks.put(task)

    def _work(self, tasks: "queue.Queue[Any]", answer: Callable[[Any], None]) -> None:
        """A worker's life: failures are told to the sender and end the session."""
        while True:
            task = tasks.get()
            if task is None:
                return
            try:
                answer(task)
            except StreamLost:
                return
            except Exception as error:  # noqa: BLE001 - handed over to the sender
                self.fail(error)
                return

    def _answer_fetch(self, wanted: wire.Segments) -> None:
        def answer(segments: wire.Segments, entries: bytes) -> None:
            self._control.send(FrameType.DIGESTS, segments.pack(), entries)

        self._session.fetch(wanted, answer)

    def _answer_checkpoint(self, number: int) -> None:
        committed = self._session.checkpoint()
        # A long list goes in several frames; only the last one carries the number.
        pieces = [
            committed.ranges[at : at + wire.MAX_EXTENTS]
            for at in range(0, len(committed.ranges), wire.MAX_EXTENTS)
        ] or [[]]
        for piece in pieces:
            last = piece is pieces[-1]
            message = {
                "number": number if last else None,
                "generation": committed.generation,
                "commit": committed.commit,
                "complete": piece,
            }
            self._control.send(FrameType.COMMITTED, wire.pack_json(message))

    def _begin(self, frame: Frame) -> None:
        self._session.begin(wire.unpack_json(frame.meta))
        self._control.send(FrameType.BEGUN)

    def _end(self, frame: Frame) -> None:
        answer = self._session.end(wire.unpack_json(frame.meta))
        self._control.send(FrameType.ENDED, wire.pack_json(answer))


class BulkHandler:
    """The bulk frames of one connection, and their acknowledgements."""

    def __init__(self, session: Session, stream: FrameStream) -> None:
        self._session = session
        self._stream = stream
        self._frames = 0
        self._length = 0

    def handle(self, frame: Frame) -> None:
        if frame.kind is FrameType.VERIFY:
            self._verify(frame)
            return
        if frame.kind is FrameType.ASK_PAGES:
            wanted = wire.BlockSet.unpack(frame.meta)
            self._stream.send(FrameType.PAGE_DIGESTS, frame.meta, self._session.pages(wanted))
            return
        if frame.kind is FrameType.DATA:
            self._session.data(wire.Data.unpack(frame.meta), frame.body)
        elif frame.kind is FrameType.PATCH:
            self._patch(wire.Patch.unpack(frame.meta), frame.body)
        elif frame.kind is FrameType.ZEROS:
            self._session.zeros(wire.Blocks.unpack(frame.meta))
        elif frame.kind is FrameType.SEGMENTS:
            self._session.segments(wire.Segments.unpack(frame.meta, with_digest=True))
        elif frame.kind is FrameType.UNREADABLE:
            self._session.unreadable(wire.unpack_json(frame.meta))
        self._frames += 1
        self._length += len(frame.body)
        if frame.kind is FrameType.SEGMENTS or self._length >= _ACKNOWLEDGE:
            self._stream.send(FrameType.WRITTEN, wire.Written(self._frames, self._length).pack())
            self._frames = self._length = 0

    def _patch(self, message: wire.Patch, body: memoryview) -> None:
        refused = self._session.patch(message, body)
        if refused:
            # Before the acknowledgement: who has that knows of all that was refused.
            answer = wire.BlockSet(message.blocks.segment, refused)
            self._stream.send(FrameType.REFUSED, answer.pack())

    def _verify(self, frame: Frame) -> None:
        message = wire.Verify.unpack(frame.meta)
        wrong = self._session.verify(message, bytes(frame.body))
        answer = {"number": message.number, "wrong": wrong}
        self._stream.send(FrameType.VERIFIED, wire.pack_json(answer))


class LiveCutover(Live):
    """A disk that is opened for what comes after the passes."""

    def __init__(self, cutover: Cutover, control: FrameStream, run: str) -> None:
        super().__init__(control, run)
        self._cutover = cutover

    def end(self) -> None:
        self._cutover.finish()

    def run_control(self) -> bool:
        return self._work_off(self._control, self._handle)

    def _handle(self, frame: Frame) -> None:
        if frame.kind is FrameType.RUNS:
            self._cutover.runs(wire.Runs.unpack(frame.meta), frame.body)
        else:
            answer = self._cutover.act(wire.unpack_json(frame.meta), frame.body)
            self._control.send(FrameType.ACTED, wire.pack_json(answer))
