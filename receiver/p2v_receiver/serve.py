"""Connections → sessions: who may talk, in which order, and what happens when one end goes.

A session is one disk.  Its first connection opens it and steers it; further ones attach to it and
carry bulk data.  One thread a connection, one to digest ahead, one to checkpoint.
"""

import contextlib
import hmac
import os
import queue
import secrets
import sys
import threading
import traceback
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import __version__, codec, wire
from .session import Session
from .store import PATIENCE_S, Opened, Request, locked_error, opened
from .stream import FrameStream, StreamLost
from .target import TargetError
from .wire import ErrorCode, Frame, FrameType, Json, ProtocolError

FEATURES = [wire.PAGES]  # what goes beyond version 1 of the protocol
_MOST_REQUESTS = 4096  # of one kind, queued
_MOST_TEXT = 2000
_ACKNOWLEDGE = 4 * 1024 * 1024
_TAKEOVER_S = 15.0


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


class LiveSession:
    """A session and its connections."""

    def __init__(self, session: Session, control: FrameStream, run: str) -> None:
        self.session = session
        self.run = run
        self.id = secrets.token_hex(8)
        self.token = secrets.token_hex(16)
        self._control = control
        self._streams: List[FrameStream] = [control]
        self._changed = threading.Condition()
        self._closing = False
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

    # Connections

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

    def end_workers(self) -> None:
        for tasks in (self._fetches, self._checkpoints):
            tasks.put(None)
        for worker in self._workers:
            worker.join()

    # Frames

    def run_control(self) -> bool:
        """Work off the control connection.  True when the sender closed it in due form."""
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
        return self.run_stream(self._control, steering)

    def run_stream(
        self,
        stream: FrameStream,
        steering: Optional[Dict[FrameType, Callable[[Frame], None]]] = None,
    ) -> bool:
        """Work off one connection until CLOSE (True) or ERROR (False)."""
        bulk = BulkHandler(self.session, stream)
        while True:
            frame = stream.receive()
            if steering and frame.kind in steering:
                steering[frame.kind](frame)
            elif frame.kind is FrameType.CLOSE:
                stream.send(FrameType.CLOSED)
                return True
            elif frame.kind is FrameType.ERROR:
                return False
            else:
                bulk.handle(frame)

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

        self.session.fetch(wanted, answer)

    def _answer_checkpoint(self, number: int) -> None:
        committed = self.session.checkpoint()
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
        self.session.begin(wire.unpack_json(frame.meta))
        self._control.send(FrameType.BEGUN)

    def _end(self, frame: Frame) -> None:
        answer = self.session.end(wire.unpack_json(frame.meta))
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


