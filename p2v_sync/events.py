"""What a run tells whoever watches: the console, ``--json``, a dialog gauge, the tests.

Progress is events, not log lines.  An observer must be quick and must not raise; it may be called
from any thread.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Counters:
    """Running totals of one pass over one disk; every figure is in bytes."""

    scanned: int = 0  # of the source, holes included
    zero: int = 0  # of it zero on both sides or made zero
    same: int = 0  # of it already on the target
    sent: int = 0  # of it sent, before compression
    wire: int = 0  # what that took on the link
    unreadable: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(
            self.scanned + other.scanned,
            self.zero + other.zero,
            self.same + other.same,
            self.sent + other.sent,
            self.wire + other.wire,
            self.unreadable + other.unreadable,
        )


@dataclass(frozen=True)
class Event:
    """Base of all events: which disk it is about (its name in the job)."""

    disk: str


@dataclass(frozen=True)
class PassStarted(Event):
    """A pass begins or goes on."""

    size: int
    number: int
    kind: str  # "initial", "incremental", "final" or "seed"
    resumed: bool


@dataclass(frozen=True)
class Progress(Event):
    """Sent a few times a second while a pass or a verification runs."""

    phase: str  # "copy" or "verify"
    size: int
    counters: Counters


@dataclass(frozen=True)
class CheckpointDone(Event):
    """Everything up to here is durable on the target and recorded on both sides (P2)."""

    generation: int
    counters: Counters


@dataclass(frozen=True)
class Notice(Event):
    """Something the operator should know; the run goes on."""

    text: str


@dataclass(frozen=True)
class DataPathChosen(Event):
    """How the data of this session goes to an ssh target."""

    path: str  # "direct" or "inband"
    address: str | None  # host:port of the direct connections
    reason: str | None  # why it is in-band when that was not asked for


@dataclass(frozen=True)
class UnreadableFound(Event):
    """A range of the source could not be read and was filled with zeros (P12); bytes."""

    start: int
    length: int


@dataclass(frozen=True)
class Reconnecting(Event):
    """The link failed; the next try comes after ``delay_s``."""

    reason: str
    delay_s: float


@dataclass(frozen=True)
class Verified(Event):
    """A verification ended; ``mismatches`` are (start, length) in bytes."""

    scope: str
    checked: int
    mismatches: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class PassFinished(Event):
    """The end record was agreed on by both sides (P7)."""

    number: int
    kind: str
    counters: Counters
    seconds: float
    unreadable: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class DiskFailed(Event):
    """This disk's run ended with an error; others are not affected."""

    error: str
    message: str
    hint: str | None
    exit_code: int
    details: dict[str, Any] = field(default_factory=dict)


Observer = Callable[[Event], None]
