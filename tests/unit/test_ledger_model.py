"""Whatever is recorded, the SQLite ledger and the one in memory answer alike."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2v_sync.engine import ports
from p2v_sync.events import Counters
from p2v_sync.extent import Extent
from p2v_sync.state.ledger import Ledger
from tests.contract.ledger_suite import checkpoint, packed, state
from tests.contract.memory_ledger import MemoryLedger

_SEGMENTS = st.dictionaries(
    st.integers(0, 12), st.one_of(st.none(), st.integers(1, 3).map(packed)), max_size=8
)
_EXTENTS = st.lists(st.builds(Extent, st.integers(0, 60), st.integers(0, 8)), max_size=4)
_KINDS = st.sampled_from(["initial", "incremental", "final", "seed"])
_IMAGES = st.sampled_from(["image", "image", "image", "another"])


class LedgersAgree(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.memory = MemoryLedger()
        self.generation = 0
        self.is_open = False

    @initialize()
    def open(self) -> None:
        self.opened = Ledger.open(Path(self.directory.name), print)
        self.sqlite: ports.Ledger = self.opened.job("j", "t").disk("sda", path="p", size=1)

    def teardown(self) -> None:
        self.opened.close()
        self.directory.cleanup()

    @rule()
    def reopen(self) -> None:
        self.opened.close()
        self.open()
        self.memory.reopened()
        self.is_open = False

    @rule(number=st.integers(1, 2), kind=_KINDS)
    def begin(self, number: int, kind: str) -> None:
        assert self.sqlite.begin_pass(number, kind) == self.memory.begin_pass(number, kind)
        self.is_open = True

    @precondition(lambda self: self.is_open)
    @rule(segments=_SEGMENTS, extents=_EXTENTS, image=_IMAGES)
    def record(self, segments: dict[int, bytes | None], extents: list[Extent], image: str) -> None:
        self.generation += 1
        made = checkpoint(
            self.generation,
            segments,
            scanned=self.generation,
            unreadable=tuple(extents),
            image=image,
        )
        self.sqlite.record(made)
        self.memory.record(made)

    @precondition(lambda self: self.is_open)
    @rule(image=_IMAGES)
    def finish(self, image: str) -> None:
        self.generation += 1
        for ledger in (self.sqlite, self.memory):
            ledger.finish_pass(state(self.generation, image), Counters(), wire_digest="d")
        self.is_open = False

    @rule(extents=_EXTENTS)
    def retry(self, extents: list[Extent]) -> None:
        self.sqlite.set_unreadable(extents)
        self.memory.set_unreadable(extents)

    @invariant()
    def answers_agree(self) -> None:
        assert self.sqlite.target_state() == self.memory.target_state()
        assert list(self.sqlite.segment_digests()) == list(self.memory.segment_digests())
        assert list(self.sqlite.unreadable()) == list(self.memory.unreadable())
        assert self.sqlite.entries_between(2, 7) == self.memory.entries_between(2, 7)
        for segment in range(13):
            assert self.sqlite.entries(segment) == self.memory.entries(segment)


TestLedgersAgree = LedgersAgree.TestCase
TestLedgersAgree.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
