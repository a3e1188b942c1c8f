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
    commits: int = 0  # what the receiver said is durable, be it parts of segments
    written: dict[int, int] = field(default_factory=dict)  # segment → bit set of blocks sent
    tally: Tally = field(default_factory=Tally)
    unreadable: list[Extent] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _done_counters: Counters = field(default_factory=Counters)
    _parameters: tuple[object, ...] | None = None

    def adapt_to(self, target: Target) -> None:
        """Forget what was done for another image, or with other blocks or digests."""
        state = target.state
        parameters = (state.image, target.layout, target.digest, target.seed)
        if self._parameters not in (None, parameters):
            self.done.clear()
            self.written.clear()
            self._done_counters = Counters()
        self._parameters = parameters
        # All but what is done is visited again; what was sent stays sent.
        spent = self.tally.counters
        self.tally.counters = replace(self._done_counters, sent=spent.sent, wire=spent.wire)

    def note_commit(self, segments: Mapping[int, Counters]) -> None:
        """These segments are durable; what was counted in each of them stays counted."""
        self.commits += 1
        self.done.update(segments)
        self._done_counters = sum(segments.values(), self._done_counters)

    def note_written(self, first: int, total: int) -> None:
        """``total`` blocks from ``first``, all in one segment, were sent."""
        segment, index = divmod(first, SEGMENT_BLOCKS)
        self.written[segment] = self.written.get(segment, 0) | ((1 << total) - 1) << index

    def blocks_sent(self, first: int, total: int) -> int:
        """How many of these blocks, all in one segment, this run has sent before."""
        segment, index = divmod(first, SEGMENT_BLOCKS)
        return (self.written.get(segment, 0) >> index & (1 << total) - 1).bit_count()

    def note_unreadable(self, extents: Sequence[Extent]) -> None:
        self.unreadable = list(merged([*self.unreadable, *extents]))
