"""What the target holds: the three ways to know it, and the order of asking (P5)."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from p2v_sync.engine.plan import SegmentRun
from p2v_sync.engine.ports import Ledger
from p2v_sync.engine.session import Session

_FETCH_SEGMENTS = 4  # asked for at once
_FETCHES_AHEAD = 8


class Knowledge(Protocol):
    """What the target holds, segment by segment."""

    def prefetch(self, run: SegmentRun) -> None: ...

    def entries(self, run: SegmentRun) -> dict[int, bytes]:
        """Packed entries of the segments of a run that are not all zero."""
        ...

    @property
    def most_segments(self) -> int: ...


class NewImage:
    """The receiver has just created the image: all zeros (P6)."""

    most_segments = 1 << 16

    def prefetch(self, run: SegmentRun) -> None:
        del run

    def entries(self, run: SegmentRun) -> dict[int, bytes]:
        del run
        return {}


class Recorded:
    """The ledger describes just the state in which the target is (P5)."""

    most_segments = 1024

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def prefetch(self, run: SegmentRun) -> None:
        del run

    def entries(self, run: SegmentRun) -> dict[int, bytes]:
        return self._ledger.entries_between(run.first, run.total)


class Asked:
    """The receiver says, from its manifest or by digesting the image again."""

    most_segments = _FETCH_SEGMENTS

    def __init__(self, session: Session) -> None:
        self._session = session

    def prefetch(self, run: SegmentRun) -> None:
        self._session.fetch(run.first, run.total)

    def entries(self, run: SegmentRun) -> dict[int, bytes]:
        return self._session.entries(run.first, run.total)


def with_knowledge(
    runs: Iterable[SegmentRun], knowledge: Knowledge
) -> Iterator[tuple[SegmentRun, dict[int, bytes]]]:
    """Each run with the target's entries; those of the next runs are asked for ahead."""
    ahead: deque[SegmentRun] = deque()
    for run in runs:
        knowledge.prefetch(run)
        ahead.append(run)
        if len(ahead) > _FETCHES_AHEAD:
            due = ahead.popleft()
            yield due, knowledge.entries(due)
    while ahead:
        due = ahead.popleft()
        yield due, knowledge.entries(due)


def knowledge_of(session: Session, ledger: Ledger) -> Knowledge:
    """The cheapest way that is safe; asked before a pass begins, which changes the ledger."""
    target = session.target
    if target.created:
        return NewImage()
    if ledger.target_state() == target.state and not target.reasons:
        return Recorded(ledger)
    return Asked(session)
