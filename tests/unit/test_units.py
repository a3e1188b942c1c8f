"""Sizes and durations as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.units import (
    GIB,
    KIB,
    MIB,
    TIB,
    format_duration,
    format_size,
    parse_duration_s,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("256K", 256 * KIB),
        ("256k", 256 * KIB),
        ("4MiB", 4 * MIB),
        ("4 MB", 4 * MIB),
        ("1.5G", 3 * GIB // 2),
        (" 2t ", 2 * TIB),
        ("7B", 7),
    ],
)
def test_sizes_are_understood(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1X", "1,5G", "1e3", "0x10", "1 K K", "1.", "٣Ki"])
def test_other_sizes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="256K, 50M or 1G"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("10m", 600), ("24H", 86400), ("1.5d", 129600)]
)
def test_durations_are_understood(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-5m", "1w", "forever"])
def test_other_durations_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="30s, 10m or 24h"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (1536 * KIB, "1.5 MiB"),
        (4 * GIB, "4.0 GiB"),
        (8 * TIB, "8.0 TiB"),
        (5000 * TIB, "5000.0 TiB"),
        (-2 * MIB, "-2.0 MiB"),
    ],
)
def test_sizes_are_shown_in_binary_units(length: int, text: str) -> None:
    assert format_size(length) == text


@given(st.integers(0, 1 << 60))
def test_a_shown_size_is_near_what_it_stands_for(length: int) -> None:
    assert parse_size(format_size(length)) == pytest.approx(length, rel=0.06)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (9.99, "10.0 s"),
        (42.4, "42 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (18420, "5 h 07 min"),
    ],
)
def test_durations_are_shown(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
