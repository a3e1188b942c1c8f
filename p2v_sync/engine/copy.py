"""One session's share of a pass: feed the workers, take checkpoints, agree on the end."""

import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2v_receiver import codec, wire
from p2v_receiver.wire import Json, Layout
from p2v_sync.engine import plan
from p2v_sync.engine.compression import Compressor
from p2v_sync.engine.knowledge import Knowledge, with_knowledge
from p2v_sync.engine.plan import SegmentRun
from p2v_sync.engine.ports import Ledger, Source
from p2v_sync.engine.refine import Refiner
from p2v_sync.engine.run import Run
from p2v_sync.engine.scan import Report, Scanner, Workers, WorkItem
from p2v_sync.engine.session import BulkStream, Commit, Session, Target
from p2v_sync.errors import P2vError, ProtocolError
from p2v_sync.events import CheckpointDone, Counters, Event, Notice, Progress, UnreadableFound
from p2v_sync.extent import Extent
from p2v_sync.records import Checkpoint

_CHECKPOINT_S = 5.0
_FIRST_CHECKPOINT_S = 1.0
_CHECKPOINT_BYTES = 1 << 30
_TICK_S = 0.25
_MOST_AWAITING = 1 << 17  # segments: holes go by faster than checkpoints, memory must stay flat
_KEPT_BYTES = 128 * 1024 * 1024  # by all workers of a disk, of what waits for page digests
_STATE_ROW = struct.Struct("!Q")


class Judge(Protocol):
    """What only the caller can say of the source."""

    def identity(self) -> Json:
        """What tells the source from other disks, for the receiver to keep (P10)."""
        ...

    def check_source(self, recorded: Json | None) -> None:
        """Raise TargetTaken when the image is the copy of another disk (P10)."""
        ...

    def is_untouched(self, recorded: Json | None) -> bool:
        """True when provably nobody wrote to the source since ``identity`` gave ``recorded``."""
        ...

    def changed_since_start(self) -> str | None:
        """Why the pass is no consistent picture of the source, or None.  Raises DeviceChanged."""
        ...


@dataclass(frozen=True)
class Disk:
    """The fixed surroundings of one disk's run."""

    name: str
    source: Source
    judge: Judge
    ledger: Ledger
    observe: Callable[[Event], None]
    check_stop: Callable[[], None]  # raises Interrupted once the operator wants to stop


