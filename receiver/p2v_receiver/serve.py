"""Connections → sessions: who may talk, in which order, and what happens when one end goes.

A session is one disk.  Its first connection opens it and steers it; further ones attach to it and
carry bulk data.
"""

import contextlib
import hmac
import os
import threading
from typing import Dict, Optional, Tuple

from . import __version__, codec, wire
from .cutover import Cutover
from .live import Live, LiveCutover, LivePass, error_message, log
from .place import Place
from .session import Session
from .store import PATIENCE_S, Opened, Request, locked_error, opened
from .stream import FrameStream, StreamLost
from .target import TargetError
from .wire import ErrorCode, FrameType, Json, ProtocolError

FEATURES = [wire.PAGES, wire.DELTA]  # what goes beyond version 1 of the protocol
_TAKEOVER_S = 15.0


class Server:
    """Everything below one directory.  ``handle`` is called from one thread a connection.

    ``may_run``: senders may have virtual machines defined and started.
    """

    def __init__(self, root: str, may_run: bool = False) -> None:
        self.root = root
        self._may_run = may_run
        self._sessions: Dict[str, Live] = {}
        self._by_disk: Dict[Tuple[str, str], Live] = {}
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
            if frame.kind is FrameType.ATTACH:
                self._run_attached(stream, message)
            else:
                self._run_session(stream, _request(message, frame.kind is FrameType.CUTOVER))
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
        live: Optional[Live] = None
        try:
            with opened(self.root, request) as (place, target):
                live = self._make(place, target, stream, request)
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

    def _make(self, place: Place, target: Opened, stream: FrameStream, request: Request) -> Live:
        if request.cutover:
            return LiveCutover(Cutover(place, target, self._may_run), stream, request.run)
        return LivePass(Session(place, target), stream, request.run)

    def _work(self, live: Live, stream: FrameStream, target: Opened, name: Tuple[str, str]) -> None:
        try:
            stream.send(FrameType.OPENED, wire.pack_json(_opened(live, target)))
            if live.run_control():
                self.closed_in_due_form += 1
        except StreamLost as error:
            log("{}/{}: {}".format(name[0], name[1], error))
        except Exception as error:  # noqa: BLE001 - handed over to the sender
            live.fail(error)

    def _end_session(self, live: Live, name: Tuple[str, str]) -> None:
        try:
            live.abort("the session has ended")
            live.wait_alone()
            live.end()
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


def _request(message: Json, cutover: bool) -> Request:
    """The fields of an OPEN or CUTOVER, checked.  Raises ProtocolError."""
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
        create=wire.get(message, "create", bool) and not cutover,
        cutover=cutover,
        take_back=message.get("take_back") is True,
    )


def _opened(live: Live, target: Opened) -> Json:
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
        "notes": target.notes,
        "pass_number": header["pass_number"],
        "pass_complete": bool(header["pass_complete"]),
        "quiesced": bool(header["quiesced"]),
        "unreadable": target.manifest.unreadable()[: wire.MAX_EXTENTS],
        "source": header["source_identity"],
    }
