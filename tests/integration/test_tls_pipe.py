"""TLS as a pipe: what has come is received at once, and heard before a failure."""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_receiver.stream import TlsPipe, configure_socket
from p2v_sync.transport.certificate import self_signed
from p2v_sync.units import KIB

Pair = tuple[TlsPipe, ssl.SSLSocket]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two ends of one connection over TCP."""
    pem, _ = self_signed()
    (tmp_path / "pem").write_bytes(pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "pem")
    server.num_tickets = 0  # as the sender's
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    served: list[ssl.SSLSocket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            served.append(server.wrap_socket(listening.accept()[0], server_side=True))

        thread = threading.Thread(target=serve)
        thread.start()
        here = TlsPipe(client.wrap_socket(socket.create_connection(listening.getsockname())))
        thread.join()
    yield here, served[0]
    here.close()
    served[0].close()


def received(pipe: TlsPipe, length: int) -> bytes:
    """By one call."""
    buffer = memoryview(bytearray(length))
    return bytes(buffer[: pipe.recv_into(buffer)])


def test_what_has_come_is_received_at_once(pair: Pair) -> None:
    here, there = pair
    there.sendall(b"a" * 20 * KIB)  # two records
    there.sendall(b"b" * 20 * KIB)
    assert received(here, 30 * KIB) == b"a" * 20 * KIB + b"b" * 10 * KIB
    assert received(here, 30 * KIB) == b"b" * 10 * KIB


def test_last_words_are_heard_before_the_failure(pair: Pair) -> None:
    here, there = pair
    configure_socket(there)  # nothing is held back
    there.sendall(b"last words")
    os.write(there.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))  # a record nobody encrypted
    assert received(here, KIB) == b"last words"
    with pytest.raises(OSError, match="SSL"):
        received(here, KIB)
