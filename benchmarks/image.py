"""The test image of all measurements: 40 % zero as holes, 35 % random, 25 % log-like text."""

import random
from pathlib import Path

from p2v_sync.units import MIB

_RANDOM, _TEXT = 0.35, 0.25  # shares; the rest are holes
_LINE = "Nov 22 10:%02d:%02d host%d daemon[%d]: request %d took %d ms\n"


def make_image(path: Path, size: int, seed: int = 1) -> None:
    """Write an image of ``size`` bytes in runs of 1 to 64 MiB; the same for the same seed."""
    generator = random.Random(seed)
    noise = generator.randbytes(64 * MIB)
    text = _log_lines(generator, 66 * MIB)
    with path.open("wb") as image:
        image.truncate(size)
        at = 0
        while at < size:
            length = min(generator.randrange(1, 65) * MIB, size - at)
            kind = generator.random()
            if kind < _RANDOM + _TEXT:
                image.seek(at)
                if kind < _RANDOM:
                    # Told apart by its first bytes, so that no two runs have equal blocks.
                    image.write(at.to_bytes(8, "big") + noise[8:length])
                else:
                    start = generator.randrange(MIB)
                    image.write(text[start : start + length])
            at += length


def _log_lines(generator: random.Random, length: int) -> bytes:
    lines = []
    while length > 0:
        numbers = [generator.randrange(most) for most in (60, 60, 50, 9999, 1 << 30, 9999)]
        lines.append((_LINE % tuple(numbers)).encode())
        length -= len(lines[-1])
    return b"".join(lines)
