"""Raw TCP against a real ``p2v-receiver listen``: the contract, and all who are turned away."""

import contextlib
import os
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2v_receiver import auth, wire
from p2v_sync.engine import ports
from p2v_sync.errors import (
    AuthFailed,
    ConnectFailed,
    P2vError,
    PeerLost,
    ProtocolError,
    VersionMismatch,
)
from p2v_sync.transport import tcp
from p2v_sync.transport.address import TcpTarget
from p2v_sync.transport.tcp import TcpDialer
from tests.contract.channel_suite import ROOT, Client, ProcessSuite

TOKEN = "correct horse battery staple"


def free_port(family: int = socket.AF_INET) -> int:
    with socket.socket(family) as sock:
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Receiver:
    """A ``p2v-receiver listen`` of its own process."""

    def __init__(self, directory: Path, *options: str, bind: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self.port = free_port(family)
        argv = [sys.executable, "-m", "p2v_receiver", "listen", f"--dir={directory}"]
        self._argv = [*argv, f"--bind={bind}", f"--port={self.port}", *options]
        self.host = bind
        self.start()

    def start(self) -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "receiver"), "P2V_TOKEN": TOKEN}
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, env=environ)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith(b"token: ")

    def dialer(self, token: str = TOKEN, streams: int = 4) -> TcpDialer:
        return TcpDialer(TcpTarget(self.host, self.port), token, streams)

    @property
    def pid(self) -> int:
        return self._process.pid

    def connect(self) -> socket.socket:
        sock = socket.create_connection((self.host, self.port), 5)
        sock.settimeout(15)
        return sock

    def stop(self) -> None:
        self._process.kill()
        with self._process:
            self._process.wait()


