"""A TCP proxy that is a long link: what goes in comes out later, and no faster than the link is.

All connections share the rate of their direction, as they would share a line.  A connection costs
a round trip before its first byte.  How much may be under way is bounded as by a receiver's window:
ample for the link, and what waits there is neither lost nor reordered.
"""

import contextlib
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Self

from p2v_sync.units import KIB, MIB

_CHUNK = 256 * KIB
_WINDOW = 4 * MIB  # beyond what fills the link
_QUEUE_S = 0.005  # how far ahead of the line a sender may be


@dataclass
class Line:
    """One direction: when the last byte of what is sent now has left.  Times of time.monotonic."""

    rate: float | None = None  # bytes a second; None: no limit
    carried: int = 0
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reserve(self, length: int, now: float) -> float:
        with self._lock:
            self.carried += length
            if self.rate is None:
                return now
            self._free_at = max(now, self._free_at) + length / self.rate
            return self._free_at


class _Flight:
    """The bytes under way, each with the time of its arrival."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = 0
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._changed = threading.Condition()

    def put(self, arrival: float, chunk: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._length < self._most)
            self._chunks.append((arrival, chunk))
            self._length += len(chunk)
            self._changed.notify_all()

    def first(self) -> tuple[float, bytes]:
        """What arrives next; it is under way until ``landed``."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._chunks))
            return self._chunks[0]

    def landed(self) -> None:
        with self._changed:
            _, chunk = self._chunks.popleft()
            self._length -= len(chunk)
            self._changed.notify_all()


class Link:
    """A proxy on a loopback port in front of another one; as fast as it can until ``shape``."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._delay_s = 0.0
        self._lines = Line(), Line()
        self._connections: list[socket.socket] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def shape(self, *, delay_s: float, rate: float) -> None:
        """For connections from now on: a delay each way, and bytes a second each way."""
        self._delay_s = delay_s
        for line in self._lines:
            line.rate = rate

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def carried(self) -> int:
        """Bytes that went through, both ways, all there is above TCP."""
        return sum(line.carried for line in self._lines)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._door.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        opens_at = time.monotonic() + 2 * self._delay_s
        try:
            far = socket.create_connection(("127.0.0.1", self._behind))
        except OSError:
            near.close()
            return
        self._connections += near, far
        for way, line in zip(((near, far), (far, near)), self._lines, strict=True):
            for sock in way:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            flight = _Flight(_WINDOW + int(2 * self._delay_s * (line.rate or 0)))
            sending = (way[0], line, flight, opens_at)
            threading.Thread(target=self._send, args=sending, daemon=True).start()
            threading.Thread(target=_arrive, args=(flight, way[1]), daemon=True).start()

    def _send(self, source: socket.socket, line: Line, flight: _Flight, opens_at: float) -> None:
        """Puts what is read on the line; an empty chunk is the end."""
        chunk = b"-"
        while chunk:
            try:
                chunk = source.recv(_CHUNK)
            except OSError:
                chunk = b""
            departure = line.reserve(len(chunk), max(time.monotonic(), opens_at))
            flight.put(departure + self._delay_s, chunk)
            _sleep_until(departure - _QUEUE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in (self._door, *self._connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _arrive(flight: _Flight, sink: socket.socket) -> None:
    chunk = b"-"
    is_broken = False
    while chunk:
        arrival, chunk = flight.first()
        _sleep_until(arrival)
        if not is_broken:
            try:
                _pass_on(chunk, sink)
            except OSError:
                is_broken = True  # the other direction tells the sender; this one runs dry
        flight.landed()


def _pass_on(chunk: bytes, sink: socket.socket) -> None:
    if chunk:
        sink.sendall(chunk)
    else:
        sink.shutdown(socket.SHUT_WR)


def _sleep_until(moment: float) -> None:
    if (left_s := moment - time.monotonic()) > 0:
        time.sleep(left_s)
