"""Raw TCP: dial a ``p2v-receiver listen``, prove the token (auth.py), encrypt when it asks for it.

The sender is the TLS *server*, with a certificate made for this process: the host then needs no
openssl and no files.  Nobody signs the certificate; the token's proofs cover it.
"""

import contextlib
import functools
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from p2v_receiver import auth
from p2v_receiver.stream import SocketPipe, TlsPipe, configure_socket
from p2v_sync.errors import (
    AuthFailed,
    CommandError,
    ConfigError,
    ConnectFailed,
    ProtocolError,
    VersionMismatch,
)
from p2v_sync.run import Process
from p2v_sync.transport.address import TcpTarget, bracketed
from p2v_sync.transport.channel import Pipe, StreamChannel

CONNECT_TIMEOUT_S = 10.0
Socket = socket.socket

_FAMILY = auth.PREAMBLE[: auth.PREAMBLE.rindex(b"-") + 1]  # what all versions begin with
_CROWDED = "is something between us that drops connections, or is the receiver overrun?"
_WRONG_TOKEN = (
    "copy the token from the first line that p2v-receiver listen printed; it makes a new one at "
    "each start unless it is given --token-file"
)


class TcpDialer:
    """Authenticated connections to one listening receiver.  Satisfies ``Dialer``."""

    is_local = False

    def __init__(self, target: TcpTarget, token: str, streams: int) -> None:
        self.max_streams = streams
        self._target = target
        self._token = token

    def dial(self) -> StreamChannel:
        """A new connection.  Raises ConnectFailed, AuthFailed, ProtocolError."""
        sock = connect(self._target.host, self._target.port, "is p2v-receiver listen running there")
        return authenticate(sock, self._target, self._token)

    def close(self) -> None:
        """Nothing is kept between connections."""


def connect(
    host: str, port: int, question: str, within_s: float = CONNECT_TIMEOUT_S
) -> socket.socket:
    """A TCP connection, IPv4 or IPv6.  Raises ConnectFailed with ``question`` in its hint."""
    try:
        sock = socket.create_connection((host, port), within_s)
    except OSError as error:
        raise ConnectFailed(
            f"{bracketed(host)}:{port}: {_reason(error, within_s)}",
            hint=f"{question}, and does a firewall let us through?",
        ) from error
    configure_socket(sock)
    return sock


def authenticate(sock: socket.socket, target: TcpTarget, token: str) -> StreamChannel:
    """Both ends of a new connection prove the token.  ``sock`` is closed when they fail to.

    Raises ConnectFailed, AuthFailed, ProtocolError.
    """
    name = f"{bracketed(target.host)}:{target.port}"
    try:
        return StreamChannel(_Handshake(name, token).run(sock))
    except OSError as error:
        reason = _reason(error, auth.TIMEOUT_S)
        raise ConnectFailed(f"{name}: {reason}", hint=_CROWDED) from error


