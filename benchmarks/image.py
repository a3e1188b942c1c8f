"""The disks that are measured with: made up, changed, copied, compared.  Holes stay holes."""

import errno
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from p2v_sync.units import MIB, PAGE

_RANDOM, _TEXT = 0.35, 0.25  # shares; the rest are holes
_FULL = "without-holes"
_LINE = "Nov 22 10:%02d:%02d host%d daemon[%d]: request %d took %d ms\n"
_PIECE = 16 * MIB  # of an image whose data is spread
_CHUNK = MIB


def make_image(path: Path, size: int, *, holes: bool = True) -> None:
    """``write_image`` in a process of its own.

    A process that is started takes over, as far as wait4(2) can tell, the peak memory of the one
    that starts it: that of the contestants must not be that of this generator.
    """
    full = [] if holes else [_FULL]
    subprocess.run([sys.executable, "-m", __name__, str(path), str(size), *full], check=True)


def write_image(path: Path, size: int, seed: int = 1, *, holes: bool = True) -> None:
    """40 % holes, 35 % random, 25 % log-like text, in runs of 1 to 64 MiB; by ``seed`` alone.

    Without ``holes`` the rest is in the same proportion.
    """
    most = 1.0 if holes else _RANDOM + _TEXT
    generator = random.Random(seed)
    noise = generator.randbytes(65 * MIB)
    text = _log_lines(generator, 66 * MIB)
    with path.open("wb") as image:
        image.truncate(size)
        at = 0
        while at < size:
            length = min(generator.randrange(1, 65) * MIB, size - at)
            kind = most * generator.random()
            if kind < _RANDOM + _TEXT:
                # From another place each time, so that no two runs have equal blocks.
                start = generator.randrange(MIB)
                image.seek(at)
                image.write((noise if kind < _RANDOM else text)[start : start + length])
            at += length


def _log_lines(generator: random.Random, length: int) -> bytes:
    lines = []
    while length > 0:
        numbers = [generator.randrange(most) for most in (60, 60, 50, 9999, 1 << 30, 9999)]
        lines.append((_LINE % tuple(numbers)).encode())
        length -= len(lines[-1])
    return b"".join(lines)


def make_spread_image(path: Path, size: int, data: int) -> None:
    """``data`` random bytes in equal pieces, evenly spread over ``size``; holes between them."""
    generator = random.Random(1)
    pieces = max(1, data // _PIECE)
    length, stride = data // pieces, size // pieces
    with path.open("wb") as image:
        image.truncate(size)
        for number in range(pieces):
            image.seek(number * stride)
            for _ in range(0, length, _CHUNK):
                image.write(generator.randbytes(_CHUNK))


def toggle_pages(path: Path, seed: int) -> int:
    """Change a random 1 % of all 4 KiB pages in place; the same call again puts them back.

    Returns the number of bytes changed.  The first MiB stays as it is, as a partition table does:
    by that a disk is known again.
    """
    generator = random.Random(seed)
    pages = range(MIB // PAGE, path.stat().st_size // PAGE)
    chosen = sorted(generator.sample(pages, len(pages) // 100))
    with path.open("r+b") as image:
        for page in chosen:
            image.seek(page * PAGE)
            old = int.from_bytes(image.read(PAGE), "big")
            new = old ^ int.from_bytes(generator.randbytes(PAGE), "big")
            image.seek(page * PAGE)
            image.write(new.to_bytes(PAGE, "big"))
    return len(chosen) * PAGE


def copy_sparse(source: Path, copy: Path) -> None:
    """A copy in which the holes, and what else is zero, take no room."""
    subprocess.run(["cp", "--sparse=always", str(source), str(copy)], check=True)


def is_copy(source: Path, replica: Path) -> bool:
    """As ``cmp`` would say, but where both have holes nothing is read: that is 8 TiB at times."""
    size = source.stat().st_size
    if size != replica.stat().st_size:
        return False
    with source.open("rb") as one, replica.open("rb") as other:
        fds = one.fileno(), other.fileno()
        chunks = itertools.chain.from_iterable(_data_chunks(fd, size) for fd in fds)
        return all(
            os.pread(fds[0], length, start) == os.pread(fds[1], length, start)
            for start, length in chunks
        )


def _data_chunks(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, length) of all that is not a hole, 1 MiB at most each."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        for at in range(start, end, _CHUNK):
            yield at, min(_CHUNK, end - at)


if __name__ == "__main__":
    write_image(Path(sys.argv[1]), int(sys.argv[2]), holes=_FULL not in sys.argv[3:])
