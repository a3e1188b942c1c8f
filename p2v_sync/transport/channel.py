"""A connection as the engine sees it: frames, and errors of the operator's tree."""

from collections.abc import Callable, Sequence
from typing import Protocol

from p2v_receiver import wire
from p2v_receiver.stream import FrameStream, StreamLost
from p2v_receiver.wire import Frame, FrameType
from p2v_sync.errors import PeerLost, ProtocolError


class Pipe(Protocol):
    """What carries the bytes; ``close`` wakes whoever is blocked in the other two."""

    def recv_into(self, view: memoryview) -> int: ...

    def sendall(self, data: wire.Buffer) -> None: ...

    def close(self) -> None: ...


class StreamChannel:
    """Frames over a pipe.  Satisfies the engine's ``Channel``.

    ``last_words`` gives what the receiver's process wrote before it died, for the error message.
    ``bulk`` are connections that end with this one.
    """

    bulk: Sequence["StreamChannel"] = ()

    def __init__(self, pipe: Pipe, last_words: Callable[[], str] = str) -> None:
        self._stream = FrameStream(pipe, wire.SENDER)
        self._last_words = last_words
        self._stream.start_heartbeat()

    def send(self, kind: FrameType, meta: bytes = b"", body: bytes | memoryview = b"") -> int:
        """Send one frame; returns how many bytes it took.  Raises PeerLost, ProtocolError."""
        try:
            return self._stream.send(kind, meta, body)
        except StreamLost as error:
            raise self._lost(error) from error
        except wire.ProtocolError as error:
            raise ProtocolError(str(error)) from error

    def receive(self) -> Frame:
        """The next frame; its body lives until the next call.  Raises PeerLost, ProtocolError."""
        try:
            return self._stream.receive()
        except StreamLost as error:
            raise self._lost(error) from error
        except wire.ProtocolError as error:
            raise ProtocolError(f"the receiver: {error}") from error

    def _lost(self, error: StreamLost) -> PeerLost:
        words = self._last_words()
        said = f"; the receiver's last words:\n{words}" if words else ""
        return PeerLost(f"connection lost: {error}{said}")

    def close(self) -> None:
        self._stream.close()
        for channel in self.bulk:
            channel.close()

    @property
    def bytes_sent(self) -> int:
        return self._stream.bytes_sent
