"""A receiver that speaks the protocol by hand, so that it can also say what no receiver may say."""

import contextlib
import socket
import threading
import zlib
from collections.abc import Callable
from typing import Any

from p2v_receiver import codec, wire
from p2v_receiver.stream import SocketPipe
from p2v_receiver.wire import Frame, FrameType, Json
from p2v_sync.transport.channel import StreamChannel
from tests.contract.lab import BLOCK, LONG_S

WELCOME: Json = {
    "version": wire.VERSION,
    "software": "by hand",
    "digests": codec.digest_names(),
    "codecs": codec.codec_names(),
    "features": [wire.PAGES],
}
OPENED: Json = {
    "session": "s",
    "token": "t",
    "window": wire.DEFAULT_WINDOW,
    "image": "image-1",
    "generation": 1,
    "commit": "commit-1",
    "block_size": BLOCK,
    "digest": codec.digest_names()[-1],
    "seed": 1,
    "created": True,
    "reasons": [],
    "pass_number": 0,
    "pass_complete": True,
    "quiesced": False,
    "unreadable": [],
    "source": None,
}

PAGES = 4  # of the blocks that ASK_PAGES is about
Say = Callable[["Talk", Frame], None]


class Talk:
    """One connection.  ``say`` sends any frame at all, in sequence."""

    def __init__(self, sock: socket.socket, complete: list[tuple[int, int]]) -> None:
        self._socket = sock
        self._connection = wire.Connection(wire.RECEIVER)
        self._sent = 0
        self.complete = complete  # segments that all talks of a session were told of

    def say(self, kind: FrameType, meta: Json | bytes = b"", body: bytes = b"") -> None:
        packed = meta if isinstance(meta, bytes) else wire.pack_json(meta)
        check = zlib.crc32(packed)
        head = wire.pack_header(kind, self._sent, len(packed), len(body), check)
        self._sent += 1
        self.say_bytes(head + packed + body)
        with contextlib.suppress(wire.ProtocolError):
            # What we may not say does not change what the sender may say next.
            self._connection.state = wire.next_state(self._connection.state, wire.RECEIVER, kind)

    def say_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def hear(self) -> Frame:
        while True:
            count = self._socket.recv_into(self._connection.buffer())
            if not count:
                raise EOFError
            frame = self._connection.received(count)
            if frame is not None and frame.kind is not FrameType.PING:
                return frame

    def hang_up(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)


class ByHand:
    """A dialer to a receiver that is polite but where ``says`` tells it otherwise.

    The polite one keeps no image: it acknowledges everything and agrees to everything.
    """

    is_local = True

    def __init__(self, says: dict[FrameType, Say] | None = None, **opened: Any) -> None:
        self.max_streams = 1
        self._says: dict[FrameType, Say] = {**_POLITE, **(says or {})}
        self._says.setdefault(
            FrameType.OPEN, lambda talk, _: talk.say(FrameType.OPENED, {**OPENED, **opened})
        )
        self._threads: list[threading.Thread] = []
        self._complete: list[tuple[int, int]] = []
        self.dialed = 0

    def dial(self) -> StreamChannel:
        self.dialed += 1
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(theirs,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return StreamChannel(SocketPipe(ours))

    def _serve(self, sock: socket.socket) -> None:
        talk = Talk(sock, self._complete)
        with sock, contextlib.suppress(OSError, EOFError, wire.ProtocolError):
            while True:
                frame = talk.hear()
                say = self._says.get(frame.kind)
                if say is not None:
                    say(talk, frame)

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(LONG_S)
            assert not thread.is_alive()


def written(talk: Talk, frame: Frame) -> None:
    talk.say(FrameType.WRITTEN, wire.Written(1, len(frame.body)).pack())


def segments(talk: Talk, frame: Frame) -> None:
    told = wire.Segments.unpack(frame.meta, with_digest=True)
    talk.complete.append((told.first, told.total))
    written(talk, frame)


def committed(talk: Talk, frame: Frame, **changes: Any) -> None:
    message = {
        "number": wire.unpack_number(frame.meta),
        "generation": 2,
        "commit": "commit-2",
        "complete": talk.complete,
    }
    talk.say(FrameType.COMMITTED, {**message, **changes})
    talk.complete.clear()


def ended(talk: Talk, frame: Frame, **changes: Any) -> None:
    digest = wire.unpack_json(frame.meta)["digest"]
    message = {"generation": 3, "commit": "commit-3", "digest": digest, "complete": []}
    talk.say(FrameType.ENDED, {**message, **changes})


def zeros(talk: Talk, frame: Frame) -> None:
    """DIGESTS: all of it is zero here."""
    talk.say(FrameType.DIGESTS, frame.meta)


def pages(talk: Talk, frame: Frame, change: int = 0) -> None:
    """PAGE_DIGESTS: all of these pages are others here; ``change`` bytes more than there are."""
    blocks = len(wire.BlockSet.unpack(frame.meta).blocks)
    talk.say(FrameType.PAGE_DIGESTS, frame.meta, bytes(blocks * PAGES * 8 + change))


def right(talk: Talk, frame: Frame) -> None:
    """VERIFIED: all of it is right."""
    talk.say(FrameType.VERIFIED, {"number": wire.Verify.unpack(frame.meta).number, "wrong": []})


_POLITE: dict[FrameType, Say] = {
    FrameType.HELLO: lambda talk, _: talk.say(FrameType.WELCOME, WELCOME),
    FrameType.BEGIN: lambda talk, _: talk.say(FrameType.BEGUN),
    FrameType.DATA: written,
    FrameType.ZEROS: written,
    FrameType.UNREADABLE: written,
    FrameType.SEGMENTS: segments,
    FrameType.CHECKPOINT: committed,
    FrameType.FETCH: zeros,
    FrameType.ASK_PAGES: pages,
    FrameType.PATCH: written,
    FrameType.VERIFY: right,
    FrameType.END: ended,
    FrameType.CLOSE: lambda talk, _: talk.say(FrameType.CLOSED),
    FrameType.ATTACH: lambda talk, _: talk.say(FrameType.ATTACHED, {}),
}