class Server:
    """Everything below one directory.  ``handle`` is called from one thread a connection."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._sessions: Dict[str, LiveSession] = {}
        self._by_disk: Dict[Tuple[str, str], LiveSession] = {}
        self._changed = threading.Condition()
        self.closed_in_due_form = 0

    @property
    def live_sessions(self) -> int:
        with self._changed:
            return len(self._sessions)

    def handle(self, stream: FrameStream) -> None:
        """Serve one authenticated connection to its end.  Never raises."""
        try:
            stream.start_heartbeat()
            self._greet(stream)
            frame = stream.receive()
            message = wire.unpack_json(frame.meta)
            if frame.kind is FrameType.OPEN:
                self._run_session(stream, _request(message))
            else:
                self._run_attached(stream, message)
        except StreamLost as error:
            log("connection ended: {}".format(error))
        except Exception as error:  # noqa: BLE001 - handed over to the sender
            answer = error_message(error)
            log(answer["message"])
            with contextlib.suppress(StreamLost, ProtocolError):
                stream.send(FrameType.ERROR, wire.pack_json(answer))
        finally:
            stream.close()

    def shut_down(self) -> None:
        """End all sessions as if their links had failed: what was written is recorded."""
        with self._changed:
            for live in self._sessions.values():
                live.abort("the receiver was told to stop")
            self._changed.wait_for(lambda: not self._sessions, _TAKEOVER_S)

    def _greet(self, stream: FrameStream) -> None:
        hello = wire.unpack_json(stream.receive().meta)
        newest, oldest = wire.get_int(hello, "version"), wire.get_int(hello, "oldest")
        if not oldest <= wire.VERSION <= newest:
            raise TargetError(
                ErrorCode.VERSION,
                "the sender speaks protocol {} to {}, this receiver ({}) speaks {}".format(
                    oldest, newest, __version__, wire.VERSION
                ),
                "use the same version of p2v-sync on both ends",
            )
        welcome = {
            "version": wire.VERSION,
            "software": __version__,
            "digests": codec.digest_names(),
            "codecs": codec.codec_names(),
            "features": FEATURES,
        }
        stream.send(FrameType.WELCOME, wire.pack_json(welcome))

    def _run_attached(self, stream: FrameStream, message: Json) -> None:
        with self._changed:
            live = self._sessions.get(wire.get(message, "session", str))
        token = wire.get(message, "token", str)
        if live is None or not hmac.compare_digest(live.token.encode(), token.encode()):
            raise ProtocolError("there is no such session to attach to")
        live.attach(stream)
        try:
            stream.send(FrameType.ATTACHED, wire.pack_json({}))
            live.run_stream(stream)
        except StreamLost as error:
            live.abort("another connection of the session was lost: {}".format(error))
            raise
        except Exception as error:  # noqa: BLE001 - handed over to the sender
            live.fail(error)
        finally:
            live.detach(stream)

    def _run_session(self, stream: FrameStream, request: Request) -> None:
        self._end_former(request)
        name = (request.job, request.disk)
        live: Optional[LiveSession] = None
        try:
            with opened(self.root, request) as (place, target):
                live = LiveSession(Session(place, target), stream, request.run)
                with self._changed:
                    self._sessions[live.id] = live
                    self._by_disk[name] = live
                log("{}/{}: opened".format(*name))
                try:
                    self._work(live, stream, target, name)
                finally:
                    self._end_session(live, name)
        finally:
            # Only now is the lock free: a sender that comes back waits for this.
            if live is not None:
                with self._changed:
                    del self._sessions[live.id], self._by_disk[name]
                    self._changed.notify_all()
                log("{}/{}: closed".format(*name))

    def _work(
        self, live: LiveSession, stream: FrameStream, target: Opened, name: Tuple[str, str]
    ) -> None:
        try:
            stream.send(FrameType.OPENED, wire.pack_json(_opened(live, target)))
            if live.run_control():
                self.closed_in_due_form += 1
        except StreamLost as error:
            log("{}/{}: {}".format(name[0], name[1], error))
        except Exception as error:  # noqa: BLE001 - handed over to the sender
            live.fail(error)

    def _end_session(self, live: LiveSession, name: Tuple[str, str]) -> None:
        try:
            live.abort("the session has ended")
            live.wait_alone()
            live.end_workers()
            live.session.finish()
        except TargetError as error:
            log("{}/{}: {}".format(name[0], name[1], error.message))

    def _end_former(self, request: Request) -> None:
        """A sender that comes back gets its old session ended; anybody else's is respected."""
        name = (request.job, request.disk)
        with self._changed:
            former = self._by_disk.get(name)
            if former is None:
                return
            is_ours = former.run == request.run
            if is_ours:
                former.abort("the sender opened the disk anew")
            # Of another run's: its sender may just have been killed.
            patience_s = _TAKEOVER_S if is_ours else PATIENCE_S
            gone = self._changed.wait_for(lambda: self._by_disk.get(name) is not former, patience_s)
            if not gone:
                raise locked_error("{}/{}".format(*name), os.getpid())


def _request(message: Json) -> Request:
    """An OPEN's fields, checked.  Raises ProtocolError."""
    block_size = message.get("block_size")
    if block_size is not None and not wire.is_block_size(block_size):
        raise ProtocolError("blocks of {!r} bytes are not possible".format(block_size))
    digest = message.get("digest")
    if not isinstance(digest, (str, type(None))):
        raise ProtocolError("field 'digest' is not a name")
    return Request(
        job=wire.get(message, "job", str),
        disk=wire.get(message, "disk", str),
        size=wire.get_int(message, "size", low=1),
        block_size=block_size,
        digest=digest,
        digests=tuple(wire.get_names(message, "digests")),
        run=wire.get(message, "run", str),
        source_file=wire.get(message, "source_file", dict),
        create=wire.get(message, "create", bool),
    )


def _opened(live: LiveSession, target: Opened) -> Json:
    header = target.manifest.header()
    return {
        "session": live.id,
        "token": live.token,
        "window": wire.DEFAULT_WINDOW,
        "image": header["uuid"],
        "generation": header["generation"],
        "commit": header["commit_id"],
        "block_size": header["block_size"],
        "digest": header["digest"],
        "seed": header["seed"],
        "created": target.created,
        "reasons": target.reasons,
        "pass_number": header["pass_number"],
        "pass_complete": bool(header["pass_complete"]),
        "quiesced": bool(header["quiesced"]),
        "unreadable": target.manifest.unreadable()[: wire.MAX_EXTENTS],
        "source": header["source_identity"],
    }