def connect_through(command: str) -> tuple[Socket, Process]:
    """A ProxyCommand's standard input and output as a socket, and what runs it.

    Raises ConnectFailed.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            # ssh_config(5) defines it as a line for the shell, to be run with exec.
            process = Process(["/bin/sh", "-c", f"exec {command}"], stdio=theirs.fileno())
        except CommandError as error:
            ours.close()
            raise ConnectFailed(f"ProxyCommand {command}: {error}") from error
    return ours, process


def _reason(error: OSError, within_s: float) -> str:
    # Where the kernel gives up earlier it has a reason of its own, and a number.
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no answer within {within_s:.0f} s"
    return error.strerror or str(error)


class _Handshake:
    """The sender's half of auth.py.  All of it must be over within auth.TIMEOUT_S."""

    def __init__(self, name: str, token: str) -> None:
        self._name = name
        self._token = token
        self._deadline_s = time.monotonic() + auth.TIMEOUT_S

    def run(self, sock: socket.socket) -> Pipe:
        """Closes ``sock`` when it fails.  Raises OSError, AuthFailed, ProtocolError."""
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(sock.close)
            mode = self._greet(sock)
            certificate = b""
            if mode == auth.TLS:
                context, certificate = _tls_identity()
                sock = self._wrap(sock, context)
                on_failure.callback(sock.close)
            self._prove(sock, mode, certificate)
            on_failure.pop_all()
        return TlsPipe(sock) if isinstance(sock, ssl.SSLSocket) else SocketPipe(sock)

    def _receive(self, sock: socket.socket, length: int) -> bytes:
        data = b""
        while len(data) < length:
            sock.settimeout(max(0.001, self._deadline_s - time.monotonic()))
            piece = sock.recv(length - len(data))
            if not piece:
                raise ConnectionResetError(None, "it hung up")
            data += piece
        return data

    def _greet(self, sock: socket.socket) -> int:
        sock.sendall(auth.PREAMBLE)
        for at, expected in enumerate(auth.PREAMBLE):
            if self._receive(sock, 1)[0] != expected:
                raise self._stranger(at)
        mode = self._receive(sock, 1)[0]
        if mode not in (auth.TLS, auth.PLAINTEXT):
            raise ProtocolError(f"{self._name}: mode {mode} is not known here")
        return mode

    def _stranger(self, matched: int) -> ProtocolError:
        if matched >= len(_FAMILY):
            return VersionMismatch(
                f"{self._name} speaks another version of the protocol",
                hint="use the same version of p2v-sync on both ends",
            )
        return ProtocolError(
            f"{self._name} does not speak p2v-sync",
            hint="something else listens there; name the port that p2v-receiver listen printed",
        )

    def _wrap(self, sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        try:
            return context.wrap_socket(sock, server_side=True)
        except ssl.SSLEOFError:
            raise
        except ssl.SSLError as error:
            raise ProtocolError(f"{self._name}: no encrypted connection: {error}") from error

    def _prove(self, sock: socket.socket, mode: int, certificate: bytes) -> None:
        theirs, ours = self._receive(sock, auth.NONCE_SIZE), auth.new_nonce()
        challenge = auth.Challenge(self._token, mode, certificate, (theirs, ours))
        sock.sendall(ours + challenge.proof("sender"))
        answer = self._receive(sock, auth.PROOF_SIZE)
        if answer == auth.REFUSED:
            raise AuthFailed(f"{self._name} does not accept the token", hint=_WRONG_TOKEN)
        try:
            challenge.check("receiver", answer)
        except auth.AuthError as error:
            raise AuthFailed(
                f"{self._name} does not know the token itself: it is another receiver, or "
                "somebody is between us",
                hint=_WRONG_TOKEN,
            ) from error


@functools.cache
def _tls_identity() -> tuple[ssl.SSLContext, bytes]:
    """Our side of TLS, and its certificate in DER: one for the process."""
    # Only now: cryptography takes a fifth of the start-up time.
    from p2v_sync.transport.certificate import self_signed

    pem, der = self_signed()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # nothing is ever resumed, and nobody would read them
    # OpenSSL wants a file; this one is never on a disk.
    with open(os.memfd_create("p2v-identity"), "wb") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context, der


def find_token(
    token_file: Path | None, environ: Mapping[str, str], ask: Callable[[], str] | None
) -> str:
    """The token, from the first place that is there.  ``ask`` is None without a terminal.

    Raises ConfigError.
    """
    if token_file is not None:
        return _clean(_read_token(token_file), f"in {token_file}")
    if environ.get("P2V_TOKEN"):
        return _clean(environ["P2V_TOKEN"], "in P2V_TOKEN")
    if ask is not None:
        return _clean(ask(), "that was typed")
    raise ConfigError(
        "a raw TCP receiver asks for its token, and there is none",
        hint="give it with --token-file FILE, in the variable P2V_TOKEN, or run on a terminal to "
        "be asked; p2v-receiver listen prints it on its first line",
    )


def _read_token(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"--token-file {path}: {reason}") from error


def _clean(text: str, where: str) -> str:
    token = text.strip()
    if not token or not token.isprintable():
        raise ConfigError(
            f"the token {where} is {'no token' if token else 'empty'}", hint=_WRONG_TOKEN
        )
    return token
