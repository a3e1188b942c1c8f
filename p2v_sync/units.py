"""Sizes, rates and durations as people type and read them; inside it is bytes and seconds."""

import re

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

PAGE = 4 * KIB

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE)
_SIZE_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_DURATION_FACTORS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86400}


def _parse(text: str, pattern: re.Pattern[str], factors: dict[str, int], example: str) -> float:
    match = pattern.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not understood; write it like {example}")
    return float(match[1]) * factors[match[2].upper()]


def parse_size(text: str) -> int:
    """``256K``, ``1.5G``, ``4MiB`` → bytes (powers of 1024).  Raises ValueError."""
    return int(_parse(text, _SIZE, _SIZE_FACTORS, "256K, 50M or 1G"))


def parse_duration_s(text: str) -> float:
    """``90``, ``30s``, ``10m``, ``24h``, ``2d`` → seconds.  Raises ValueError."""
    return _parse(text, _DURATION, _DURATION_FACTORS, "30s, 10m or 24h")


def format_size(length: float) -> str:
    """Bytes → ``4.0 GiB``: three or so significant digits, binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(length) < KIB:
            return f"{length:.0f} B" if unit == "B" else f"{length:.1f} {unit}"
        length /= KIB
    return f"{length:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Seconds → ``0.4 s``, ``42 s``, ``3 min 20 s``, ``5 h 07 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest_s = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
