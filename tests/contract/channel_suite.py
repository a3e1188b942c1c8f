"""What every ``engine.ports.Dialer`` and its channels must do.  Subclass it and make one."""

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2v_receiver import codec, wire
from p2v_receiver.wire import Frame, FrameType
from p2v_sync.engine import ports
from p2v_sync.errors import PeerLost, ProtocolError

MIB = 1024 * 1024
BLOCK = 256 * 1024
ROOT = Path(__file__).parents[2]


def noise(length: int) -> bytes:
    """Bytes that look random and are the same each time."""
    return hashlib.shake_128(b"p2v").digest(length)


class Client:
    """The few lines of the engine that a test of a connection needs."""

    def __init__(self, channel: ports.Channel, run: str = "run-1") -> None:
        self.channel = channel
        self.run = run

    def ask(self, kind: FrameType, message: dict[str, Any], answer: FrameType) -> dict[str, Any]:
        self.channel.send(kind, wire.pack_json(message))
        return wire.unpack_json(self.expect(answer).meta)

    def expect(self, kind: FrameType) -> Frame:
        while True:
            frame = self.channel.receive()
            if frame.kind is FrameType.ERROR:
                pytest.fail(f"the receiver says {wire.unpack_json(frame.meta)}")
            if frame.kind is kind:
                return frame

    def greet(self) -> dict[str, Any]:
        versions = {"version": wire.VERSION, "oldest": wire.VERSION}
        return self.ask(FrameType.HELLO, versions, FrameType.WELCOME)

    def open(self, disk: str, size: int = MIB) -> dict[str, Any]:
        message = {
            "job": "job",
            "disk": disk,
            "size": size,
            "block_size": BLOCK,
            "digest": "blake2b",
            "digests": ["blake2b"],
            "run": self.run,
            "source_file": {},
            "create": True,
        }
        return self.ask(FrameType.OPEN, message, FrameType.OPENED)

    def copy(self, opened: dict[str, Any], data: bytes) -> None:
        """Everything in one DATA frame, then a checkpoint."""
        digest = codec.digest_function(opened["digest"], opened["seed"])
        entries = b"".join(codec.entries_of(memoryview(data), BLOCK, digest))
        begin = {"kind": "initial", "source": {}}
        self.channel.send(FrameType.BEGIN, wire.pack_json(begin))
        self.expect(FrameType.BEGUN)
        head = wire.Data(0, codec.RAW, len(data), entries)
        self.channel.send(FrameType.DATA, head.pack(), data)
        summary = wire.Segments(0, 1, codec.entries_digest(codec.entries_digest(entries)))
        self.channel.send(FrameType.SEGMENTS, summary.pack())
        self.expect(FrameType.WRITTEN)
        self.channel.send(FrameType.CHECKPOINT, wire.pack_number(1))
        self.expect(FrameType.COMMITTED)

    def close(self) -> None:
        self.channel.send(FrameType.CLOSE)
        self.expect(FrameType.CLOSED)
        self.channel.close()


