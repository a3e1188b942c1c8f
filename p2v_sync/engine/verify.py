"""Reading the target back and comparing it with what it should be.

Two questions: is what this run sent still what the target's disk returns (block digests, checked
against the manifest by the receiver alone), and is a place of the target equal to the source
(a different digest, BLAKE2b, over both)?
"""

import mmap
import random
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import NamedTuple

from p2v_receiver import codec
from p2v_receiver.wire import SEGMENT_BLOCKS, ZERO, Layout
from p2v_sync.engine.plan import runs_where
from p2v_sync.engine.ports import Source
from p2v_sync.engine.session import BulkStream, Session
from p2v_sync.extent import Extent, merged, ranges
from p2v_sync.units import MIB

_REQUEST = MIB
_SAMPLE_BLOCKS = 64
_GAP_BLOCKS = 8
_ASKED_MOST = 256  # checks on their way, by each worker
_ASKED_BYTES = 64 * MIB


class Check(NamedTuple):
    """Blocks to read back: ``total`` from ``first``; against the source or the manifest."""

    first: int
    total: int
    against_source: bool

    def length(self, layout: Layout) -> int:
        """In bytes."""
        start, end = layout.extent(self.first, self.total)
        return end - start


def checks_of_written(written: Mapping[int, int]) -> Iterator[Check]:
    """What a run sent (segment → bit set of blocks), against the manifest.

    With what lies in small gaps, where each check would take longer than reading on.
    """
    for segment in sorted(written):
        bits = written[segment]
        flags = [bits >> index & 1 for index in range(SEGMENT_BLOCKS)]
        runs = [(first, end) for first, end, flag in runs_where(flags) if flag]
        while runs:
            first, end = runs.pop(0)
            while runs and runs[0][0] - end <= _GAP_BLOCKS:
                _, end = runs.pop(0)
            yield Check(segment * SEGMENT_BLOCKS + first, end - first, against_source=False)


def checks_of_sample(layout: Layout) -> Iterator[Check]:
    """The first and last MiB and some random blocks, against the source."""
    edge = min(layout.blocks, max(1, MIB // layout.block_size))
    chosen = {*range(edge), *range(layout.blocks - edge, layout.blocks)}
    chosen.update(random.randrange(layout.blocks) for _ in range(_SAMPLE_BLOCKS))
    for first, total in ranges(chosen):
        yield Check(first, total, against_source=True)


def checks_of_all(layout: Layout) -> Iterator[Check]:
    """Every block, against the source, a segment at a time."""
    for segment in range(layout.segments):
        first = segment * SEGMENT_BLOCKS
        yield Check(first, layout.blocks_in(segment), against_source=True)


def _fits_behind(asked: Collection[tuple[int, int]], length: int) -> bool:
    """Whether a check of ``length`` bytes may be asked before the others are answered."""
    return len(asked) < _ASKED_MOST and sum(each for _, each in asked) + length <= _ASKED_BYTES


class Verifier:
    """Carries checks out, several at a time.  Raises what session and source raise."""

    def __init__(
        self,
        session: Session,
        source: Source,
        progress: Callable[[int], None],
        check_stop: Callable[[], None],
    ) -> None:
        self._session = session
        self._source = source
        self._layout = session.target.layout
        self._strong = codec.strong_digest(session.target.seed)
        self._progress = progress
        self._check_stop = check_stop
        self._numbers = count(1)
        self._buffers = threading.local()

    def run(self, checks: Iterator[Check]) -> tuple[int, list[Extent]]:
        """``(bytes checked, extents that are wrong)``."""
        streams = self._session.streams
        shared = _Shared(checks)  # pulled from by all threads, so that little is in flight
        with ThreadPoolExecutor(2 * len(streams), "verify") as pool:
            jobs = [pool.submit(self._work, shared, stream) for stream in streams * 2]
            results = [job.result() for job in jobs]
        wrong = merged(extent for _, extents in results for extent in extents)
        return sum(length for length, _ in results), list(wrong)

    def _work(self, checks: "_Shared", stream: BulkStream) -> tuple[int, list[Extent]]:
        try:
            return self._check_all(checks, stream)
        except BaseException as error:
            self._session.abort(error)  # the other threads must not go on to the end
            raise

    def _check_all(self, checks: "_Shared", stream: BulkStream) -> tuple[int, list[Extent]]:
        checked = 0
        wrong: list[Extent] = []
        asked: deque[tuple[int, int]] = deque()  # (number, bytes)

        def settle_one() -> None:
            nonlocal checked
            number, length = asked.popleft()
            for first, total in self._session.wait_verified(number):
                start, end = self._layout.extent(first, total)
                wrong.append(Extent(start, end - start))
            checked += length
            self._progress(length)

        for check in checks:
            self._check_stop()
            length = check.length(self._layout)
            # What pages were sent of is many small checks: each must not cost a round trip.
            while asked and not _fits_behind(asked, length):
                settle_one()
            asked.append((self._ask(check, stream), length))
        while asked:
            settle_one()
        return checked, wrong

    def _ask(self, check: Check, stream: BulkStream) -> int:
        number = next(self._numbers)
        digests = self._digests(check) if check.against_source else b""
        self._session.verify(stream, number, check.first, check.total, digests)
        return number

    def _digests(self, check: Check) -> bytes:
        """The strong entries of these blocks of the source."""
        block_size = self._layout.block_size
        start, end = self._layout.extent(check.first, check.total)
        entries = [ZERO] * check.total
        buffer = self._buffer(max(block_size, _REQUEST))
        for at in range(start, end, len(buffer)):
            view = buffer[: min(len(buffer), end - at)]
            if self._source.next_data(at) < at + len(view):
                self._source.read_into(view, at)
                index = (at - start) // block_size
                found = codec.entries_of(view, block_size, self._strong)
                entries[index : index + len(found)] = found
        return b"".join(entries)

    def _buffer(self, length: int) -> memoryview:
        """This thread's page-aligned buffer."""
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(mmap.mmap(-1, length))
        view: memoryview = self._buffers.view
        return view


class _Shared:
    """An iterator that several threads may pull from."""

    def __init__(self, checks: Iterator[Check]) -> None:
        self._checks = checks
        self._lock = threading.Lock()

    def __iter__(self) -> "_Shared":
        return self

    def __next__(self) -> Check:
        with self._lock:
            return next(self._checks)
