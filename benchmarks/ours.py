"""p2v-sync as a contestant: whole runs of the command, from the first import to the exit."""

import contextlib
import functools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import Sample, Stage
from benchmarks.image import make_spread_image
from benchmarks.link import Link
from benchmarks.processes import Failed, Program, free_port, run, serving
from p2v_sync.units import KIB, TIB

LINK_DELAY_S = 0.025  # each way
LINK_RATE = 100e6
SPARSE_SIZE = 8 * TIB
_TOKEN = {"P2V_TOKEN": "benchmark"}
_JOB = "bench"


# Ways to a receiver


@dataclass(frozen=True)
class Target:
    """What to type behind the source; ``receiver`` and ``port`` where we started it."""

    address: str
    options: tuple[str, ...] = ()
    receiver: Program | None = None
    port: int = 0

    def target_reads(self) -> int:
        """Bytes that the receiver has read so far, its sockets not counted (proc_pid_io(5))."""
        if self.receiver is None:
            raise ValueError("not our child")
        text = Path(f"/proc/{self.receiver.pid}/io").read_text()
        return int(text.split("rchar:")[1].split()[0])


Way = Callable[[Stage], AbstractContextManager[Target]]


def _python(module: str, *, durable: bool = True) -> list[str]:
    driver = [] if durable else ["benchmarks.undurable"]
    return [sys.executable, "-m", *driver, module]


@contextlib.contextmanager
def tcp(stage: Stage, *, plaintext: bool = False, durable: bool = True) -> Iterator[Target]:
    """A receiver that listens; with TLS, as it is unless told otherwise."""
    port = free_port()
    _directory(stage).mkdir()
    argv = [*_python("p2v_receiver", durable=durable), "listen", "--dir", str(_directory(stage))]
    argv += ["--bind", "127.0.0.1", "--port", str(port)]
    argv += ["--plaintext"] if plaintext else []
    with serving(argv, port, _TOKEN) as receiver:
        yield Target(f"tcp://127.0.0.1:{port}", (), receiver, port)


plaintext: Way = functools.partial(tcp, plaintext=True)


@contextlib.contextmanager
def ssh(stage: Stage, *, inband: bool = False) -> Iterator[Target]:
    """A host that is reached by ssh; with ``inband`` nothing goes around that connection."""
    options = ("--data", "inband") if inband and _knows_data_paths() else ()
    _directory(stage).mkdir()
    yield Target(f"{stage.ssh_host.name}:{_directory(stage)}", options)


@functools.cache
def _knows_data_paths() -> bool:
    _, text = run([*_python("p2v_sync"), "sync", "--help"])
    return "--data" in text


# One run


def _directory(stage: Stage) -> Path:
    return stage.scratch / "target"


def _replica(stage: Stage, source: Path | None = None) -> Path:
    return _directory(stage) / _JOB / f"{(source or stage.source).stem}.img"


def _sync(
    stage: Stage,
    target: Target,
    *options: str,
    source: Path | None = None,
    durable: bool = True,
) -> Sample:
    """``p2v-sync sync``: its seconds, its peak_rss, what it sent and what the link carried."""
    argv = [*_python("p2v_sync", durable=durable), "sync", str(source or stage.source)]
    argv += [target.address, "--job", _JOB, "--state", str(stage.scratch / "state"), "--json"]
    home = {"HOME": str(stage.host.home)} if stage.host else {}
    program, output = run([*argv, *target.options, *options], {**_TOKEN, **home})
    events = map(json.loads, output.splitlines())
    finished = [event for event in events if event["event"] == "pass_finished"]
    if len(finished) != 1:
        raise Failed("p2v-sync did not say that the pass is finished")
    counters = finished[0]["counters"]
    return {
        "seconds": program.seconds,
        "peak_rss": program.peak_rss,
        "sent": counters["sent"],
        "wire": counters["wire"],
    }


# Contests


