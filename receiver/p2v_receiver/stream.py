"""A connection that carries frames: the I/O around :class:`wire.Connection`, for both ends.

A *pipe* is anything with ``recv_into(view) -> int``, ``sendall(data)`` and ``close()``; ``close``
wakes whoever is blocked in the other two.  Sending is thread-safe; receiving belongs to one
thread.  A heartbeat goes out whatever the other threads are stuck in (a disk that takes a minute to
flush is slow, not dead), and a peer that is silent for too long is given up.
"""

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
import time
from typing import Any, Optional

from . import wire
from .wire import Buffer, Frame, FrameType

_SMALL = 16 * 1024  # bodies up to here are joined with their header into one system call
_RECEIVE_MOST = 512 * 1024  # a slow link must show signs of life more often than once a body
_DEAD_LINK_MS = 25000
# Bytes of a frame that is not whole yet.  When some of a body were lost PINGs would be taken for
# the rest of it, and be signs of life for hours.
_SIGN_OF_LIFE = 1024


class StreamLost(Exception):
    """The connection broke, was closed, or its other end fell silent."""


def configure_socket(sock: socket.socket) -> None:
    """No delay for small frames; the kernel gives up a peer that acknowledges nothing (tcp(7))."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", 18), _DEAD_LINK_MS)


class SocketPipe:
    """A pipe over a connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        self._socket = sock

    def recv_into(self, view: memoryview) -> int:
        # The caller wants exactly this much, so let the kernel collect it.
        return self._socket.recv_into(view[:_RECEIVE_MOST], 0, socket.MSG_WAITALL)

    def sendall(self, data: Buffer) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class TlsPipe:
    """A pipe over a TLS socket.

    OpenSSL forbids a read and a write of one connection at the same time, so the socket is
    non-blocking and a lock is held just for the calls, never while waiting.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._lock = threading.Lock()
        self._failure: Optional[OSError] = None

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._socket, event)
        poll.poll()

    def recv_into(self, view: memoryview) -> int:
        while True:
            try:
                with self._lock:
                    return self._recv_what_is_there(view[:_RECEIVE_MOST])
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)

    def _recv_what_is_there(self, view: memoryview) -> int:
        """OpenSSL gives one record at a time, 16 KiB."""
        if self._failure is not None:
            raise self._failure
        done = count = self._socket.recv_into(view)
        try:
            while count and done < len(view):
                count = self._socket.recv_into(view[done:])
                done += count
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._failure = error  # not before the last words are heard
        return done

    def sendall(self, data: Buffer) -> None:
        view = memoryview(data)
        while len(view):
            try:
                with self._lock:
                    view = view[self._socket.send(view) :]
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            # SSLSocket.shutdown() would drop the TLS layer under a send() of another thread, which
            # would then go out in the clear; this only wakes whoever polls.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        with self._lock:
            self._socket.close()


class FdPipe:
    """A pipe over two file descriptors: standard input and output of a receiver behind ssh."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._wake_read, self._wake_write = os.pipe()
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)

    def _wait(self, fd: int, event: int) -> bool:
        """Until ``fd`` is ready.  False when close() came first: it can't wake a read(2)."""
        poll = select.poll()
        poll.register(fd, event)
        poll.register(self._wake_read, select.POLLIN)
        return self._wake_read not in [ready for ready, _ in poll.poll()]

    def recv_into(self, view: memoryview) -> int:
        while self._wait(self._read_fd, select.POLLIN):
            with contextlib.suppress(BlockingIOError):
                return os.readv(self._read_fd, [view])
        return 0

    def sendall(self, data: Buffer) -> None:
        view = memoryview(data)
        while len(view):
            if not self._wait(self._write_fd, select.POLLOUT):
                raise BrokenPipeError(errno.EPIPE, "the connection was closed")
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self._write_fd, view) :]

    def close(self) -> None:
        os.write(self._wake_write, b"x")


class FrameStream:
    """One end of a connection.  Satisfies the engine's ``Channel``.

    Raises StreamLost and wire.ProtocolError from ``send`` and ``receive``.
    """

    def __init__(self, pipe: Any, role: str) -> None:
        self._pipe = pipe
        self._connection = wire.Connection(role)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reason = "the connection was closed"
        self._waiting_since: Optional[float] = None  # nobody is silent while nobody listens
        self.bytes_sent = 0
        self.bytes_received = 0

    @property
    def state(self) -> wire.State:
        return self._connection.state

    def start_heartbeat(self) -> None:
        """From now on: a PING every few seconds, and silence is death."""
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()

    def _heartbeat(self) -> None:
        while not self._closed.wait(wire.HEARTBEAT_S):
            since = self._waiting_since
            silence_s = time.monotonic() - since if since is not None else 0.0
            if silence_s > wire.SILENCE_LIMIT_S:
                self.abort("the other end has been silent for {:.0f} s".format(silence_s))
            elif self._lock.acquire(False):
                # Whoever holds the lock is sending, which says as much as a PING.
                try:
                    self._send_locked(FrameType.PING, b"", b"")
                except (StreamLost, wire.ProtocolError):
                    return
                finally:
                    self._lock.release()

    def send(self, kind: FrameType, meta: bytes = b"", body: Buffer = b"") -> int:
        """Send one frame; returns how many bytes it took."""
        with self._lock:
            return self._send_locked(kind, meta, body)

    def _send_locked(self, kind: FrameType, meta: bytes, body: Buffer) -> int:
        head = self._connection.send(kind, meta, len(body))
        try:
            if len(body) <= _SMALL:
                self._pipe.sendall(head + bytes(body))
            else:
                self._pipe.sendall(head)
                self._pipe.sendall(body)
        except (OSError, ValueError, EOFError) as error:
            raise self._lost(error) from error
        count = len(head) + len(body)
        self.bytes_sent += count
        return count

    def receive(self) -> Frame:
        """The next frame that is not a PING."""
        heard = 0
        self._waiting_since = time.monotonic()
        try:
            while True:
                count = self._receive_some()
                frame = self._connection.received(count)
                heard += count
                if frame is not None or heard >= _SIGN_OF_LIFE:
                    heard, self._waiting_since = 0, time.monotonic()
                if frame is not None and frame.kind is not FrameType.PING:
                    return frame
        finally:
            self._waiting_since = None

    def _receive_some(self) -> int:
        try:
            count = self._pipe.recv_into(self._connection.buffer())
        except (OSError, ValueError, EOFError) as error:
            raise self._lost(error) from error
        if not count:
            raise self._lost(None)
        self.bytes_received += count
        return int(count)

    def _lost(self, error: Optional[BaseException]) -> StreamLost:
        if self._closed.is_set():
            return StreamLost(self._reason)
        return StreamLost(str(error) if error else "the other end closed the connection")

    def abort(self, reason: str) -> None:
        """Close, and say why to whoever is blocked in ``send`` or ``receive``."""
        if not self._closed.is_set():
            self._reason = reason
            self._closed.set()
            self._pipe.close()

    def close(self) -> None:
        """Idempotent; wakes blocked calls."""
        self.abort(self._reason)
