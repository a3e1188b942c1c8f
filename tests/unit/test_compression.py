"""When compressing is worth it, and what then goes out."""

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_receiver.codec import RAW, ZLIB, Codec, codec_by_name, codec_names, decompress
from p2v_sync.engine.compression import Compressor, make_compressor, pays
from p2v_sync.errors import VersionMismatch
from p2v_sync.units import KIB, MIB

TEXT = memoryview(b"the same words again and again. " * 8192)
NOISE = memoryview(os.urandom(256 * KIB))
RATES = st.floats(1, 1e12)


class Counted(Codec):
    """zlib that counts its calls, and a clock that they move on."""

    def __init__(self, seconds_a_call: float = 0.0) -> None:
        plain = codec_by_name("zlib")
        super().__init__(ZLIB, self._compress, plain.decompress)
        self._plain = plain
        self._seconds_a_call = seconds_a_call
        self.calls = 0
        self.now = 0.0

    def _compress(self, data: object) -> bytes:
        self.calls += 1
        self.now += self._seconds_a_call
        return self._plain.compress(data)  # type: ignore[arg-type]

    def clock(self) -> float:
        return self.now


@given(st.floats(0.01, 1.5), RATES, RATES)
def test_it_pays_only_when_all_together_takes_less_time(
    ratio: float, compress_rate: float, link_rate: float
) -> None:
    if pays(ratio, compress_rate, link_rate):
        assert 1 / compress_rate + ratio / link_rate < 1 / link_rate
        assert ratio < 0.9


def test_it_pays_on_a_slow_link_and_not_on_a_fast_one() -> None:
    assert pays(0.5, 400e6, 100e6)
    assert not pays(0.5, 400e6, 1e9)
    assert not pays(0.95, 1e12, 1.0)


def test_without_a_codec_all_is_sent_as_it_is() -> None:
    assert Compressor(None, adaptive=True).body(TEXT) == (RAW, TEXT)


def test_when_told_to_everything_that_gets_shorter_is_compressed() -> None:
    compressor = Compressor(codec_by_name("zlib"), adaptive=False)
    number, body = compressor.body(TEXT)
    assert (number, len(body) < len(TEXT) // 10) == (ZLIB, True)
    assert decompress(number, memoryview(body), len(TEXT)) == TEXT
    assert compressor.body(NOISE) == (RAW, NOISE)


def test_adaptive_sends_raw_until_it_knows_the_link() -> None:
    codec = Counted()
    compressor = Compressor(codec, adaptive=True, clock=codec.clock)
    assert compressor.body(TEXT)[0] == RAW
    assert codec.calls == 0


def adaptive(codec: Counted, link_rate: float) -> Compressor:
    compressor = Compressor(codec, adaptive=True, clock=codec.clock)
    compressor.sent(MIB, MIB / link_rate)
    return compressor


def test_adaptive_compresses_on_a_slow_link_what_gets_shorter() -> None:
    compressor = adaptive(Counted(seconds_a_call=1e-4), link_rate=10e6)
    assert compressor.body(TEXT)[0] == ZLIB
    assert compressor.body(NOISE)[0] == RAW
    assert compressor.body(TEXT)[0] == ZLIB


def test_adaptive_on_a_fast_link_probes_now_and_then_only() -> None:
    codec = Counted(seconds_a_call=1.0)
    compressor = adaptive(codec, link_rate=1e9)
    assert all(compressor.body(TEXT)[0] == RAW for _ in range(100))
    assert 1 < codec.calls <= 5


def test_adaptive_finds_out_that_the_link_got_slow() -> None:
    codec = Counted(seconds_a_call=0.01)
    compressor = adaptive(codec, link_rate=1e9)
    assert compressor.body(TEXT)[0] == RAW
    for _ in range(60):
        compressor.sent(MIB, 10.0)
    assert ZLIB in [compressor.body(TEXT)[0] for _ in range(40)]


def test_a_send_that_took_no_time_at_all_is_no_division_by_zero() -> None:
    codec = Counted()
    compressor = Compressor(codec, adaptive=True, clock=codec.clock)
    compressor.sent(1, 0.0)
    assert compressor.body(TEXT)[0] in (RAW, ZLIB)


@pytest.mark.parametrize(
    ("wanted", "common", "is_local", "number"),
    [
        ("none", codec_names, False, RAW),
        ("auto", codec_names, True, RAW),
        ("auto", list, False, RAW),
        ("zlib", codec_names, True, ZLIB),
        ("zlib", lambda: ["zlib"], False, ZLIB),
    ],
)
def test_the_option_and_both_ends_decide(
    wanted: str, common: Callable[[], list[str]], is_local: bool, number: int
) -> None:
    compressor = make_compressor(wanted, common(), is_local=is_local)
    assert compressor.body(TEXT)[0] == number


def test_auto_on_a_network_takes_the_best_common_one() -> None:
    compressor = make_compressor("auto", ["zlib"], is_local=False)
    compressor.sent(MIB, 10.0)
    assert compressor.body(TEXT)[0] == ZLIB


def test_what_was_asked_for_and_can_not_be_is_said() -> None:
    with pytest.raises(VersionMismatch, match="zstd"):
        make_compressor("zstd", ["zlib"], is_local=False)
