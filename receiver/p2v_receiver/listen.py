"""TCP: accept, authenticate (auth.py), hand over to the server.

Before the token is proved nothing is opened or written, and whoever it is gets ten seconds.  The
port is ``p2v-receiver listen``'s, or for a sender that came by ssh one that is open for moments.
"""

import contextlib
import errno
import itertools
import os
import socket
import ssl
import sys
import threading
import time
from collections import OrderedDict
from typing import Any, Callable, Iterable, Iterator

from . import auth, wire
from .live import log
from .serve import Server
from .stream import FrameStream, SocketPipe, TlsPipe, configure_socket

DIRECT_PORTS = range(auth.DEFAULT_PORT + 1, auth.DEFAULT_PORT + 17)  # what a firewall has to know
DIRECT_OPEN_S = 30.0

_MOST_STRANGERS = 64
_LOOK_EVERY_S = 0.5


def _receive_exactly(sock: socket.socket, length: int, deadline: float) -> bytes:
    data = b""
    while len(data) < length:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise auth.AuthError("it took too long")
        sock.settimeout(left_s)
        piece = sock.recv(length - len(data))
        if not piece:
            raise auth.AuthError("it hung up before it proved anything")
        data += piece
    return data


def _wrap_tls(sock: socket.socket) -> ssl.SSLSocket:
    """TLS with the sender as the server: its certificate is proved by the token, not by a CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(sock)


def authenticate(sock: socket.socket, token: str, plaintext: bool) -> Any:
    """The receiver's half of auth.py.  Returns a pipe.  Raises AuthError, OSError."""
    deadline = time.monotonic() + auth.TIMEOUT_S
    # Byte by byte as far as it matches: a browser is turned away at its first letters.
    for expected in auth.PREAMBLE:
        if _receive_exactly(sock, 1, deadline)[0] != expected:
            raise auth.AuthError("it does not speak this protocol")
    mode = auth.PLAINTEXT if plaintext else auth.TLS
    sock.sendall(auth.PREAMBLE + bytes([mode]))
    if mode == auth.PLAINTEXT:
        _challenge(sock, token, mode, b"", deadline)
        return SocketPipe(sock)
    secure = _wrap_tls(sock)
    try:
        certificate = secure.getpeercert(binary_form=True) or b""
        _challenge(secure, token, mode, certificate, deadline)
    except BaseException:
        secure.close()  # the caller's socket object gave its descriptor to this one
        raise
    return TlsPipe(secure)


def _challenge(
    sock: socket.socket, token: str, mode: int, certificate: bytes, deadline: float
) -> None:
    nonce = auth.new_nonce()
    sock.sendall(nonce)
    answer = _receive_exactly(sock, auth.NONCE_SIZE + auth.PROOF_SIZE, deadline)
    challenge = auth.Challenge(token, mode, certificate, (nonce, answer[: auth.NONCE_SIZE]))
    try:
        challenge.check("sender", answer[auth.NONCE_SIZE :])
    except auth.AuthError:
        sock.sendall(auth.REFUSED)
        raise
    sock.sendall(challenge.proof("receiver"))


