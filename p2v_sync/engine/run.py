"""What one process knows of one disk across its sessions, and what it was told to do."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from p2v_receiver.wire import SEGMENT_BLOCKS
from p2v_sync.engine.scan import Tally
from p2v_sync.engine.session import Target
from p2v_sync.events import Counters
from p2v_sync.extent import Extent, merged


@dataclass(frozen=True)
class Options:
    """How a disk is replicated; see the options of ``p2v-sync sync``."""

    streams: int = 2
    block_size: int | None = None
    compress: str = "auto"
    digest: str | None = None
    seed: bool = False
    verify: str = "auto"
    retry_for_s: float = 24 * 3600.0


@dataclass
class Run:
    """Knowledge that holds as long as the source is open: what was read stays read."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    done: set[int] = field(default_factory=set)  # segments durable as read in this run
    generation: int = (
        0  # of the target; grows when anything becomes durable, be it less than a segment
    )
    written: dict[int, int] = field(default_factory=dict)  # segment → bit set of blocks sent
    tally: Tally = field(default_factory=Tally)
    unreadable: list[Extent] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    # segment → block's index in it → bytes of it sent; gone once the segment is durable
    _patched: dict[int, dict[int, int]] = field(default_factory=dict)
    _done_counters: Counters = field(default_factory=Counters)
    _parameters: tuple[object, ...] | None = None

    def adapt_to(self, target: Target) -> None:
        """Forget what was done for another image, or with other blocks or digests."""
        state = target.state
        parameters = (state.image, target.layout, target.digest, target.seed)
        if self._parameters not in (None, parameters):
            self.done.clear()
            self.written.clear()
            self._patched.clear()
            self._done_counters = Counters()
        self._parameters = parameters
        # All but what is done is visited again; what was sent stays sent.
        spent = self.tally.counters
        self.tally.counters = replace(self._done_counters, sent=spent.sent, wire=spent.wire)

    def note_commit(self, segments: Mapping[int, Counters], generation: int) -> None:
        """These segments are durable; what was counted in each of them stays counted."""
        self.generation = generation
        self.done.update(segments)
        for segment in segments:
            self._patched.pop(segment, None)
        self._done_counters = sum(segments.values(), self._done_counters)

    def note_written(self, first: int, total: int) -> None:
        """``total`` blocks from ``first``, all in one segment, were sent as a whole."""
        segment, index = divmod(first, SEGMENT_BLOCKS)
        self.written[segment] = self.written.get(segment, 0) | ((1 << total) - 1) << index
        for each in range(index, index + total) if segment in self._patched else ():
            self._patched[segment].pop(each, None)

    def note_patched(self, block: int, length: int) -> None:
        """``length`` bytes of a block were sent, all that differed."""
        self.note_written(block, 1)
        segment, index = divmod(block, SEGMENT_BLOCKS)
        self._patched.setdefault(segment, {})[index] = length

    def bytes_sent(self, first: int, total: int, block_size: int) -> int:
        """How much of these blocks, all in one segment, this run has sent before."""
        segment, index = divmod(first, SEGMENT_BLOCKS)
        blocks = (self.written.get(segment, 0) >> index & (1 << total) - 1).bit_count()
        patched = self._patched.get(segment, {})
        lengths = [patched[each] for each in range(index, index + total) if each in patched]
        return (blocks - len(lengths)) * block_size + sum(lengths)

    def note_unreadable(self, extents: Sequence[Extent]) -> None:
        self.unreadable = list(merged([*self.unreadable, *extents]))
