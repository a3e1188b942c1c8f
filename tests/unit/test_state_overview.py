"""What is concluded from the passes of a disk."""

import pytest

from p2v_sync.events import Counters
from p2v_sync.state.overview import (
    DiskOverview,
    PassOverview,
    PassState,
    cutover_refusal,
    pass_state,
    projected_seconds,
)


def one_pass(
    kind: str = "incremental",
    outcome: str = "complete",
    *,
    seconds: float = 0.0,
    scanned: int = 0,
    sent: int = 0,
) -> PassOverview:
    counters = Counters(scanned=scanned, sent=sent)
    return PassOverview(2, kind, outcome, "then", None, seconds, counters)


def disk(newest: PassOverview | None, size: int = 1000) -> DiskOverview:
    return DiskOverview("sda", "/dev/sda", size, newest, (), 0, 0, None, None, is_running=False)


@pytest.mark.parametrize(
    ("outcome", "error", "is_running", "expected"),
    [
        (None, None, False, PassState.NONE),
        (None, None, True, PassState.NONE),
        (None, "no answer", False, PassState.FAILED),
        ("unfinished", None, True, PassState.RUNNING),
        ("unfinished", None, False, PassState.INTERRUPTED),
        ("failed", "target full", False, PassState.FAILED),
        ("failed", "target full", True, PassState.FAILED),
        ("complete", None, False, PassState.COMPLETE),
        ("complete", None, True, PassState.COMPLETE),
        ("complete", "no answer", False, PassState.COMPLETE),
    ],
)
def test_state(
    outcome: str | None, error: str | None, is_running: bool, expected: PassState
) -> None:
    newest = None if outcome is None else one_pass(outcome=outcome)
    assert pass_state(newest, error, is_running=is_running) is expected


@pytest.mark.parametrize(
    ("newest", "done", "percent"),
    [
        (None, 0, 0.0),
        (one_pass(outcome="unfinished", scanned=250), 250, 25.0),
        (one_pass(outcome="failed", scanned=250), 250, 25.0),
        (one_pass(scanned=999), 1000, 100.0),
    ],
)
def test_done(newest: PassOverview | None, done: int, percent: float) -> None:
    assert (disk(newest).done, disk(newest).percent) == (done, percent)


def test_an_empty_disk_is_done() -> None:
    assert disk(None, size=0).percent == 100.0


@pytest.mark.parametrize("kind", ["initial", "incremental", "final"])
def test_p11_a_complete_quiesced_pass_may_be_cut_over(kind: str) -> None:
    assert cutover_refusal(one_pass(kind)) is None


@pytest.mark.parametrize(
    ("newest", "why"),
    [
        (None, "no pass yet"),
        (one_pass("seed"), "is a seed"),
        (one_pass("final", "unfinished"), "not finished"),
        (one_pass("final", "failed"), "not finished"),
        (one_pass("seed", "unfinished"), "not finished"),
    ],
)
def test_p11_anything_else_may_not(newest: PassOverview | None, why: str) -> None:
    assert why in str(cutover_refusal(newest))


FIRST = one_pass("initial", seconds=100.0, scanned=1000, sent=1000)  # 10 a second


def test_projection_needs_a_complete_pass() -> None:
    assert projected_seconds(1000, []) is None
    assert projected_seconds(1000, [one_pass()]) is None


def test_projection_after_one_pass_is_that_pass() -> None:
    assert projected_seconds(1000, [FIRST]) == 100.0
    assert projected_seconds(2000, [FIRST]) == 200.0


def test_projection_repeats_the_last_pass_when_all_stays_alike() -> None:
    last = one_pass(seconds=30.0, scanned=1000, sent=100)
    assert projected_seconds(1000, [last, FIRST]) == pytest.approx(30.0)


def test_projection_takes_the_mean_of_the_changes() -> None:
    # The last took 20 s to scan and 10 s to send; the one before it sent three times as much.
    last = one_pass(seconds=30.0, scanned=1000, sent=100)
    earlier = one_pass(seconds=50.0, scanned=1000, sent=300)
    assert projected_seconds(1000, [last, earlier, FIRST]) == pytest.approx(20.0 + 20.0)


def test_projection_scans_more_when_the_disk_grew() -> None:
    last = one_pass(seconds=30.0, scanned=1000, sent=100)
    assert projected_seconds(2000, [last, FIRST]) == pytest.approx(40.0 + 10.0)


def test_projection_without_anything_sent_is_the_scan() -> None:
    scan = one_pass(seconds=5.0, scanned=1000)
    assert projected_seconds(1000, [scan, scan]) == 5.0


def test_projection_is_never_negative() -> None:
    quick = one_pass(seconds=1.0, scanned=1000, sent=900)
    assert projected_seconds(1000, [quick, FIRST]) == pytest.approx(1.0)