class Listener:
    """A bound port in front of a :class:`Server`."""

    def __init__(self, server: Server, token: str, plaintext: bool) -> None:
        self._server = server
        self._token = token
        self._plaintext = plaintext
        self._strangers: "OrderedDict[int, socket.socket]" = OrderedDict()
        self._lock = threading.Lock()
        self.admitted = 0  # connections that proved the token

    def run(self, sock: socket.socket, is_over: Callable[[], bool]) -> None:
        """Accept until ``is_over``."""
        sock.settimeout(_LOOK_EVERY_S)
        while not is_over():
            try:
                connection, address = sock.accept()
            except socket.timeout:
                continue
            except OSError as error:  # out of descriptors, or it hung up while in the queue
                log("accept: {}".format(error))
                time.sleep(0.2)
                continue
            threading.Thread(target=self._serve, args=(connection, address[0]), daemon=True).start()

    @contextlib.contextmanager
    def _one_of_the_strangers(self, connection: socket.socket) -> Iterator[None]:
        """A crowd that says nothing must not keep a sender out: who waited longest has to go."""
        # Of the caller's object TLS takes the descriptor away.
        with connection.dup() as handle:
            with self._lock:
                self._strangers[id(handle)] = handle
                if len(self._strangers) > _MOST_STRANGERS:
                    _, longest = self._strangers.popitem(last=False)
                    with contextlib.suppress(OSError):
                        longest.shutdown(socket.SHUT_RDWR)
            try:
                yield
            finally:
                with self._lock:
                    self._strangers.pop(id(handle), None)

    def _serve(self, connection: socket.socket, name: str) -> None:
        try:
            with self._one_of_the_strangers(connection):
                configure_socket(connection)
                pipe = authenticate(connection, self._token, self._plaintext)
        except (auth.AuthError, OSError, ValueError) as error:
            log("{}: turned away: {}".format(name, error))
            connection.close()
            return
        with self._lock:
            self.admitted += 1
        self._server.handle(FrameStream(pipe, wire.RECEIVER))


def bind(address: str, port: int) -> socket.socket:
    """A listening socket.  Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Looked up for the number of the interface in fe80::1%eth0.
        host, _, *scope = socket.getaddrinfo(address or None, 0, family, flags=socket.AI_PASSIVE)[
            0
        ][4]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port, *scope))
        sock.listen(64)
    except BaseException:
        sock.close()
        raise
    return sock


def open_direct(server: Server, streams: int, addresses: Iterable[str]) -> str:
    """A port for ``streams`` connections of the sender that started us over ssh.

    On the first of ``addresses`` that is this host's.  It is closed as soon as they are there, and
    after ``DIRECT_OPEN_S`` in any case.  Returns the line that tells the sender: ``PORT TOKEN``, or
    ``- WHY NOT``.
    """
    try:
        sock = _bind_direct(addresses)
    except OSError as error:
        return "- {}".format(error.strerror or error)
    token = auth.new_token()
    listener = Listener(server, token, plaintext=False)
    closes_at = time.monotonic() + DIRECT_OPEN_S

    def accept() -> None:
        with sock:
            listener.run(sock, lambda: listener.admitted >= streams or time.monotonic() > closes_at)

    threading.Thread(target=accept, name="direct", daemon=True).start()
    return "{} {}".format(sock.getsockname()[1], token)


def _bind_direct(addresses: Iterable[str]) -> socket.socket:
    why = OSError(errno.EADDRNOTAVAIL, "the host does not know its address")
    for address in addresses:
        for port in itertools.chain(DIRECT_PORTS, [0]):
            try:
                return bind(address, port)
            except OSError as error:
                why = error
                if error.errno != errno.EADDRINUSE:
                    break  # behind address translation it is not this host's
    raise why


def reachable_name(address: str) -> str:
    """What a sender may type for ``address``: itself, or this host's name for "any"."""
    return socket.gethostname() if address in ("0.0.0.0", "::", "") else address


def read_or_make_token(path: str) -> str:
    """The token of a file, made with a new token when it is not there.  Raises OSError."""
    try:
        with open(path) as file:
            token = file.read().strip()
    except FileNotFoundError:
        token = auth.new_token()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(token + "\n")
    if not token:
        # Anybody knows the empty token.
        raise OSError(errno.EINVAL, "the token file is empty; delete it to get a new one", path)
    return token


def announce(token: str, address: str, port: int) -> None:
    """The first lines: the token, and what to type at the sender."""
    host = reachable_name(address)
    host = "[{}]".format(host) if ":" in host else host
    sys.stdout.write(
        "token: {}\nP2V_TOKEN={} p2v-sync sync /dev/sda tcp://{}:{}\n".format(
            token, token, host, port
        )
    )
    sys.stdout.flush()
