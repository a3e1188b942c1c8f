"""Whether compressing pays, decided from what was measured a moment ago."""

import time
from collections.abc import Callable, Sequence

from p2v_receiver.codec import RAW, Codec, codec_by_name
from p2v_sync.errors import VersionMismatch

_PROBE = 64 * 1024
_PROBE_EVERY = 32  # requests without a probe while not even _BEST_RATIO would pay
_BEST_RATIO = 0.2
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

    One for all workers of a disk.  Thread-safe: a lost update of an average does no harm.
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
        self._link_rate = 0.0  # bytes a second; 0: not known yet
        self._compress_rate = 0.0
        self._unprobed = 0  # requests since the last probe

    def body(self, data: memoryview) -> tuple[int, memoryview | bytes]:
        """``(codec number, what to send)``."""
        if (
            self._codec is None
            or not len(data)
            or (self._adaptive and not self._pays_for(self._codec, data))
        ):
            return RAW, data
        packed = self._codec.compress(data)
        if len(packed) > _WORTH_IT * len(data):
            return RAW, data
        return self._codec.number, packed

    def sent(self, length: int, seconds: float) -> None:
        """A body of ``length`` bytes took so long to hand to the link."""
        self._link_rate = _averaged(self._link_rate, length / max(seconds, 1e-9))

    def _pays_for(self, codec: Codec, data: memoryview) -> bool:
        if not self._link_rate:
            return False
        self._unprobed += 1
        is_hopeless = self._compress_rate and not pays(
            _BEST_RATIO, self._compress_rate, self._link_rate
        )
        if is_hopeless and self._unprobed < _PROBE_EVERY:
            return False
        self._unprobed = 0
        sample = data[:_PROBE]
        began = self._clock()
        ratio = len(codec.compress(sample)) / len(sample)
        rate = len(sample) / max(self._clock() - began, 1e-9)
        self._compress_rate = _averaged(self._compress_rate, rate)
        return pays(ratio, self._compress_rate, self._link_rate)


def _averaged(past: float, now: float) -> float:
    return _MEMORY * past + (1 - _MEMORY) * now if past else now


def make_compressor(wanted: str, common: Sequence[str], *, is_local: bool) -> Compressor:
    """``wanted`` is the option, ``common`` what both ends can do.  Raises VersionMismatch."""
    if wanted == "none" or (wanted == "auto" and is_local):
        return Compressor(None, adaptive=False)
    if wanted == "auto":
        return Compressor(codec_by_name(common[0]) if common else None, adaptive=True)
    if wanted not in common:
        raise VersionMismatch(
            f"not both ends can do {wanted}", hint="use --compress auto, or install libzstd there"
        )
    return Compressor(codec_by_name(wanted), adaptive=False)
