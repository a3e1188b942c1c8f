"""What every ``engine.ports.Ledger`` must do.  Subclass it and say how one is made."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from p2v_receiver.codec import entries_digest
from p2v_receiver.wire import ENTRY_SIZE, SEGMENT_BLOCKS
from p2v_sync.engine import ports
from p2v_sync.errors import StateError
from p2v_sync.events import Counters
from p2v_sync.extent import Extent
from p2v_sync.records import Checkpoint, DigestSettings, TargetState

IMAGE = "0b0c8a4e-1111-4222-8333-444455556666"


def state(generation: int, image: str = IMAGE) -> TargetState:
    return TargetState(image, generation, f"commit-{generation}")


def packed(fill: int) -> bytes:
    """The entries of a whole segment, all alike."""
    return bytes([fill]) * ENTRY_SIZE * SEGMENT_BLOCKS


def checkpoint(
    generation: int,
    segments: Mapping[int, bytes | None] | None = None,
    *,
    scanned: int = 0,
    unreadable: tuple[Extent, ...] = (),
    image: str = IMAGE,
) -> Checkpoint:
    counters = Counters(scanned=scanned)
    return Checkpoint(state(generation, image), segments or {}, counters, unreadable)


class LedgerSuite:
    """Tests get ``ledger``, new and empty; ``reopened`` gives it as a new process finds it."""

    @pytest.fixture
    def ledger(self) -> ports.Ledger:
        raise NotImplementedError

    def reopened(self, ledger: ports.Ledger) -> ports.Ledger:
        raise NotImplementedError

    def test_a_new_one_knows_nothing(self, ledger: ports.Ledger) -> None:
        assert ledger.target_state() is None
        assert ledger.entries(0) is None
        assert list(ledger.segment_digests()) == []
        assert list(ledger.unreadable()) == []

    def test_entries_are_those_of_the_last_record(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, {0: packed(1), 1: packed(2), 7: packed(3)}))
        ledger.record(checkpoint(2, {1: packed(4), 7: None, 8: None}))
        found = [ledger.entries(segment) for segment in (0, 1, 7, 8)]
        assert found == [packed(1), packed(4), None, None]

    def test_entries_between_leave_out_zeros_and_neighbours(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, {2: packed(2), 3: packed(3), 4: None, 6: packed(6)}))
        assert ledger.entries_between(3, 3) == {3: packed(3)}
        assert ledger.entries_between(0, 100) == {2: packed(2), 3: packed(3), 6: packed(6)}
        assert ledger.entries_between(4, 2) == {}

    def test_segment_digests_come_in_order_and_without_zeros(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, {9: packed(9), 2: packed(2), 5: None}))
        expected = [(2, entries_digest(packed(2))), (9, entries_digest(packed(9)))]
        assert list(ledger.segment_digests()) == expected

    def test_segment_digests_are_not_capped(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, dict.fromkeys(range(9000), b"e" * ENTRY_SIZE)))
        assert [number for number, _ in ledger.segment_digests()] == list(range(9000))

    def test_the_last_segment_may_be_short(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, {3: b"x" * ENTRY_SIZE}))
        assert ledger.entries(3) == b"x" * ENTRY_SIZE

    def test_p5_target_state_is_known_only_after_the_end_of_a_pass(
        self, ledger: ports.Ledger
    ) -> None:
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, {0: packed(1)}))
        assert ledger.target_state() is None
        ledger.finish_pass(state(2), Counters(scanned=8), wire_digest="d1")
        assert ledger.target_state() == state(2)
        ledger.begin_pass(2, "incremental")
        assert ledger.target_state() is None

    def test_p5_a_record_outside_a_pass_is_refused(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.finish_pass(state(1), Counters(), wire_digest="")
        with pytest.raises(StateError):
            ledger.record(checkpoint(2, {0: packed(1)}))
        with pytest.raises(StateError):
            ledger.finish_pass(state(3), Counters(), wire_digest="")
        assert ledger.target_state() == state(1)
        assert ledger.entries(0) is None

    def test_p5_entries_of_other_settings_are_dropped(self, ledger: ports.Ledger) -> None:
        settings = DigestSettings("xxh3", "00ff", 262144)
        ledger.set_digest_settings(settings)
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, {0: packed(1)}))
        ledger.finish_pass(state(1), Counters(), wire_digest="")
        ledger.set_digest_settings(settings)
        assert (ledger.target_state(), ledger.entries(0)) == (state(1), packed(1))
        ledger.set_digest_settings(replace(settings, seed="1234"))
        assert (ledger.target_state(), ledger.entries(0)) == (None, None)

    def test_p5_entries_of_another_image_are_forgotten(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, {0: packed(1), 1: packed(1)}))
        ledger.record(checkpoint(1, {1: packed(2)}, image="another"))
        assert [ledger.entries(0), ledger.entries(1)] == [None, packed(2)]

    def test_an_interrupted_pass_goes_on_with_its_counters(self, ledger: ports.Ledger) -> None:
        begun = ledger.begin_pass(3, "incremental")
        assert (begun.number, begun.kind, begun.resumed) == (3, "incremental", False)
        assert begun.counters == Counters()
        ledger.record(checkpoint(1, {4: packed(4)}, scanned=4096))
        ledger = self.reopened(ledger)
        resumed = ledger.begin_pass(3, "incremental")
        assert resumed.resumed
        assert resumed.counters == Counters(scanned=4096)
        assert ledger.entries(4) == packed(4)

    def test_a_pass_of_another_number_is_another_pass(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, scanned=4096))
        begun = ledger.begin_pass(2, "incremental")
        assert not begun.resumed
        assert begun.counters == Counters()

    def test_p5_numbers_that_start_again_are_no_dead_end(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.finish_pass(state(1), Counters(scanned=4096), wire_digest="")
        begun = ledger.begin_pass(1, "initial")
        assert not begun.resumed
        assert begun.counters == Counters()

    @pytest.mark.parametrize(("first", "then"), [("seed", "initial"), ("initial", "seed")])
    def test_p11_a_pass_is_a_seed_when_its_last_run_is(
        self, ledger: ports.Ledger, first: str, then: str
    ) -> None:
        ledger.begin_pass(1, first)
        ledger = self.reopened(ledger)
        assert ledger.begin_pass(1, then).kind == then
        assert self.reopened(ledger).begin_pass(1, then).kind == then

    def test_what_was_recorded_outlives_the_process(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        bad = (Extent(4096, 512),)
        ledger.record(checkpoint(1, {0: packed(1)}, unreadable=bad))
        ledger.finish_pass(state(2), Counters(scanned=1), wire_digest="d")
        ledger = self.reopened(ledger)
        assert ledger.target_state() == state(2)
        assert ledger.entries(0) == packed(1)
        assert tuple(ledger.unreadable()) == bad

    def test_p12_unreadable_parts_add_up_and_join(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")
        ledger.record(checkpoint(1, unreadable=(Extent(8192, 512), Extent(0, 512))))
        ledger.record(checkpoint(2, unreadable=(Extent(8704, 512), Extent(100, 1000))))
        assert list(ledger.unreadable()) == [Extent(0, 1100), Extent(8192, 1024)]
        ledger.record(checkpoint(3, unreadable=(Extent(1000, 7300),)))
        assert list(ledger.unreadable()) == [Extent(0, 9216)]

    def test_p12_a_retry_replaces_the_unreadable_parts(self, ledger: ports.Ledger) -> None:
        ledger.set_unreadable([Extent(512, 512), Extent(0, 512), Extent(4096, 512)])
        assert list(ledger.unreadable()) == [Extent(0, 1024), Extent(4096, 512)]
        ledger.set_unreadable([Extent(4096, 512)])
        assert list(ledger.unreadable()) == [Extent(4096, 512)]
        ledger.set_unreadable([])
        assert list(ledger.unreadable()) == []

    def test_events_take_details(self, ledger: ports.Ledger) -> None:
        ledger.event("the link broke", reason="reset by peer", tries=2)

    def test_threads_may_share_it(self, ledger: ports.Ledger) -> None:
        ledger.begin_pass(1, "initial")

        def work(number: int) -> None:
            ledger.record(checkpoint(number, {number: packed(number)}))
            ledger.event("worked", number=number)
            assert ledger.entries(number) == packed(number)
            assert number in dict(ledger.segment_digests())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(40)))
        assert len(list(ledger.segment_digests())) == 40
