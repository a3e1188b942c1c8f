"""``p2v-sync demo``: the whole main job on a made-up disk, with real parts and real figures.

A disk image with a partition table and an ext4 file system goes over raw TCP to a receiver process;
the link is cut midway; files change; a second pass sends what changed; all of it is verified.
"""

import contextlib
import os
import random
import re
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from p2v_sync import jobs
from p2v_sync.config import Connection, SyncConfig
from p2v_sync.errors import ConnectFailed
from p2v_sync.events import Event, PassFinished, Progress, Reconnecting, Verified
from p2v_sync.run import Process, capture
from p2v_sync.units import MIB, format_duration, format_size

_IMAGE_SIZE = 512 * MIB
_PARTITION_START = MIB
_RATE = 60 * MIB  # slow enough to watch, and to cut the link midway
_CUT_AT = 0.5  # of the disk
_JOB = "demo"

Say = Callable[[str], None]


@dataclass
class Figures:
    """What the run said, for the summary."""

    finished: list[PassFinished]
    reconnects: int = 0
    verified: int = 0
    mismatches: int = 0


class Relay:
    """A TCP relay on the loopback address, for a link that can be cut."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._links += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()

    def cut(self) -> None:
        """Drop every connection; new ones are let through."""
        links, self._links = self._links, []
        for link in links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(256 * 1024):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def make_disk(path: Path, files: Path) -> None:
    """A raw image with one Linux partition and an ext4 file system that holds ``files``."""
    with path.open("wb") as image:
        image.truncate(_IMAGE_SIZE)
    capture(["sfdisk", "--quiet", str(path)], stdin="label: gpt\nstart=1MiB, type=linux\n")
    blocks = (_IMAGE_SIZE - 2 * MIB) // 4096
    capture([
        "mkfs.ext4", "-q", "-F", "-b", "4096", "-d", str(files),
        "-E", f"offset={_PARTITION_START}", str(path), str(blocks),
    ])  # fmt: skip


def fill_files(directory: Path) -> None:
    """Something like a small server: random data and logs."""
    generator = random.Random(2008)
    (directory / "data").mkdir(parents=True)
    (directory / "log").mkdir()
    for number in range(24):
        content = generator.randbytes(generator.randrange(1, 6) * MIB)
        (directory / "data" / f"table{number:02}.db").write_bytes(content)
    line = b"Nov 22 03:14:%02d db1 kernel: [%d] request served in %d us\n"
    for number in range(6):
        lines = (line % (n % 60, n, generator.randrange(99999)) for n in range(60000))
        (directory / "log" / f"messages.{number}").write_bytes(b"".join(lines))


def change_files(image: Path, scratch: Path) -> int:
    """Write into the image's file system as the server would; returns how many bytes."""
    fresh = scratch / "orders.db"
    fresh.write_bytes(random.Random(1).randbytes(3 * MIB))
    commands = f"write {fresh} data/orders.db\nrm log/messages.3\n"
    capture(["debugfs", "-w", "-f", "-", f"{image}?offset={_PARTITION_START}"], stdin=commands)
    return fresh.stat().st_size


class Receiver:
    """``p2v-receiver listen`` as a process of its own, on a free port."""

    def __init__(self, directory: Path, scratch: Path) -> None:
        self.token_file = scratch / "token"
        self.token_file.write_text(secrets.token_hex(16) + "\n")
        output = scratch / "receiver.out"
        argv = [sys.executable, "-m", "p2v_receiver", "listen", "--bind", "127.0.0.1"]
        argv += ["--port", "0", "--dir", str(directory), "--token-file", str(self.token_file)]
        with output.open("wb") as file:
            self._process = Process(argv, stdio=file.fileno())
        self.port = self._wait_for_port(output)

    def _wait_for_port(self, output: Path) -> int:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.is_running:
            if match := re.search(r"tcp://\S+:(\d+)\n", output.read_text()):
                return int(match[1])
            select.select([], [], [], 0.05)
        raise ConnectFailed(f"the demo's receiver did not start: {self._process.error_text()}")

    def close(self) -> None:
        self._process.stop()


def run_demo(directory: Path, observe: Callable[[Event], None], say: Say) -> Figures:
    """The demo in ``directory``.  Raises whatever goes wrong."""
    files, replicas, image = directory / "files", directory / "replicas", directory / "server.img"
    say(
        f"1. Making a disk of {format_size(_IMAGE_SIZE)}: GPT, one ext4 partition, a server's files"
    )
    fill_files(files)
    replicas.mkdir()
    make_disk(image, files)
    figures = Figures([])
    with (
        contextlib.closing(Receiver(replicas, directory)) as receiver,
        contextlib.closing(Relay(receiver.port)) as relay,
    ):
        config = SyncConfig(
            sources=(image,),
            target=f"tcp://127.0.0.1:{relay.port}",
            state_dir=directory / "state",
            job=_JOB,
            rate=_RATE,
            connection=Connection(token_file=receiver.token_file),
        )
        watch = _collecting(observe, figures)
        say("2. First pass over raw TCP with TLS; the link is cut halfway")
        jobs.sync(config, _cutting(relay, watch, say), None)
        changed = change_files(image, directory)
        say(f"3. The server wrote {format_size(changed)} and deleted a file; syncing again")
        jobs.sync(replace(config, rate=None), watch, None)
        say("4. Reading the whole replica back and comparing it with the disk")
        jobs.verify(_JOB, config.state_dir, config.connection, watch, None)
    _summarise(image, replicas / _JOB / "server.img", figures, say)
    return figures


def _cutting(relay: Relay, observe: Callable[[Event], None], say: Say) -> Callable[[Event], None]:
    """An observer that cuts the link once, in the middle of the disk."""
    is_cut = False

    def watch(event: Event) -> None:
        nonlocal is_cut
        observe(event)
        if isinstance(event, Progress) and event.counters.scanned > _CUT_AT * event.size:
            if not is_cut:
                say("   -- cutting the link --")
                relay.cut()
            is_cut = True

    return watch


def _collecting(observe: Callable[[Event], None], figures: Figures) -> Callable[[Event], None]:
    def collect(event: Event) -> None:
        if isinstance(event, PassFinished):
            figures.finished.append(event)
        elif isinstance(event, Reconnecting):
            figures.reconnects += 1
        elif isinstance(event, Verified):
            figures.verified += event.checked
            figures.mismatches += len(event.mismatches)
        observe(event)

    return collect


def _summarise(image: Path, replica: Path, figures: Figures, say: Say) -> None:
    first, second = figures.finished
    used = replica.stat().st_blocks * 512
    say("")
    say(f"disk                 {format_size(image.stat().st_size)}, {_used(image)} of it allocated")
    say(f"replica              {replica}, {format_size(used)} allocated")
    say(
        f"first pass           sent {format_size(first.counters.sent)} in "
        f"{format_duration(first.seconds)}, {figures.reconnects} reconnect(s)"
    )
    say(
        f"second pass          sent {format_size(second.counters.sent)} in "
        f"{format_duration(second.seconds)}, {format_size(second.counters.same)} were the same"
    )
    say(
        f"verified             {format_size(figures.verified)} read back, "
        f"{figures.mismatches} mismatches"
    )


def _used(path: Path) -> str:
    return format_size(os.stat(path).st_blocks * 512)