def wait_until(condition: Any, within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def receive_forever(channel: ports.Channel) -> None:
    while True:
        channel.receive()


def free(lock: Path) -> bool:
    """True when no process holds the lock of an image."""
    with lock.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class ChannelSuite:
    """``dialer`` leads to a receiver that keeps its images in ``directory``."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        path = tmp_path / "images"
        path.mkdir()
        return path

    @pytest.fixture
    def dialer(self, directory: Path) -> Iterator[ports.Dialer]:
        raise NotImplementedError

    @contextlib.contextmanager
    def dialled(self, dialer: ports.Dialer, run: str = "run-1") -> Iterator[Client]:
        channel = dialer.dial()
        try:
            yield Client(channel, run)
        finally:
            channel.close()

    def test_it_greets(self, dialer: ports.Dialer) -> None:
        with self.dialled(dialer) as client:
            welcome = client.greet()
        assert welcome["version"] == wire.VERSION
        assert "blake2b" in welcome["digests"]

    def test_a_disk_arrives(self, dialer: ports.Dialer, directory: Path) -> None:
        data = noise(MIB)
        with self.dialled(dialer) as client:
            client.greet()
            client.copy(client.open("sda"), data)
            client.close()
        assert (directory / "job" / "sda.img").read_bytes() == data

    def test_the_largest_frame_arrives(self, dialer: ports.Dialer, directory: Path) -> None:
        data = noise(wire.MAX_BODY)
        with self.dialled(dialer) as client:
            client.greet()
            before = client.channel.bytes_sent
            client.copy(client.open("sda", len(data)), data)
            assert client.channel.bytes_sent - before > len(data)
            client.close()
        assert (directory / "job" / "sda.img").read_bytes() == data

    def test_send_tells_what_it_took(self, dialer: ports.Dialer) -> None:
        with self.dialled(dialer) as client:
            hello = wire.pack_json({"version": wire.VERSION, "oldest": wire.VERSION})
            assert client.channel.send(FrameType.HELLO, hello) == wire.HEADER.size + len(hello)

    def test_several_sessions_at_once(self, dialer: ports.Dialer, directory: Path) -> None:
        data = noise(MIB)
        with self.dialled(dialer) as first, self.dialled(dialer) as second:
            for client, disk in ((first, "sda"), (second, "sdb")):
                client.greet()
                client.copy(client.open(disk), data)
            first.close()
            second.close()
        for disk in ("sda", "sdb"):
            assert (directory / "job" / f"{disk}.img").read_bytes() == data

    def test_further_connections_attach(self, dialer: ports.Dialer) -> None:
        with self.dialled(dialer) as control:
            control.greet()
            opened = control.open("sda")
            attach = {"session": opened["session"], "token": opened["token"]}
            for channel in control.channel.bulk or self._further(dialer):
                stream = Client(channel)
                stream.greet()
                stream.ask(FrameType.ATTACH, attach, FrameType.ATTACHED)
                stream.close()
            control.close()

    def _further(self, dialer: ports.Dialer) -> Iterator[ports.Channel]:
        assert dialer.max_streams > 1 or not dialer.is_local
        for _ in range(dialer.max_streams - 1):
            yield dialer.dial()

    def test_close_wakes_receive(self, dialer: ports.Dialer) -> None:
        channel = dialer.dial()
        timer = threading.Timer(0.2, channel.close)
        timer.start()
        with pytest.raises(PeerLost):
            receive_forever(channel)
        timer.join()
        channel.close()

    def test_after_close_nothing_is_sent(self, dialer: ports.Dialer) -> None:
        channel = dialer.dial()
        channel.close()
        with pytest.raises(PeerLost):
            channel.send(FrameType.HELLO, b"{}")

    def test_what_the_protocol_forbids_is_an_error(self, dialer: ports.Dialer) -> None:
        with self.dialled(dialer) as client, pytest.raises(ProtocolError):
            client.channel.send(FrameType.CHECKPOINT, wire.pack_number(1))

    def test_a_lost_link_frees_the_image(self, dialer: ports.Dialer, directory: Path) -> None:
        with self.dialled(dialer) as client:
            client.greet()
            client.open("sda")
        wait_until(lambda: free(directory / "job" / "sda.lock"))

    def test_one_comes_back_after_a_lost_link(self, dialer: ports.Dialer) -> None:
        data = noise(MIB)
        with self.dialled(dialer) as client:
            client.greet()
            client.copy(client.open("sda"), data)
        with self.dialled(dialer) as client:
            client.greet()
            assert client.open("sda")["generation"] > 0
            client.close()


class ProcessSuite(ChannelSuite):
    """For receivers that are processes of their own: each end notices the other's kill -9."""

    def receivers(self, directory: Path) -> list[int]:
        """The processes that work on ``directory``."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    for link in (entry / "fd").iterdir():
                        if Path(os.readlink(link)).is_relative_to(directory):
                            found.append(int(entry.name))
                            break
        return found

    def test_the_receivers_kill_is_noticed(self, dialer: ports.Dialer, directory: Path) -> None:
        with self.dialled(dialer) as client:
            client.greet()
            client.open("sda")
            for pid in self.receivers(directory):
                os.kill(pid, signal.SIGKILL)
            started_s = time.monotonic()
            with pytest.raises(PeerLost):
                receive_forever(client.channel)
            assert time.monotonic() - started_s < 10
        self.revive()
        with self.dialled(dialer) as client:
            client.greet()
            client.open("sda")
            client.close()

    def revive(self) -> None:
        """Start the receiver again, where ``dial`` does not do that."""

    def dialer_source(self, directory: Path) -> str:
        """Python that sets ``dialer``, for a process that will be killed."""
        raise NotImplementedError

    def test_the_senders_kill_is_noticed(self, dialer: ports.Dialer, directory: Path) -> None:
        code = f"{self.dialer_source(directory)}\n{_OPEN_AND_WAIT}"
        path = os.pathsep.join(map(str, (ROOT, ROOT / "receiver")))
        victim = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        with victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"opened\n"
            assert not free(directory / "job" / "sda.lock")
            victim.kill()
        wait_until(lambda: free(directory / "job" / "sda.lock"))
        with self.dialled(dialer, run="run-2") as client:
            client.greet()
            client.open("sda")
            client.close()


_OPEN_AND_WAIT = """
import time
from tests.contract.channel_suite import Client
client = Client(dialer.dial())
client.greet()
client.open("sda")
print("opened", flush=True)
time.sleep(60)
"""
