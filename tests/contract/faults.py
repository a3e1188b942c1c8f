"""Sources with bad sectors, and links that are cut, damage what they carry, or fall silent."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from p2v_receiver import wire
from p2v_receiver.wire import FrameType
from p2v_sync.errors import SourceReadError
from p2v_sync.events import Event
from p2v_sync.extent import Extent, merged
from p2v_sync.transport.channel import Pipe
from tests.contract.lab import BLOCK, MemorySource, letters

SECTOR = 512
_BULK = 16 * 1024  # longer writes are bodies alone (stream.FrameStream)


class FaultySource(MemorySource):
    """``FaultySource("..E.")``: one letter a block; E: the second sector of it can't be read."""

    def __init__(self, text: str, *, block: int = BLOCK, fails: bool = False) -> None:
        super().__init__(b"".join(letters(f"{each}", block=block) for each in text))
        self.fails = fails
        self.bad = [
            Extent(at * block + SECTOR, SECTOR) for at, each in enumerate(text) if each == "E"
        ]
        self._content = bytes(self.data)
        for extent in self.bad:
            self.fill(extent.start, bytes(extent.length))

    def read_into(self, buffer: memoryview, start: int) -> Sequence[Extent]:
        super().read_into(buffer, start)
        end = start + len(buffer)
        hit = [extent for extent in self.bad if extent.start < end and extent.end > start]
        if hit and self.fails:
            raise SourceReadError(f"bad sector at {hit[0].start}")
        cut = [(max(each.start, start), min(each.end, end)) for each in hit]
        return list(merged(Extent(first, last - first) for first, last in cut))

    def repair(self) -> None:
        """The bad sectors can be read again; ``data`` is what a copy should hold."""
        for extent in self.bad:
            self.fill(extent.start, self._content[extent.start : extent.end])
        self.bad = []


@dataclass
class Fault:
    """What happens to one direction of a link at a byte of it."""

    cut_after: int | None = None
    flip: int | None = None  # of the bytes of bulk bodies
    stall: int | None = None
    done: int = 0
    bulk: int = 0
    struck: bool = False

    def room(self, wanted: int) -> int:
        """How much still goes through before the link does not."""
        ends = [end for end in (self.cut_after, self.stall) if end is not None]
        return min([wanted, *(end - self.done for end in ends)])

    def take(self, data: memoryview) -> bytes:
        """``data`` as it comes out at the other end."""
        passed = bytearray(data)
        if len(passed) > _BULK:
            if self.flip is not None and self.bulk <= self.flip < self.bulk + len(passed):
                passed[self.flip - self.bulk] ^= 0x10
                self.struck = True
            self.bulk += len(passed)
        self.done += len(passed)
        return bytes(passed)


@dataclass
class Link:
    """The faults of one connection; ``sent`` and ``received`` as the sender sees it."""

    sent: Fault = field(default_factory=Fault)
    received: Fault = field(default_factory=Fault)

    @property
    def struck(self) -> bool:
        return self.sent.struck or self.received.struck


class FaultyPipe:
    """A pipe with a Link's faults.  Satisfies ``transport.channel.Pipe``."""

    def __init__(self, pipe: Pipe, link: Link) -> None:
        self._pipe = pipe
        self._link = link
        self._closed = threading.Event()

    def recv_into(self, view: memoryview) -> int:
        fault = self._link.received
        room = fault.room(len(view))
        if not room:
            return self._end(fault)
        count = self._pipe.recv_into(view[:room])
        view[:count] = fault.take(view[:count])
        return count

    def sendall(self, data: wire.Buffer) -> None:
        fault = self._link.sent
        view = memoryview(data)
        room = fault.room(len(view))
        self._pipe.sendall(fault.take(view[:room]))
        if room < len(view):
            self._end(fault)

    def _end(self, fault: Fault) -> int:
        fault.struck = True
        if fault.stall is not None:
            self._closed.wait()
        self._pipe.close()
        raise ConnectionResetError("the link was cut")

    def close(self) -> None:
        self._closed.set()
        self._pipe.close()


def faulty(*links: Link) -> Callable[[Pipe], Pipe]:
    """For InProcessDialer: the first connections have these faults, later ones none."""
    pending = iter(links)

    def wrap(pipe: Pipe) -> Pipe:
        link = next(pending, None)
        return pipe if link is None else FaultyPipe(pipe, link)

    return wrap


class Recorder:
    """A pipe that keeps what went through it, to know where frames end."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.sent = bytearray()
        self.received = bytearray()

    def recv_into(self, view: memoryview) -> int:
        count = self._pipe.recv_into(view)
        self.received += view[:count]
        return count

    def sendall(self, data: wire.Buffer) -> None:
        self.sent += data
        self._pipe.sendall(data)

    def close(self) -> None:
        self._pipe.close()


def frames_of(data: bytes | bytearray) -> Iterator[tuple[FrameType, int]]:
    """``(type, offset of its end)`` of the frames of a recorded direction."""
    at = 0
    while at < len(data):
        _, kind, _, _, meta, body, _, _ = wire.HEADER.unpack_from(data, at)
        at += wire.HEADER.size + meta + body
        yield FrameType(kind), at


def at_event(kind: type[Event], number: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """An observer that acts at the ``number``-th event of a kind (from 1)."""
    left = iter(range(number - 1, -1, -1))

    def observe(event: Event) -> None:
        if isinstance(event, kind) and next(left, None) == 0:
            act()

    return observe


def total(extents: Iterable[Extent]) -> int:
    return sum(extent.length for extent in extents)
