"""The hot path: one buffer, read → zero test → digest → compare → compress → send (P4).

Several workers take segments from one queue.  Per block there is no frame, no row and no round
trip: what is the same costs a comparison, what differs goes out in runs.
"""

import mmap
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from p2v_receiver import codec, wire
from p2v_receiver.wire import ENTRY_SIZE, SEGMENT_BLOCKS, UNKNOWN, ZERO, FrameType, Layout
from p2v_sync.engine.compression import Compressor
from p2v_sync.engine.plan import runs_where
from p2v_sync.engine.ports import Source
from p2v_sync.engine.session import BulkStream
from p2v_sync.events import Counters
from p2v_sync.extent import Extent

_REQUEST = 1024 * 1024  # how much is read at once
_REFINED = {"refined", "no longer zero"}  # kinds of blocks of which only some pages go out


class WorkItem(NamedTuple):
    """A segment to scan, and what the target holds there."""

    segment: int
    expected: bytes
    only: frozenset[int] | None = None  # index of the blocks to look at; None: all


@dataclass
class Tally:
    """Counters that several workers add to."""

    counters: Counters = field(default_factory=Counters)
    blocks_sent: int = 0
    blocks_zeroed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, counters: Counters, *, blocks_sent: int = 0, blocks_zeroed: int = 0) -> None:
        with self._lock:
            self.counters += counters
            self.blocks_sent += blocks_sent
            self.blocks_zeroed += blocks_zeroed


@dataclass(frozen=True)
class Report:
    """Where workers tell the pass what they did."""

    tally: Tally
    segment_sent: Callable[[int, bytes, Counters], None]  # all of a segment is with the receiver
    written: Callable[[int, int], None]  # first block, count
    patched: Callable[[int, int], None]  # block, how many bytes of it
    sent_before: Callable[[int, int, int], int]  # first block, count, size → bytes, in this run
    unreadable: Callable[[Sequence[Extent]], None]


class Finished(NamedTuple):
    """A segment of which all was sent."""

    segment: int
    entries: bytes
    counters: Counters


def tell_finished(stream: BulkStream, report: Report, finished: Finished) -> None:
    # Noted before it is said: the acknowledgement may be quick.
    report.segment_sent(*finished)
    digest = codec.entries_digest(codec.entries_digest(finished.entries))
    stream.send(FrameType.SEGMENTS, wire.Segments(finished.segment, 1, digest).pack())


class Refinement(Protocol):
    """Sends changed blocks later, once it is known which pages of them the target lacks."""

    @property
    def is_waiting(self) -> bool: ...

    def keep(self, block: int, entries: list[bytes], data: memoryview, was_zero: bool) -> None: ...

    def swap(self, buffer: memoryview) -> memoryview: ...

    def end_segment(self, finished: Finished) -> None: ...

    def settle(self) -> None: ...

    def settle_one(self) -> None: ...


