"""The engine's surroundings in one process: a disk in memory, a real receiver served by threads."""

import contextlib
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from p2v_receiver import wire
from p2v_receiver.manifest import Manifest
from p2v_receiver.serve import Server
from p2v_receiver.stream import FrameStream, SocketPipe
from p2v_receiver.wire import Json
from p2v_sync.engine.ports import Source
from p2v_sync.engine.replicate import Outcome, Replication, Surroundings
from p2v_sync.engine.run import Options
from p2v_sync.engine.session import OpenRequest
from p2v_sync.events import Event
from p2v_sync.extent import Extent
from p2v_sync.transport.channel import Pipe, StreamChannel
from p2v_sync.units import KIB, MIB
from tests.contract.memory_ledger import MemoryLedger

if TYPE_CHECKING:
    from p2v_sync.engine.copy import Judge
    from p2v_sync.engine.ports import Dialer

    def conforms(source: "MemorySource", dialer: "InProcessDialer", judge: "LabJudge") -> None:
        _: tuple[Source, Dialer, Judge] = (source, dialer, judge)


T = TypeVar("T")

BLOCK = 4 * KIB
SEGMENT = wire.SEGMENT_BLOCKS * BLOCK
JOB, DISK = "job", "disk"
_NOT_ZERO = re.compile(rb"[^\0]")
LONG_S = 20.0  # no thread of a healthy lab lives longer after it was told to end


