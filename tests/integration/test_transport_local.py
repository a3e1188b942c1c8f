"""The embedded receiver, and frames over a bare socket pair."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2v_receiver import wire
from p2v_receiver.serve import Server
from p2v_receiver.stream import FdPipe, FrameStream, SocketPipe
from p2v_sync.engine import ports
from p2v_sync.errors import ConfigError, ConnectFailed, PeerLost
from p2v_sync.transport.channel import StreamChannel
from p2v_sync.transport.local import LocalDialer
from tests.contract.channel_suite import ChannelSuite, Client, ProcessSuite


class PairDialer:
    """The receiver in threads of this process."""

    max_streams = 4
    is_local = True

    def __init__(self, directory: Path) -> None:
        self._server = Server(str(directory))
        self._threads: list[threading.Thread] = []

    def dial(self) -> StreamChannel:
        ours, theirs = socket.socketpair()
        stream = FrameStream(SocketPipe(theirs), wire.RECEIVER)
        self._threads.append(threading.Thread(target=self._server.handle, args=(stream,)))
        self._threads[-1].start()
        return StreamChannel(SocketPipe(ours))

    def close(self) -> None:
        for thread in self._threads:
            thread.join()


class TestSocketPair(ChannelSuite):
    @pytest.fixture
    def dialer(self, directory: Path) -> Iterator[ports.Dialer]:
        dialer = PairDialer(directory)
        yield dialer
        dialer.close()


class TestLocal(ProcessSuite):
    @pytest.fixture
    def dialer(self, directory: Path) -> Iterator[ports.Dialer]:
        dialer = LocalDialer(str(directory), 4)
        yield dialer
        dialer.close()

    def dialer_source(self, directory: Path) -> str:
        return (
            "from p2v_sync.transport.local import LocalDialer\n"
            f"dialer = LocalDialer({str(directory)!r}, 4)"
        )

    def test_close_lets_the_child_end_by_itself(self, directory: Path) -> None:
        dialer = LocalDialer(str(directory), 1)
        with self.dialled(dialer) as client:
            client.greet()
            client.open("sda")
        pid = dialer.pid
        dialer.close()
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        dialer.close()

    def test_a_new_child_follows_a_dead_one(self, directory: Path) -> None:
        dialer = LocalDialer(str(directory), 1)
        with self.dialled(dialer) as client:
            client.greet()
            first = dialer.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            with pytest.raises(PeerLost):
                client.channel.receive()
        with self.dialled(dialer) as client:
            client.greet()
        assert dialer.pid != first
        dialer.close()

    @pytest.mark.parametrize("dies_first", [False, True])
    def test_the_last_words_of_a_dead_child_are_told(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, dies_first: bool
    ) -> None:
        broken = directory / "broken"
        (broken / "p2v_receiver").mkdir(parents=True)
        (broken / "p2v_receiver" / "wire.py").touch()
        (broken / "p2v_receiver" / "__main__.py").write_text("raise SystemExit('no legs')\n")
        monkeypatch.setattr(wire, "__file__", str(broken / "p2v_receiver" / "wire.py"))
        dialer = LocalDialer(str(directory), 1)
        send_fds = socket.send_fds

        def knock(*arguments: Any) -> int:
            assert dialer.pid is not None
            os.waitid(os.P_PID, dialer.pid, os.WEXITED | os.WNOWAIT)
            return send_fds(*arguments)

        if dies_first:
            monkeypatch.setattr(socket, "send_fds", knock)
        channel = dialer.dial()
        with pytest.raises(PeerLost, match="no legs"):
            channel.receive()
        channel.close()
        dialer.close()

    def test_no_python_is_an_error(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.executable", str(directory / "python"))
        with pytest.raises(ConnectFailed, match="No such file"):
            LocalDialer(str(directory), 1).dial()

    def test_modules_of_the_working_directory_are_not_taken(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (directory / "json.py").write_text("raise SystemExit('taken')\n")
        monkeypatch.chdir(directory)
        dialer = LocalDialer("images", 1)
        with self.dialled(dialer) as client:
            client.greet()
            client.open("sda")
            client.close()
        dialer.close()
        assert (directory / "images" / "job" / "sda.img").exists()


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    with pytest.raises(ConfigError, match="is a file, not a directory"):
        LocalDialer(str(image), 1)


class Deaf:
    """A pipe whose other end is there, takes everything and never says a word."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def recv_into(self, view: memoryview) -> int:
        del view
        self.closed.wait()
        return 0

    def sendall(self, data: wire.Buffer) -> None:
        del data

    def close(self) -> None:
        self.closed.set()


class Stuck(Deaf):
    """A pipe whose buffers are full."""

    def sendall(self, data: wire.Buffer) -> None:
        del data
        self.closed.wait()
        raise OSError("closed")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(wire, "SILENCE_LIMIT_S", 2.0)


@pytest.mark.usefixtures("impatient")
def test_silence_is_noticed() -> None:
    channel = StreamChannel(Deaf())
    with pytest.raises(PeerLost, match="silent"):
        channel.receive()


@pytest.mark.usefixtures("impatient")
def test_silence_wakes_a_sender_whose_buffers_are_full() -> None:
    channel = StreamChannel(Stuck())

    def listen() -> None:
        with pytest.raises(PeerLost):
            channel.receive()

    threading.Thread(target=listen, daemon=True).start()
    with pytest.raises(PeerLost, match="silent"):
        channel.send(wire.FrameType.HELLO, b"{}")


@pytest.mark.usefixtures("impatient")
def test_a_peer_is_not_silent_while_nobody_listens() -> None:
    """A receiver that is stuck in a slow write must not take the sender for dead."""
    ours, theirs = socket.socketpair()
    busy = FrameStream(SocketPipe(theirs), wire.RECEIVER)
    busy.start_heartbeat()
    client = Client(StreamChannel(SocketPipe(ours)))
    client.channel.send(wire.FrameType.HELLO, b"{}")
    assert busy.receive().kind is wire.FrameType.HELLO
    client.channel.send(wire.FrameType.ERROR, b"{}")
    threading.Event().wait(4.0)
    assert busy.receive().kind is wire.FrameType.ERROR
    busy.close()
    client.channel.close()


def test_close_wakes_a_receiver_whose_ssh_takes_nothing_more() -> None:
    """Else it would hold the image's lock for as long as sshd keeps a dead link."""
    input_fd, output_fd = os.pipe()
    pipe = FdPipe(input_fd, output_fd)
    failed = threading.Event()

    def fill() -> None:
        with pytest.raises(OSError, match="closed"):
            pipe.sendall(bytes(1 << 20))
        failed.set()

    threading.Thread(target=fill).start()
    assert not failed.wait(0.2)
    pipe.close()
    assert failed.wait(5)
    assert pipe.recv_into(memoryview(bytearray(10))) == 0
    os.close(input_fd)
    os.close(output_fd)
