"""When the direct way is not tried for once."""

import pytest

from p2v_sync.transport import direct
from p2v_sync.transport.direct import Trust


class Clock:
    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(direct, "time", clock)
    return clock


def session(trust: Trust, clock: Clock, lasts_s: float) -> str | None:
    """One session; returns why it is not direct."""
    objection = trust.objection()
    if objection is None:
        trust.began()
        clock.now_s += lasts_s
    return objection


def test_two_short_ones_and_the_third_goes_in_band(clock: Clock) -> None:
    """Else what kills connections that carry data would hold the run up for ever."""
    trust = Trust()
    objections = [session(trust, clock, 40) for _ in range(6)]
    assert [each is None for each in objections] == [True, True, False, True, True, False]
    assert objections[2] == "direct connections broke within 60 s, 2 times"


def test_links_that_break_after_a_while_are_no_reason(clock: Clock) -> None:
    trust = Trust()
    assert [session(trust, clock, each) for each in (40, 3600, 40, 3600, 40)] == [None] * 5


def test_sessions_that_never_were_direct_do_not_count(clock: Clock) -> None:
    trust = Trust()
    assert [trust.objection() for _ in range(5)] == [None] * 5
    assert session(trust, clock, 1) is None
    assert trust.objection() is None
    assert trust.objection() is None
