"""``--rate``: one token bucket for all streams and disks of a run."""

import threading
import time
from collections.abc import Callable

_BUCKET_S = 0.1  # what an idle moment may save up; keeps the average right where threads are late


class Throttle:
    """Lets ``rate`` bytes a second through, on average over any second or so.

    Bytes are paid for before they go: who takes many waits long, and a body larger than the
    bucket is no exception.  Thread-safe; ``None`` lets everything through.
    """

    def __init__(
        self,
        rate: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """``wait`` blocks for so many seconds, less when the throttle is closed."""
        if rate is not None and rate <= 0:
            raise ValueError(f"a rate of {rate} bytes a second lets nothing through")
        self._rate = rate
        self._clock = clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._lock = threading.Lock()
        self._paid_until_s = clock() - _BUCKET_S

    def take(self, count: int) -> None:
        """Block until ``count`` bytes may go."""
        if self._rate is None:
            return
        with self._lock:
            now_s = self._clock()
            start_s = max(self._paid_until_s, now_s - _BUCKET_S)
            self._paid_until_s = start_s + count / self._rate
            delay_s = self._paid_until_s - now_s
        if delay_s > 0 and not self._closed.is_set():
            self._wait(delay_s)

    def close(self) -> None:
        """Wake everybody; nothing is held back from now on."""
        self._closed.set()
