"""Which blocks a verification looks at."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2v_receiver.wire import MAX_RUN, SEGMENT_BLOCKS, Layout
from p2v_sync.engine.run import Run
from p2v_sync.engine.verify import (
    Check,
    checks_of_all,
    checks_of_sample,
    checks_of_written,
)
from p2v_sync.events import Counters
from p2v_sync.units import MIB
from tests.contract.lab import BLOCK, SEGMENT

LAYOUTS = st.builds(
    Layout, st.integers(1, 12 * SEGMENT), st.sampled_from([BLOCK, 64 * 1024, 4 * MIB])
)


def blocks_in(checks: list[Check]) -> list[int]:
    return [at for check in checks for at in range(check.first, check.first + check.total)]


@given(LAYOUTS)
def test_all_is_every_block_once_against_the_source(layout: Layout) -> None:
    checks = list(checks_of_all(layout))
    assert blocks_in(checks) == list(range(layout.blocks))
    assert all(check.against_source for check in checks)
    assert sum(check.length(layout) for check in checks) == layout.size


@given(LAYOUTS)
def test_the_sample_has_both_ends_and_no_block_twice(layout: Layout) -> None:
    checks = list(checks_of_sample(layout))
    blocks = blocks_in(checks)
    assert len(blocks) == len(set(blocks))
    assert set(blocks) <= set(range(layout.blocks))
    edge = [block for block in range(layout.blocks) if layout.extent(block, 1)[0] < MIB]
    assert set(edge[: layout.blocks]) <= set(blocks)
    assert layout.blocks - 1 in blocks
    assert len(blocks) >= min(layout.blocks, 40)
    assert all(check.against_source and check.total <= MAX_RUN for check in checks)


def test_the_sample_is_another_one_each_time() -> None:
    layout = Layout(1 << 40, BLOCK)
    assert list(checks_of_sample(layout)) != list(checks_of_sample(layout))


def test_neighbours_of_the_sample_are_asked_for_at_once() -> None:
    checks = list(checks_of_sample(Layout(1 << 40, BLOCK)))
    assert len(checks) <= 2 + 64


@given(st.sets(st.integers(0, 4 * SEGMENT_BLOCKS - 1)))
def test_written_is_what_the_run_sent_against_the_manifest(blocks: set[int]) -> None:
    run = Run()
    for block in blocks:
        run.note_written(block, 1)
    checks = list(checks_of_written(run.written))
    checked = blocks_in(checks)
    assert checked == sorted(set(checked))
    assert blocks <= set(checked)
    for check in checks:
        inside = [block for block in sorted(blocks) if check.first <= block < sum(check[:2])]
        assert (inside[0], inside[-1]) == (check.first, check.first + check.total - 1)
        assert all(after - before <= 9 for before, after in pairwise(inside))
    for before, after in pairwise(checks):
        in_one_segment = before.first // SEGMENT_BLOCKS == after.first // SEGMENT_BLOCKS
        assert not in_one_segment or after.first - (before.first + before.total) > 8
    assert not any(check.against_source for check in checks)
    assert all(
        check.first // SEGMENT_BLOCKS == (check.first + check.total - 1) // SEGMENT_BLOCKS
        for check in checks
    )


def test_runs_of_written_blocks_are_noted_whole() -> None:
    run = Run()
    run.note_written(SEGMENT_BLOCKS + 3, 4)
    run.note_written(SEGMENT_BLOCKS + 5, 3)
    assert list(checks_of_written(run.written)) == [Check(SEGMENT_BLOCKS + 3, 5, False)]
    assert run.bytes_sent(SEGMENT_BLOCKS + 2, 3, 10) == 20
    assert run.bytes_sent(0, 3, 10) == 0


def test_of_patched_blocks_only_their_pages_were_sent() -> None:
    run = Run()
    run.note_written(SEGMENT_BLOCKS, 4)
    run.note_patched(SEGMENT_BLOCKS + 1, 3)
    run.note_patched(SEGMENT_BLOCKS + 5, 2)
    assert list(checks_of_written(run.written)) == [
        Check(SEGMENT_BLOCKS, 6, False),
    ]
    assert run.bytes_sent(SEGMENT_BLOCKS, 256, 10) == 35
    assert run.bytes_sent(SEGMENT_BLOCKS + 1, 1, 10) == 3
    run.note_written(SEGMENT_BLOCKS + 1, 1)
    assert run.bytes_sent(SEGMENT_BLOCKS, 256, 10) == 42
    run.note_commit({1: Counters()}, 1)
    assert run._patched == {}
