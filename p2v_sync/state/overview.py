"""What ``status`` and cutover ask of the ledger: where every disk of a job stands.

Dataclasses and pure functions; the rows come from ``ledger``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from p2v_sync.events import Counters
from p2v_sync.state.disk import SEED

_CHANGES_CONSIDERED = 3  # passes; older ones say little about how much changes now


class PassState(StrEnum):
    """How the newest pass of a disk stands."""

    NONE = "none"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    COMPLETE = "complete"


@dataclass(frozen=True)
class PassOverview:
    """One pass as recorded; ``seconds`` are of all its runs together."""

    number: int
    kind: str
    outcome: str  # "unfinished", "complete" or "failed"
    started: str
    finished: str | None
    seconds: float
    counters: Counters
    doubt: str | None = None  # why a complete pass is no copy of the source at one moment

    @property
    def is_complete(self) -> bool:
        return self.outcome == "complete"


@dataclass(frozen=True)
class DiskOverview:
    """One disk; sizes are bytes, times ISO-8601 UTC text, newest complete pass first."""

    name: str
    path: str
    size: int
    newest: PassOverview | None
    complete: Sequence[PassOverview]
    unreadable_parts: int
    unreadable: int
    last_checkpoint: str | None
    last_error: str | None
    is_running: bool
    used_only: bool = False  # of the source, only what its file systems use
    delta: str | None = None  # at the target: "sent", "in-place", "qcow2", "virt-v2v"

    @property
    def state(self) -> PassState:
        return pass_state(self.newest, self.last_error, is_running=self.is_running)

    @property
    def done(self) -> int:
        """Bytes of the source the newest pass has dealt with, as of its last checkpoint."""
        if self.newest is None:
            return 0
        return self.size if self.newest.is_complete else self.newest.counters.scanned

    @property
    def percent(self) -> float:
        return 100.0 * min(self.done / self.size, 1.0) if self.size else 100.0

    @property
    def cutover_refusal(self) -> str | None:
        """Why the disk can't be cut over now; None: it can."""
        return cutover_refusal(self.newest)

    @property
    def next_pass_s(self) -> float | None:
        return projected_seconds(self.size, self.complete)


@dataclass(frozen=True)
class JobOverview:
    """One job with its disks, by name."""

    name: str
    target: str
    is_running: bool
    disks: Sequence[DiskOverview]


def pass_state(
    newest: PassOverview | None, last_error: str | None, *, is_running: bool
) -> PassState:
    """How a disk stands, from its newest pass and what the last run ended with.

    A complete pass stays complete when a later run fails before it begins another.
    """
    if newest is not None and newest.is_complete:
        return PassState.COMPLETE
    if newest is not None and newest.outcome == "unfinished" and is_running:
        return PassState.RUNNING
    if last_error is not None:
        return PassState.FAILED
    return PassState.NONE if newest is None else PassState.INTERRUPTED


def cutover_refusal(newest: PassOverview | None) -> str | None:
    """Why a disk whose newest pass is this can't be cut over; None: it can (P11).

    A complete pass reads the whole source, so the newest one alone decides.  An unfinished pass
    after it refuses as well: the image then is part old, part new.
    """
    if newest is None:
        return "there is no pass yet"
    if not newest.is_complete:
        return f"pass {newest.number} is not finished"
    if newest.kind == SEED:
        return (
            f"pass {newest.number} is a seed, read from a running system; "
            "a pass from a quiesced one must follow"
        )
    if newest.doubt:
        return f"pass {newest.number}: {newest.doubt}; another pass must follow"
    return None


def projected_seconds(size: int, complete: Sequence[PassOverview]) -> float | None:
    """How long the next pass over ``size`` bytes will take; None before a pass was completed.

    ``complete`` holds complete passes, newest first.  A pass scans everything and sends what
    changed.  The send rate is the best any of the passes had over all its time.  What the newest
    pass took beyond its own sending at that rate was scanning, which gives the scan rate.  As
    much will change as did on average in the last three passes that had one before them.  The
    projection is size / scan rate + changed / send rate.

    After a first pass alone nothing is known of changes: then it is what the first one took.
    """
    if not complete or not complete[0].counters.scanned:
        return None
    newest = complete[0]
    growth = size / newest.counters.scanned
    if len(complete) == 1:
        return newest.seconds * growth
    pace = _send_pace(complete)
    changed = fmean(one.counters.sent for one in complete[:-1][:_CHANGES_CONSIDERED])
    scan_s = max(newest.seconds - newest.counters.sent * pace, 0.0)
    return scan_s * growth + changed * pace


def _send_pace(complete: Sequence[PassOverview]) -> float:
    """Seconds a sent byte, at the best rate seen."""
    return min(
        (one.seconds / one.counters.sent for one in complete if one.counters.sent), default=0.0
    )