class MemorySource:
    """A disk of bytes.  With ``sparse`` pages that are zero are holes, as in a sparse file."""

    def __init__(self, data: bytes, *, sparse: bool = False) -> None:
        self.data = bytearray(data)
        self.sparse = sparse
        self.reads: list[Extent] = []

    @property
    def size(self) -> int:
        return len(self.data)

    def read_into(self, buffer: memoryview, start: int) -> Sequence[Extent]:
        self.reads.append(Extent(start, len(buffer)))
        buffer[:] = self.data[start : start + len(buffer)]
        return ()

    def next_data(self, start: int) -> int:
        if not self.sparse:
            return min(start, self.size)
        data = _NOT_ZERO.search(self.data, start)
        return max(start, data.start() // BLOCK * BLOCK) if data else self.size

    def fill(self, start: int, data: bytes) -> None:
        self.data[start : start + len(data)] = data


@dataclass
class LabJudge:
    """``stamp`` is all there is to know of the source's state, ``name`` of its identity."""

    name: str = "disk"
    stamp: int = 0
    change: str | None = None
    refuses: Exception | None = None

    def identity(self) -> Json:
        return {"name": self.name, "stamp": self.stamp}

    def check_source(self, recorded: Json | None) -> None:
        del recorded
        if self.refuses is not None:
            raise self.refuses

    def is_untouched(self, recorded: Json | None) -> bool:
        return recorded == self.identity()

    def changed_since_start(self) -> str | None:
        return self.change


class NoLimit:
    """A limiter that lets everything through."""

    def take(self, count: int) -> None:
        del count


class Receiver:
    """A real receiver over one directory; every connection is a socket pair and a thread."""

    def __init__(self, root: Path) -> None:
        self.server = Server(str(root))
        self.streams: list[FrameStream] = []
        self._threads: list[threading.Thread] = []

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        stream = FrameStream(SocketPipe(theirs), wire.RECEIVER)
        self.streams.append(stream)
        thread = threading.Thread(target=self.server.handle, args=(stream,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return ours

    def hang_up(self) -> None:
        """Break all connections."""
        for stream in self.streams:
            stream.close()

    def wait(self) -> None:
        """Until every connection is served to its end."""
        for thread in self._threads:
            thread.join(LONG_S)
            assert not thread.is_alive(), "the receiver hangs"
        self._threads.clear()
        self.streams.clear()


class InProcessDialer:
    """Connections to a Receiver; ``wrap`` may put faults around each one's pipe."""

    def __init__(
        self,
        receiver: Receiver,
        *,
        streams: int = 1,
        is_local: bool = True,
        wrap: Callable[[Pipe], Pipe] = lambda pipe: pipe,
    ) -> None:
        self.receiver = receiver
        self.max_streams = streams
        self.is_local = is_local
        self.wrap = wrap
        self.before_dial: Callable[[], None] = _nothing
        self.dialed = 0

    def dial(self) -> StreamChannel:
        self.before_dial()
        self.dialed += 1
        return StreamChannel(self.wrap(SocketPipe(self.receiver.connect())))


def _nothing() -> None:
    pass


def ignore(event: Event) -> None:
    """An observer that looks away."""
    del event


@dataclass
class Lab:
    """One disk, one job, one receiver's directory; every ``sync`` is a process of its own."""

    root: Path
    source: Any
    ledger: Any = field(default_factory=MemoryLedger)
    judge: LabJudge = field(default_factory=LabJudge)
    block_size: int | None = BLOCK
    digest: str | None = None
    create: bool = True
    events: list[Event] = field(default_factory=list)
    observe: Callable[[Event], None] = ignore

    def __post_init__(self) -> None:
        self.receiver = Receiver(self.root)
        self.dialer = InProcessDialer(self.receiver, streams=4)

    @property
    def image(self) -> Path:
        return self.root / JOB / f"{DISK}.img"

    @property
    def manifest(self) -> Path:
        return self.root / JOB / f"{DISK}.manifest"

    def replication(self, **options: Any) -> Replication:
        request = OpenRequest(
            job=JOB,
            disk=DISK,
            size=self.source.size,
            run="",
            block_size=self.block_size,
            digest=self.digest,
            create=self.create,
        )
        surroundings = Surroundings(
            self.source, self.judge, self.ledger, self.dialer, NoLimit(), self._note
        )
        return Replication(request, surroundings, Options(**{"retry_for_s": 0.0, **options}))

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self.observe(event)

    def sync(self, **options: Any) -> Outcome:
        """One whole pass.  Raises what went wrong, after the receiver has wound up."""
        return self.run(lambda replication: replication.replicate(), **options)

    def run(self, work: Callable[[Replication], T], **options: Any) -> T:
        try:
            return work(self.replication(**options))
        finally:
            self.receiver.wait()

    def of(self, kind: type[Event]) -> list[Any]:
        """The events of a kind, up to now."""
        return [event for event in self.events if isinstance(event, kind)]

    @contextlib.contextmanager
    def record(self) -> Iterator[Manifest]:
        """The manifest as it is on the disk."""
        with contextlib.closing(Manifest(str(self.manifest))) as manifest:
            yield manifest

    def header(self) -> Json:
        with self.record() as manifest:
            return manifest.header()

    def is_equal(self) -> bool:
        return self.image.read_bytes() == bytes(self.source.data)


@contextlib.contextmanager
def ram_directory() -> Iterator[Path]:
    """A directory on tmpfs where there is one: these tests flush a lot."""
    ram = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as name:
        yield Path(name)


def letters(text: str, *, block: int = BLOCK) -> bytes:
    """One block a letter: "0" zeros, any other letter its own content."""
    return b"".join(bytes(block) if each == "0" else block_of(each, block) for each in text)


def block_of(name: object, block: int = BLOCK) -> bytes:
    """A block that no other name has; it does not compress to nothing, nor is a page of it zero."""
    text = f"<{name}>".encode()
    return (text * (block // len(text) + 1))[:block]


def patterned(segments: int, seed: int = 0) -> bytes:
    """Segments of data with a hole of 16 blocks in each."""
    blocks = []
    for index in range(segments * wire.SEGMENT_BLOCKS):
        is_hole = index % wire.SEGMENT_BLOCKS in range(100, 116)
        blocks.append(bytes(BLOCK) if is_hole else block_of((seed, index)))
    return b"".join(blocks)


assert SEGMENT == MIB