def first_copy(way: Way, stage: Stage, *, options: tuple[str, ...] = ()) -> Sample:
    """Connect, copy, durable, verified unless ``options`` say otherwise, reported."""
    with way(stage) as target:
        sample = _sync(stage, target, *options)
    stage.check(_replica(stage))
    return sample


def unchanged(stage: Stage) -> Sample:
    """A second pass over the same; ``target_read`` is what the receiver read of its disk."""
    with plaintext(stage) as target:
        _sync(stage, target)
        before = target.target_reads()
        sample = _sync(stage, target)
        sample["target_read"] = target.target_reads() - before
    stage.check(_replica(stage))
    return sample


def manifest_lost(stage: Stage) -> Sample:
    """A second pass over the same, after the receiver's record of the replica is gone."""
    with plaintext(stage) as target:
        _sync(stage, target)
        _replica(stage).with_suffix(".manifest").unlink()
        sample = _sync(stage, target)
    stage.check(_replica(stage))
    return sample


def changed_pages(way: Way, stage: Stage) -> Sample:
    """A second pass after 1 % of the pages became others."""
    with way(stage) as target:
        _sync(stage, target)
        with stage.changed_source():
            sample = _sync(stage, target)
            stage.check(_replica(stage))
    return sample


def counted(change: bool, stage: Stage) -> Sample:
    """A second pass through a proxy that counts every byte, ``carried``, both ways."""
    with plaintext(stage) as target, Link(target.port) as link, ExitStack() as changes:
        through = Target(link.address)
        _sync(stage, through)
        changed = changes.enter_context(stage.changed_source()) if change else 0
        before = link.carried
        sample = _sync(stage, through)
        stage.check(_replica(stage))
    return {**sample, "changed": changed, "carried": link.carried - before}


def durability(durable: bool, stage: Stage) -> Sample:
    """A first copy, with fsync or with nothing in its place, on both ends."""
    with tcp(stage, plaintext=True, durable=durable) as target:
        sample = _sync(stage, target, durable=durable)
    stage.check(_replica(stage))
    return sample


def long_link(delay_s: float, incremental: bool, stage: Stage) -> Sample:
    """A first copy, or a second one of changed pages, over a link of LINK_RATE."""
    with tcp(stage) as target, Link(target.port) as link, ExitStack() as changes:
        through = Target(link.address)
        if incremental:
            _sync(stage, through)
            changes.enter_context(stage.changed_source())
        link.shape(delay_s=delay_s, rate=LINK_RATE)
        sample = _sync(stage, through)
        stage.check(_replica(stage))
    return sample


def bare_link(delay_s: float, stage: Stage) -> Sample:
    """The link by itself: a sixteenth of the image's size through one connection, and an answer."""
    length = stage.size // 16
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_swallow, args=(server, length), daemon=True).start()
        with Link(server.getsockname()[1]) as link:
            link.shape(delay_s=delay_s, rate=LINK_RATE)
            began = time.monotonic()
            with socket.create_connection(("127.0.0.1", link.port)) as sock:
                for at in range(0, length, 64 * KIB):
                    sock.sendall(bytes(min(64 * KIB, length - at)))
                if sock.recv(1) != b"!":
                    raise Failed("the link lost something")
            seconds = time.monotonic() - began
    return {"seconds": seconds, "rate": length / seconds}


def _swallow(server: socket.socket, length: int) -> None:
    sock, _ = server.accept()
    with sock:
        while length > 0:
            length -= len(sock.recv(256 * KIB)) or length
        sock.sendall(b"!")


def sparse(size: int, stage: Stage) -> Sample:
    """A quarter of the image's size as data, in a disk of ``size``; 0: that has nothing else."""
    data = stage.size // 4
    source = stage.scratch / "sparse.img"
    make_spread_image(source, size or data, data)
    with plaintext(stage) as target:
        sample = _sync(stage, target, source=source)
    stage.check(_replica(stage, source), source)
    receiver = target.receiver
    return {**sample, "receiver_peak_rss": receiver.peak_rss if receiver else 0}