class Scanner:
    """Brings single segments of the target to the state of the source.

    One per worker.  Raises what source and stream raise.
    """

    def __init__(
        self,
        source: Source,
        stream: BulkStream,
        layout: Layout,
        digest: codec.Digest,
        compressor: Compressor,
        report: Report,
    ) -> None:
        self._source = source
        self.stream = stream
        self._layout = layout
        self._digest = digest
        self._compressor = compressor
        self._report = report
        self.step = step = max(layout.block_size, _REQUEST)
        # Page-aligned: the kernel copies into it five times faster than into a bytearray.
        self._buffer = memoryview(mmap.mmap(-1, step))
        self._step_blocks = step // layout.block_size
        self._counters = Counters()  # of the segment being scanned
        self.refinement: Refinement | None = None

    def scan(self, item: WorkItem) -> None:
        """Visit a segment and tell the receiver when it is complete."""
        self._counters = Counters()
        entries = bytearray(item.expected)
        for first, end in self._wanted_runs(item):
            for at in range(first, end, self._step_blocks):
                self._scan_request(item, range(at, min(at + self._step_blocks, end)), entries)
                if self.refinement is not None:
                    self.refinement.settle()
        finished = Finished(item.segment, bytes(entries), self._counters)
        if self.refinement is not None:
            self.refinement.end_segment(finished)
        else:
            tell_finished(self.stream, self._report, finished)

    def _wanted_runs(self, item: WorkItem) -> Iterator[tuple[int, int]]:
        """``(first, end)`` of the blocks to look at; the others count as the same."""
        blocks = self._layout.blocks_in(item.segment)
        wanted = [item.only is None or index in item.only for index in range(blocks)]
        for first, end, is_wanted in runs_where(wanted):
            if is_wanted:
                yield first, end
            else:
                start, stop = self._layout.extent(
                    item.segment * SEGMENT_BLOCKS + first, end - first
                )
                self._count(Counters(scanned=stop - start, same=stop - start))

    def _scan_request(self, item: WorkItem, wanted: range, entries: bytearray) -> None:
        first = item.segment * SEGMENT_BLOCKS + wanted.start
        start, end = self._layout.extent(first, len(wanted))
        part = slice(wanted.start * ENTRY_SIZE, wanted.stop * ENTRY_SIZE)
        expected = bytes(entries[part])
        if self._source.next_data(start) < end:
            view = self._buffer[: end - start]
            found = self._read(view, start)
        else:
            view = self._buffer[:0]
            found = [ZERO] * len(wanted)
        packed = b"".join(found)
        if packed == expected:
            self._count_same(first, found)
            return
        self._send_changes(first, view, found, expected)
        entries[part] = packed

    def _read(self, view: memoryview, start: int) -> list[bytes]:
        unreadable = self._source.read_into(view, start)
        if unreadable:
            self._tell_unreadable(unreadable)
        return codec.entries_of(view, self._layout.block_size, self._digest)

    def _tell_unreadable(self, extents: Sequence[Extent]) -> None:
        message = {"extents": [list(extent) for extent in extents]}
        self.stream.send(FrameType.UNREADABLE, wire.pack_json(message))
        self._report.unreadable(extents)

    def _send_changes(
        self, first: int, view: memoryview, found: list[bytes], expected: bytes
    ) -> None:
        kinds = [
            self._kind(entry, expected[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE])
            for index, entry in enumerate(found)
        ]
        for begin, end, kind in runs_where(kinds):
            start, stop = self._layout.extent(first + begin, end - begin)
            length = stop - start
            if kind == "same":
                self._count_same(first + begin, found[begin:end])
            elif kind == "zero":
                wire_bytes = self.stream.send(
                    FrameType.ZEROS, wire.Blocks(first + begin, end - begin).pack()
                )
                self._count(
                    Counters(scanned=length, zero=length, wire=wire_bytes),
                    blocks_zeroed=end - begin,
                )
            else:
                at = begin * self._layout.block_size
                data = view[at : at + length]
                if kind in _REFINED and self.refinement is not None:
                    self.refinement.keep(
                        first + begin, found[begin:end], data, kind == "no longer zero"
                    )
                else:
                    self._send_data(first + begin, found[begin:end], data)
                    self._report.written(first + begin, end - begin)
        if self.refinement is not None and not _REFINED.isdisjoint(kinds):
            self._buffer = self.refinement.swap(self._buffer)

    def _kind(self, found: bytes, held: bytes) -> str:
        if found == held:
            return "same"
        if found == ZERO:
            return "zero"
        # Of a block that is not known there no page can be left out.
        if self.refinement is None or held == UNKNOWN:
            return "changed"
        return "no longer zero" if held == ZERO else "refined"

    def _count_same(self, first: int, entries: list[bytes]) -> None:
        """Blocks that the target has: zeros, or the same data; unless we have just sent it."""
        block_size = self._layout.block_size
        start, end = self._layout.extent(first, len(entries))
        zero = min(entries.count(ZERO) * block_size, end - start)
        sent = self._report.sent_before(first, len(entries), block_size)
        same = max(0, end - start - zero - sent)
        self._count(Counters(scanned=end - start, zero=zero, same=same))

    def _send_data(self, first: int, entries: list[bytes], data: memoryview) -> None:
        number, body = self._compressor.body(data)
        meta = wire.Data(first, number, len(data), b"".join(entries)).pack()
        began = time.perf_counter()
        wire_bytes = self.stream.send(FrameType.DATA, meta, body)
        self._compressor.sent(len(body), time.perf_counter() - began)
        self._count(
            Counters(scanned=len(data), sent=len(data), wire=wire_bytes),
            blocks_sent=len(entries),
        )

    def _count(self, counters: Counters, **blocks: int) -> None:
        self._counters += counters
        self._report.tally.add(counters, **blocks)


class Workers:
    """Threads that work off one bounded queue; the first failure ends all and is raised."""

    def __init__(self, scanners: list[Scanner], fail: Callable[[BaseException], None]) -> None:
        self._queue: queue.Queue[WorkItem | None] = queue.Queue(2 * len(scanners))
        self._fail = fail
        self._failed = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(scanner,), name="scanner", daemon=True)
            for scanner in scanners
        ]
        for thread in self._threads:
            thread.start()

    def put(self, item: WorkItem, check: Callable[[], None]) -> None:
        """Queue a segment; ``check`` is called while waiting and raises to give up."""
        while True:
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                check()
            else:
                return

    def finish(self) -> None:
        """Until everything queued is done, or given up after a failure."""
        for _ in self._threads:
            while True:
                try:
                    self._queue.put(None, timeout=0.2)
                    break
                except queue.Full:
                    if self._failed.is_set():
                        break
        for thread in self._threads:
            thread.join()

    def _work(self, scanner: Scanner) -> None:
        try:
            while not self._failed.is_set():
                item = self._next_for(scanner)
                if item is None:
                    return
                scanner.scan(item)
        except BaseException as error:  # noqa: BLE001 - handed over to the pass
            self._failed.set()
            self._fail(error)

    def _next_for(self, scanner: Scanner) -> WorkItem | None:
        """The next segment; None at the end, when the scanner has nothing left to send."""
        ended = False
        while scanner.refinement is not None and scanner.refinement.is_waiting:
            try:
                item = None if ended else self._queue.get_nowait()
            except queue.Empty:
                pass
            else:
                if item is not None:
                    return item
                ended = True
            scanner.refinement.settle_one()
        return None if ended else self._queue.get()
