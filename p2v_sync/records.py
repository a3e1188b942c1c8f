"""What engine and ledger tell each other about passes and the state of a target.

They are apart from ``engine.ports`` because the ledger, which implements that port, lies below the
engine and imports nothing of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2v_sync.events import Counters
from p2v_sync.extent import Extent

# In the record of a source that ledger and manifest keep: digest of the map of what was left out by
# --used-only; null or not there where the replica is a copy of all of it.
UNUSED = "unused"


@dataclass(frozen=True)
class TargetState:
    """Which state of which image a set of digests describes (P5)."""

    image: str  # uuid the receiver gave the image
    generation: int  # counts the manifest's commits
    commit: str  # random, new with every commit: equal only for the same history


@dataclass(frozen=True)
class Checkpoint:
    """What one committed acknowledgement made durable (P2)."""

    state: TargetState
    # Segment number → its packed entries as now on the target; None: every block is zero.
    segments: Mapping[int, bytes | None]
    counters: Counters  # of the pass so far, all runs together
    unreadable: Sequence[Extent] = ()  # found since the last checkpoint


@dataclass(frozen=True)
class PassRecord:
    """One pass as the ledger knows it."""

    number: int
    kind: str  # "initial", "incremental", "final" or "seed"
    resumed: bool
    counters: Counters = field(default_factory=Counters)  # so far, from earlier runs


@dataclass(frozen=True)
class DigestSettings:
    """How the entries of a disk are made; they mean nothing under other settings."""

    digest: str
    seed: str  # hex
    block_size: int
