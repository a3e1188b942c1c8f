"""Whether compressing pays, decided from what was measured a moment ago."""

import threading
import time
from collections.abc import Callable

from p2v_receiver.codec import RAW, Codec

_PROBE = 64 * 1024
_PROBE_EVERY = 32  # requests that go uncompressed
_WORTH_IT = 0.9  # a body that stays longer than this share of its blocks is sent as it is
_MEMORY = 0.8  # weight of the past in a moving average


def pays(ratio: float, compress_rate: float, link_rate: float) -> bool:
    """True when compressing and sending less is faster than sending all.

    ``ratio`` is compressed to raw length; rates are raw bytes a second of one worker.  A worker
    does one after the other, so the times add up.
    """
    return ratio < _WORTH_IT and 1 / compress_rate + ratio / link_rate < 1 / link_rate


class Compressor:
    """Compresses request bodies when it is told to or, with ``adaptive``, when it pays.

    One for all workers of a disk.  Thread-safe.
    """

    def __init__(
        self,
        codec: Codec | None,
        *,
        adaptive: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._codec = codec
        self._adaptive = adaptive
        self._clock = clock
        self._lock = threading.Lock()
        self._link_rate = 0.0
        self._on = not adaptive
        self._since_probe = _PROBE_EVERY

    def body(self, data: memoryview) -> tuple[int, memoryview | bytes]:
        """``(codec number, what to send)``."""
        if self._codec is None or not self._wanted(data):
            return RAW, data
        packed = self._codec.compress(data)
        if len(packed) > _WORTH_IT * len(data):
            return RAW, data
        return self._codec.number, packed

    def sent(self, length: int, seconds: float) -> None:
        """A body of ``length`` bytes took so long to hand to the link."""
        with self._lock:
            rate = length / max(seconds, 1e-9)
            past = self._link_rate or rate
            self._link_rate = _MEMORY * past + (1 - _MEMORY) * rate

    def _wanted(self, data: memoryview) -> bool:
        if not self._adaptive:
            return True
        with self._lock:
            self._since_probe += 1
            if self._since_probe <= _PROBE_EVERY or not self._link_rate:
                return self._on
            self._since_probe = 0
        self._on = self._probe(data[:_PROBE])
        return self._on

    def _probe(self, sample: memoryview) -> bool:
        assert self._codec is not None
        start = self._clock()
        packed = self._codec.compress(sample)
        seconds = max(self._clock() - start, 1e-9)
        return pays(len(packed) / len(sample), len(sample) / seconds, self._link_rate)
