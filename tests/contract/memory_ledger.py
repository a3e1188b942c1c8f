"""A ledger in memory, as simple as the port allows; for tests of whatever needs one."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from p2v_receiver.codec import entries_digest
from p2v_sync.errors import WrongPhase
from p2v_sync.events import Counters
from p2v_sync.extent import Extent, merged
from p2v_sync.records import Checkpoint, DigestSettings, PassRecord, TargetState


class MemoryLedger:
    """Satisfies ``engine.ports.Ledger``; ``events`` is what was told to it, in order."""

    def __init__(self) -> None:
        self.doubts: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.wire_digest: str | None = None
        self._lock = threading.Lock()
        self._segments: dict[int, bytes] = {}
        self._settings: DigestSettings | None = None
        self._image: str | None = None
        self._described: TargetState | None = None
        self._pass: PassRecord | None = None
        self._is_open = False
        self._unreadable: tuple[Extent, ...] = ()

    def reopened(self) -> "MemoryLedger":
        """The same records as a new process finds them."""
        self._is_open = False
        return self

    def target_state(self) -> TargetState | None:
        with self._lock:
            return self._described

    def entries(self, segment: int) -> bytes | None:
        with self._lock:
            return self._segments.get(segment)

    def entries_between(self, first: int, total: int) -> dict[int, bytes]:
        with self._lock:
            stored = sorted(self._segments.items())
        return {segment: entries for segment, entries in stored if 0 <= segment - first < total}

    def segment_digests(self) -> Iterator[tuple[int, bytes]]:
        with self._lock:
            stored = sorted(self._segments.items())
        for segment, entries in stored:
            yield segment, entries_digest(entries)

    def set_digest_settings(self, settings: DigestSettings) -> None:
        with self._lock:
            if settings != self._settings:
                self._segments.clear()
                self._described, self._settings = None, settings

    def begin_pass(self, number: int, kind: str) -> PassRecord:
        with self._lock:
            earlier, self._described, self._is_open = self._pass, None, True
            self._pass = PassRecord(number, kind, resumed=False)
            if earlier is not None and earlier.number == number:
                self._pass = PassRecord(number, kind, resumed=True, counters=earlier.counters)
            return self._pass

    def record(self, checkpoint: Checkpoint) -> None:
        with self._lock:
            self._count(checkpoint.counters)
            self._adopt(checkpoint.state)
            for segment, entries in checkpoint.segments.items():
                if entries is None:
                    self._segments.pop(segment, None)
                else:
                    self._segments[segment] = entries
            self._unreadable = tuple(merged((*self._unreadable, *checkpoint.unreadable)))

    def _count(self, counters: Counters) -> None:
        if not self._is_open or self._pass is None:
            raise WrongPhase("no pass is open")
        known = self._pass
        self._pass = PassRecord(known.number, known.kind, known.resumed, counters)

    def _adopt(self, state: TargetState) -> None:
        if self._image not in (None, state.image):
            self._segments.clear()
        self._image = state.image

    def finish_pass(self, state: TargetState, counters: Counters, *, wire_digest: str) -> None:
        with self._lock:
            self._count(counters)
            self._adopt(state)
            self._described, self._pass, self._is_open = state, None, False
            self.wire_digest = wire_digest

    def doubt(self, reason: str) -> None:
        with self._lock:
            self.doubts.append(reason)

    def unreadable(self) -> Sequence[Extent]:
        with self._lock:
            return self._unreadable

    def set_unreadable(self, extents: Sequence[Extent]) -> None:
        with self._lock:
            self._unreadable = tuple(merged(extents))

    def event(self, text: str, **details: Any) -> None:
        with self._lock:
            self.events.append((text, details))