class Proxy:
    """Between the two ends: forwards, changes, records or swallows what comes by."""

    def __init__(
        self,
        port: int,
        change: Callable[[str, bytes], bytes] | None = None,
        door: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self._door = socket.create_server(door)
        self._port = port
        self._change = change or (lambda _, data: data)
        self.black_hole = threading.Event()
        self.recorded: list[bytes] = []
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def target(self) -> TcpTarget:
        return TcpTarget(*self._door.getsockname()[:2])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._door.accept()
                self._join(here)

    def _join(self, here: socket.socket) -> None:
        try:
            there = socket.create_connection(("127.0.0.1", self._port))
        except ConnectionRefusedError:
            here.close()
            return
        self._sockets += [here, there]
        for who, source, sink in (("sender", here, there), ("receiver", there, here)):
            forward = threading.Thread(target=self._forward, args=(who, source, sink))
            forward.daemon = True
            forward.start()

    def _forward(self, who: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if who == "sender":
                    self.recorded.append(data)
                if not self.black_hole.is_set():
                    sink.sendall(self._change(who, data))
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Break what goes through now."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self.cut()
        for sock in self._sockets:
            sock.close()
        self._thread.join(5)


class TestPlaintext(ProcessSuite):
    options: tuple[str, ...] = ("--plaintext",)

    @pytest.fixture
    def receiver(self, directory: Path) -> Iterator[Receiver]:
        receiver = Receiver(directory, *self.options)
        yield receiver
        receiver.stop()

    @pytest.fixture
    def dialer(self, receiver: Receiver) -> ports.Dialer:
        self.server = receiver
        return receiver.dialer()

    def dialer_source(self, directory: Path) -> str:
        del directory
        return (
            "from p2v_sync.transport.tcp import TcpDialer\n"
            "from p2v_sync.transport.address import TcpTarget\n"
            f"dialer = TcpDialer(TcpTarget('127.0.0.1', {self.server.port}), {TOKEN!r}, 4)"
        )

    def revive(self) -> None:
        self.server.stop()
        self.server.start()


class TestTls(TestPlaintext):
    options = ()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture(params=[(), ("--plaintext",)], ids=["tls", "plaintext"])
def receiver(directory: Path, request: pytest.FixtureRequest) -> Iterator[Receiver]:
    receiver = Receiver(directory, *request.param)
    yield receiver
    receiver.stop()


@pytest.fixture
def tls_receiver(directory: Path) -> Iterator[Receiver]:
    receiver = Receiver(directory)
    yield receiver
    receiver.stop()


def greet(dialer: TcpDialer) -> None:
    channel = dialer.dial()
    Client(channel).greet()
    channel.close()


def stranger(answer: bytes) -> Iterator[TcpTarget]:
    """Something else that listens: it says ``answer`` and waits."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = door.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(answer)
                    connection.recv(100)

        threading.Thread(target=serve, daemon=True).start()
        yield TcpTarget("127.0.0.1", door.getsockname()[1])


dial_stranger = contextlib.contextmanager(stranger)


class TestTheSendersErrors:
    def test_nobody_there(self) -> None:
        with pytest.raises(ConnectFailed, match="refused") as caught:
            TcpDialer(TcpTarget("127.0.0.1", free_port()), TOKEN, 1).dial()
        assert caught.value.retryable
        assert "p2v-receiver listen" in str(caught.value)

    def test_no_such_host(self) -> None:
        with pytest.raises(ConnectFailed):
            TcpDialer(TcpTarget("no-such-host.invalid", 1), TOKEN, 1).dial()

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\x15\x03\x01\x00\x02\x02P",
        ],
    )
    def test_something_else_listens_there(self, answer: bytes) -> None:
        with dial_stranger(answer) as target, pytest.raises(ProtocolError) as caught:
            TcpDialer(target, TOKEN, 1).dial()
        assert "does not speak p2v-sync" in str(caught.value)
        assert not caught.value.retryable

    def test_another_version(self) -> None:
        with dial_stranger(b"p2v-sync-2\r\n\0") as target, pytest.raises(VersionMismatch):
            TcpDialer(target, TOKEN, 1).dial()

    def test_a_mode_of_the_future(self) -> None:
        with (
            dial_stranger(auth.PREAMBLE + b"\x09") as target,
            pytest.raises(ProtocolError, match="mode 9"),
        ):
            TcpDialer(target, TOKEN, 1).dial()

    def test_one_that_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "TIMEOUT_S", 0.3)
        with dial_stranger(b"") as target, pytest.raises(ConnectFailed, match="no answer"):
            TcpDialer(target, TOKEN, 1).dial()

    def test_one_that_hangs_up(self, tls_receiver: Receiver) -> None:
        proxy = Proxy(tls_receiver.port, lambda who, data: b"" if who == "sender" else data)
        proxy.black_hole.set()
        threading.Timer(0.3, proxy.close).start()
        with pytest.raises(ConnectFailed) as caught:
            TcpDialer(proxy.target, TOKEN, 1).dial()
        assert caught.value.retryable

    def test_wrong_token(self, receiver: Receiver) -> None:
        with pytest.raises(AuthFailed, match="does not accept the token") as caught:
            receiver.dialer("wrong").dial()
        assert not caught.value.retryable
        greet(receiver.dialer())

    def test_a_link_lost_where_the_proof_is_due_is_no_wrong_token(self) -> None:
        nonce = bytes(auth.NONCE_SIZE)
        with (
            dial_stranger(auth.PREAMBLE + b"\0" + nonce) as target,
            pytest.raises(ConnectFailed, match="hung up"),
        ):
            TcpDialer(target, TOKEN, 1).dial()

    def test_a_receiver_that_does_not_know_the_token(self) -> None:
        nonce, proof = bytes(auth.NONCE_SIZE), b"x" * auth.PROOF_SIZE
        with (
            dial_stranger(auth.PREAMBLE + b"\0" + nonce + proof) as target,
            pytest.raises(AuthFailed, match="does not know the token itself"),
        ):
            TcpDialer(target, TOKEN, 1).dial()


def test_ipv6(directory: Path) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("needs IPv6 on loopback")
    receiver = Receiver(directory, bind="::1")
    greet(receiver.dialer())
    receiver.stop()


def hung_up(sock: socket.socket) -> bool:
    """The other end closed, possibly after some last bytes."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


class TestWhoeverElseCalls:
    def test_a_browser(self, receiver: Receiver) -> None:
        with receiver.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
            assert hung_up(sock)
        greet(receiver.dialer())

    def test_a_port_scanner(self, receiver: Receiver) -> None:
        for _ in range(20):
            receiver.connect().close()
        greet(receiver.dialer())

    def test_a_tls_client(self, receiver: Receiver) -> None:
        context = ssl.create_default_context()
        with receiver.connect() as sock, pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(sock, server_hostname="example")
        greet(receiver.dialer())

    def test_a_hundred_who_say_nothing(self, receiver: Receiver) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(receiver.connect())
            started_s = time.monotonic()
            greet(receiver.dialer())
            assert time.monotonic() - started_s < auth.TIMEOUT_S
            status = Path(f"/proc/{receiver.pid}/status").read_text()
            assert int(status.partition("Threads:")[2].split()[0]) < 80

    def test_a_hundred_who_only_begin(self, receiver: Receiver) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(receiver.connect()).sendall(auth.PREAMBLE)
            greet(receiver.dialer())

    def test_one_who_drips(self, tls_receiver: Receiver) -> None:
        """All of the handshake must be over in ten seconds, not each byte of it."""
        started_s = time.monotonic()
        with tls_receiver.connect() as sock, contextlib.suppress(OSError):
            for letter in auth.PREAMBLE[:-1]:
                sock.sendall(bytes([letter]))
                time.sleep(1.2)
            hung_up(sock)
        assert time.monotonic() - started_s < auth.TIMEOUT_S + 20

    def test_without_a_token_nothing_is_written(self, receiver: Receiver, directory: Path) -> None:
        with receiver.connect() as sock:
            sock.sendall(auth.PREAMBLE)
            hello = wire.pack_json({"version": wire.VERSION, "oldest": wire.VERSION})
            sock.sendall(wire.Connection(wire.SENDER).send(wire.FrameType.HELLO, hello, 0) + hello)
            assert hung_up(sock)
        assert list(directory.iterdir()) == []

    def test_a_replay(self, directory: Path) -> None:
        """What a good sender said is worthless the second time."""
        receiver = Receiver(directory, "--plaintext")
        proxy = Proxy(receiver.port)
        greet(TcpDialer(proxy.target, TOKEN, 1))
        proxy.close()
        handshake = len(auth.PREAMBLE) + auth.NONCE_SIZE + auth.PROOF_SIZE
        with receiver.connect() as sock, sock.makefile("rb") as answers:
            sock.sendall(b"".join(proxy.recorded)[:handshake])
            answer = answers.read()
        nonce_end = len(auth.PREAMBLE) + 1 + auth.NONCE_SIZE
        assert answer.startswith(auth.PREAMBLE)
        assert answer[nonce_end:] == auth.REFUSED
        receiver.stop()


class TestSomebodyBetween:
    def test_cannot_talk_the_sender_down_to_plaintext(self, tls_receiver: Receiver) -> None:
        def downgrade(who: str, data: bytes) -> bytes:
            tls = auth.PREAMBLE + bytes([auth.TLS])
            plain = auth.PREAMBLE + bytes([auth.PLAINTEXT])
            return data.replace(tls, plain) if who == "receiver" else data

        proxy = Proxy(tls_receiver.port, downgrade)
        with pytest.raises(P2vError):
            TcpDialer(proxy.target, TOKEN, 1).dial()
        proxy.close()

    def test_cannot_turn_tls_into_plaintext_halfway(self, tls_receiver: Receiver) -> None:
        """A clever one speaks TLS to the receiver and plaintext to the sender."""
        with (
            man_in_the_middle(tls_receiver, plain_to_sender=True) as target,
            pytest.raises(AuthFailed),
        ):
            TcpDialer(target, TOKEN, 1).dial()

    def test_cannot_put_in_an_own_certificate(self, tls_receiver: Receiver) -> None:
        with (
            man_in_the_middle(tls_receiver, plain_to_sender=False) as target,
            pytest.raises(AuthFailed),
        ):
            TcpDialer(target, TOKEN, 1).dial()

    def test_can_forward_unread(self, receiver: Receiver) -> None:
        proxy = Proxy(receiver.port)
        greet(TcpDialer(proxy.target, TOKEN, 1))
        proxy.close()


@contextlib.contextmanager
def man_in_the_middle(receiver: Receiver, *, plain_to_sender: bool) -> Iterator[TcpTarget]:
    """Ends TLS on both sides with a certificate of his own and forwards what is inside."""
    door = socket.create_server(("127.0.0.1", 0))
    context, _ = tcp._tls_identity.__wrapped__()  # a fresh one: not the sender's
    pairs: queue.Queue[socket.socket] = queue.Queue()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            here, _ = door.accept()
            there = receiver.connect()
            there.sendall(here.recv(100))
            greeting = there.recv(len(auth.PREAMBLE) + 1)  # its TLS follows at once
            there = context.wrap_socket(there, server_side=True)
            if plain_to_sender:
                here.sendall(greeting[:-1] + bytes([auth.PLAINTEXT]))
            else:
                here.sendall(greeting)
                client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                client.check_hostname = False
                client.verify_mode = ssl.CERT_NONE
                here = client.wrap_socket(here)
            for sock in (here, there):
                pairs.put(sock)
            threading.Thread(target=pump, args=(here, there), daemon=True).start()
            pump(there, here)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with door:
        yield TcpTarget("127.0.0.1", door.getsockname()[1])
    thread.join(5)
    while not pairs.empty():
        pairs.get().close()


class TestDeadPeers:
    def test_a_black_hole_is_noticed(
        self, receiver: Receiver, grow_impatient: Callable[[], None]
    ) -> None:
        proxy = Proxy(receiver.port)
        channel = TcpDialer(proxy.target, TOKEN, 1).dial()
        Client(channel).greet()
        proxy.black_hole.set()
        grow_impatient()
        with pytest.raises(PeerLost, match="silent"):
            channel.receive()
        proxy.close()

    def test_a_stopped_receiver_is_noticed_by_a_sender_in_full_flow(
        self, receiver: Receiver, grow_impatient: Callable[[], None]
    ) -> None:
        channel = receiver.dialer().dial()
        client = Client(channel)
        client.greet()
        client.open("sda", 1 << 30)
        begin = {"kind": "initial", "source": {}}
        channel.send(wire.FrameType.BEGIN, wire.pack_json(begin))
        client.expect(wire.FrameType.BEGUN)
        os.kill(receiver.pid, signal.SIGSTOP)
        grow_impatient()
        failed: queue.Queue[BaseException] = queue.Queue()

        def listen() -> None:
            try:
                channel.receive()
            except PeerLost as error:
                failed.put(error)

        threading.Thread(target=listen, daemon=True).start()
        with pytest.raises(PeerLost, match="silent"):
            send_forever(channel)
        assert isinstance(failed.get(timeout=5), PeerLost)
        os.kill(receiver.pid, signal.SIGCONT)


def send_forever(channel: ports.Channel) -> None:
    data = bytes(wire.MAX_BODY)
    while True:
        channel.send(wire.FrameType.VERIFY, wire.Verify(0, 0, 1).pack(), data)