class Copy:
    """Brings the target to the state of the source through one session."""

    def __init__(
        self, disk: Disk, run: Run, session: Session, knowledge: Knowledge, compressor: Compressor
    ) -> None:
        self._disk = disk
        self._run = run
        self._session = session
        self._knowledge = knowledge
        self._compressor = compressor
        self._tally = run.tally
        # Sent, but not yet known to be durable: entries (None: all zero) and counters.
        self._awaiting: dict[int, tuple[bytes | None, Counters]] = {}
        self._lock = threading.Lock()
        # The first one early, so that a short run or link leaves something behind.
        self._checkpoint_at = time.monotonic() - max(0.0, _CHECKPOINT_S - _FIRST_CHECKPOINT_S)
        self._sent_at_checkpoint = self._tally.counters.sent
        self._new_unreadable: list[Extent] = []
        self._over = threading.Event()
        self._refused: dict[int, int] = {}  # segment → bit set of blocks that must go whole

    @property
    def _target(self) -> Target:
        return self._session.target

    @property
    def _layout(self) -> Layout:
        return self._session.target.layout

    def run(self, retry: Sequence[Extent]) -> None:
        """The whole pass, or with ``retry`` just these extents of it (P12)."""
        self._tally.blocks_sent = self._tally.blocks_zeroed = 0
        ticker = threading.Thread(target=self._tick, name="ticker", daemon=True)
        ticker.start()
        workers = Workers(self._scanners(), self._session.abort)
        try:
            self._feed(workers, plan.blocks_of(retry, self._layout) if retry else None)
            workers.finish()
            self._session.drain()
            self._send_refused()
            # From here on checkpoints are asked for here alone: none may come behind the END.
            self._over.set()
            ticker.join()
            self._session.wait_checkpoint(self._session.checkpoint())
            self._end()
        except BaseException as error:
            self._session.abort(error)
            raise
        finally:
            workers.finish()
            self._over.set()
            ticker.join()

    # Feeding the workers

    def _scanners(self) -> list[Scanner]:
        streams = self._session.streams
        # Two workers at least: one reads and digests while the other one sends.
        total = max(2, len(streams))
        scanners = [self._scanner(streams[index % len(streams)]) for index in range(total)]
        if self._refines():
            for scanner in scanners:
                scanner.refinement = self._refiner(scanner, _KEPT_BYTES // total)
        return scanners

    def _report(self) -> Report:
        run = self._run
        return Report(
            self._tally,
            self._segment_sent,
            run.note_written,
            run.note_patched,
            run.bytes_sent,
            self._bad_extents,
        )

    def _scanner(self, stream: BulkStream) -> Scanner:
        digest = codec.digest_function(self._target.digest, self._target.seed)
        source, report = self._disk.source, self._report()
        return Scanner(source, stream, self._layout, digest, self._compressor, report)

    def _refines(self) -> bool:
        """Whether it can pay: an earlier pass is complete, and blocks have several pages."""
        can_pay = self._target.pass_due > 1 and self._layout.block_size > wire.PAGE_SIZE
        return can_pay and wire.PAGES in self._session.features

    def _refiner(self, scanner: Scanner, room: int) -> Refiner:
        digests = codec.page_digests_function(self._target.digest, self._target.seed)
        most = room // scanner.step
        return Refiner(
            scanner.stream, self._layout, digests, self._compressor, self._report(), most
        )

    def _feed(self, workers: Workers, only: dict[int, set[int]] | None) -> None:
        runs = self._runs(self._knowledge.most_segments)
        for run, known in with_knowledge(runs, self._knowledge):
            self._check()
            at = run.first
            for segment in range(run.first, run.first + run.total) if run.has_data else known:
                self._finish_zeros(at, segment - at)
                at = segment + 1
                expected = known.get(segment) or self._layout.zero_entries(segment)
                if self._is_done(segment, expected):
                    continue
                if only is not None and segment not in only:
                    self._adopt(segment, expected)
                else:
                    blocks = frozenset(only[segment]) if only is not None else None
                    workers.put(WorkItem(segment, expected, blocks), self._check)
            self._finish_zeros(at, run.first + run.total - at)

    def _check(self) -> None:
        self._disk.check_stop()
        self._session.check()

    def _runs(self, most: int) -> Iterator[SegmentRun]:
        """What is not done first: the rest has only to be compared, perhaps digested again."""
        runs = list(plan.segment_runs(self._disk.source.next_data, self._layout))
        done = self._run.done.copy()
        for is_done in (False, True) if done else (False,):
            for run in runs:
                yield from plan.parts(run, done, is_done, most)

    def _is_done(self, segment: int, expected: bytes) -> bool:
        """True when an earlier session made it durable and the target still has it."""
        if segment not in self._run.done:
            return False
        recorded = self._disk.ledger.entries(segment) or self._layout.zero_entries(segment)
        if recorded != expected:
            self._run.done.discard(segment)
        return recorded == expected

    def _adopt(self, segment: int, expected: bytes) -> None:
        """Not looked at in this pass: what the target holds stays."""
        length = plan.length_of(self._layout, segment, 1)
        counters = Counters(scanned=length, same=length)
        self._tally.add(counters)
        self._segment_sent(segment, expected, counters)
        self._tell_complete(segment, 1, [codec.entries_digest(expected)])

    def _finish_zeros(self, first: int, total: int) -> None:
        """Segments that are holes here and zero there need no work at all."""
        if not total or first in self._run.done:
            return
        with self._lock:
            for each, length in plan.lengths(self._layout, first, total):
                self._awaiting[each] = None, Counters(scanned=length, zero=length)
        self._tell_complete(first, total, plan.zero_digests(self._layout, first, total))
        length = plan.length_of(self._layout, first, total)
        self._tally.add(Counters(scanned=length, zero=length))
        if len(self._awaiting) >= _MOST_AWAITING:
            self._session.wait_checkpoint(self._session.checkpoint())

    def _tell_complete(self, first: int, total: int, digests: list[bytes]) -> None:
        message = wire.Segments(first, total, codec.entries_digest(b"".join(digests)))
        self._session.streams[0].send(wire.FrameType.SEGMENTS, message.pack())

    # What the workers tell

    def _segment_sent(self, segment: int, entries: bytes, counters: Counters) -> None:
        is_zero = entries == self._layout.zero_entries(segment)
        with self._lock:
            self._awaiting[segment] = None if is_zero else entries, counters

    def on_refused(self, blocks: wire.BlockSet) -> None:
        """The receiver could not complete these blocks from pages.  Raises wire.ProtocolError."""
        if blocks.bits & ~self._run.written.get(blocks.segment, 0):
            raise wire.ProtocolError("REFUSED names blocks that were not sent")
        with self._lock:
            self._refused[blocks.segment] = self._refused.get(blocks.segment, 0) | blocks.bits

    def _send_refused(self) -> None:
        """Every bulk frame is acknowledged, so this is all of them; now they go whole."""
        if not self._refused:
            return
        total = sum(bits.bit_count() for bits in self._refused.values())
        text = f"{total} blocks of the image changed under the pass, or came damaged: sent again"
        self._disk.observe(Notice(self._disk.name, text))
        scanner = self._scanner(self._session.streams[0])
        for segment, bits in sorted(self._refused.items()):
            with self._lock:
                if segment not in self._awaiting:
                    raise ProtocolError("the receiver refused blocks and called them complete")
                entries, counted = self._awaiting[segment]
            # The segment is counted anew; what was sent stays sent.
            self._tally.add(
                Counters(scanned=-counted.scanned, zero=-counted.zero, same=-counted.same)
            )
            held = plan.forgotten(entries or self._layout.zero_entries(segment), bits)
            scanner.scan(WorkItem(segment, held))
        self._session.drain()

    def _bad_extents(self, extents: Sequence[Extent]) -> None:
        with self._lock:
            self._run.note_unreadable(extents)
            self._new_unreadable.extend(extents)
        self._tally.add(Counters(unreadable=sum(extent.length for extent in extents)))
        for extent in extents:
            self._disk.observe(UnreadableFound(self._disk.name, extent.start, extent.length))

    # Checkpoints

    def _tick(self) -> None:
        """Show progress and ask for checkpoints while the pass runs."""
        while not self._over.wait(_TICK_S):
            self._disk.observe(
                Progress(self._disk.name, "copy", self._layout.size, self._tally.counters)
            )
            try:
                self._checkpoint_if_due()
            except P2vError:
                return  # the session's failure is raised where the pass waits for it

    def _checkpoint_if_due(self) -> None:
        now, sent = time.monotonic(), self._tally.counters.sent
        is_due = plan.checkpoint_is_due(
            now - self._checkpoint_at,
            sent - self._sent_at_checkpoint,
            len(self._awaiting),
            every_s=_CHECKPOINT_S,
            every=_CHECKPOINT_BYTES,
        )
        if is_due and not self._session.checkpoint_pending:
            self._checkpoint_at, self._sent_at_checkpoint = now, sent
            self._session.checkpoint()

    def on_commit(self, commit: Commit) -> None:
        """P2: durable at the receiver and in its manifest; now it goes into the ledger."""
        with self._lock:
            try:
                durable = {
                    segment: self._awaiting.pop(segment)
                    for first, count in commit.complete
                    for segment in range(first, first + count)
                }
            except KeyError as error:
                raise wire.ProtocolError(f"COMMITTED names segment {error}, unsent") from None
            unreadable, self._new_unreadable = self._new_unreadable, []
        counters = self._tally.counters
        segments = {segment: entries for segment, (entries, _) in durable.items()}
        self._disk.ledger.record(Checkpoint(commit.state, segments, counters, unreadable))
        counters_of = {segment: counted for segment, (_, counted) in durable.items()}
        self._run.note_commit(counters_of, commit.state.generation)
        if commit.number is not None:
            self._disk.observe(CheckpointDone(self._disk.name, commit.state.generation, counters))

    # The end

    def _end(self) -> None:
        """P7: both sides count and digest the whole."""
        if self._awaiting:
            raise ProtocolError("the receiver left segments out of its last checkpoint")
        ledger = self._disk.ledger
        rows = b"".join(_STATE_ROW.pack(number) + each for number, each in ledger.segment_digests())
        digest = codec.entries_digest(rows).hex()
        changed = self._disk.judge.changed_since_start()
        if changed:
            self._disk.observe(
                Notice(self._disk.name, f"the source changed during the pass: {changed}")
            )
        unreadable = plan.coarse(self._run.unreadable, wire.MAX_EXTENTS)
        message = {
            "digest": digest,
            "blocks_sent": self._tally.blocks_sent,
            "blocks_zeroed": self._tally.blocks_zeroed,
            "quiesced": changed is None,
            "unreadable": [list(extent) for extent in unreadable],
        }
        state = self._session.end(message)
        ledger.set_unreadable(self._run.unreadable)
        ledger.finish_pass(state, self._tally.counters, wire_digest=digest)
        if changed:
            ledger.doubt(f"the source changed while it was read ({changed})")
