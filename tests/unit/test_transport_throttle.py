"""--rate, on a clock that only moves when somebody waits, and once in real time."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2v_sync.transport.throttle import Throttle
from p2v_sync.units import KIB, MIB


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


def taken_s(throttle: Throttle, clock: Clock, bodies: list[int]) -> float:
    started_s = clock()
    for body in bodies:
        throttle.take(body)
    return clock() - started_s


@pytest.mark.parametrize("body", [10_000, 64 * KIB, MIB, 4 * MIB])
@pytest.mark.parametrize("rate", [100 * KIB, 3 * MIB, 50 * MIB])
def test_the_rate_is_kept_within_five_percent(rate: int, body: int) -> None:
    clock = Clock()
    bodies = [body] * max(1, 5 * rate // body)
    seconds = taken_s(Throttle(rate, clock=clock, wait=clock.wait), clock, bodies)
    assert seconds == pytest.approx(sum(bodies) / rate, rel=0.05)


def test_idle_time_is_not_saved_up() -> None:
    clock = Clock()
    throttle = Throttle(MIB, clock=clock, wait=clock.wait)
    clock.now_s += 3600
    assert taken_s(throttle, clock, [MIB] * 5) == pytest.approx(5, rel=0.05)


def test_no_rate_never_waits() -> None:
    clock = Clock()
    assert taken_s(Throttle(None, clock=clock, wait=clock.wait), clock, [1 << 40]) == 0


@pytest.mark.parametrize("rate", [0, -1])
def test_no_rate_at_all_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="nothing through"):
        Throttle(rate)


def test_close_wakes_who_waits() -> None:
    throttle = Throttle(1)
    waiting = threading.Thread(target=throttle.take, args=(1 << 20,))
    waiting.start()
    throttle.close()
    waiting.join(5)
    assert not waiting.is_alive()
    throttle.take(1 << 20)


@pytest.mark.alone
def test_several_threads_share_it_in_real_time() -> None:
    rate, threads, body = 8 * MIB, 4, 128 * KIB
    throttle = Throttle(rate)
    total = rate * 3 // 2

    def work() -> None:
        for _ in range(total // threads // body):
            throttle.take(body)

    started_s = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()
    assert 1.3 < time.monotonic() - started_s < 2.2
