"""A power cut or a kill anywhere in any order of frames: what is recorded is right (P2, P3).

The machine is tests/contract/host.py: what was not flushed may be gone, write by write, and times
may go back.
"""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_receiver import wire
from p2v_receiver.target import TargetError
from tests.conftest import LONG, Tell
from tests.contract.bench import BLOCK, SEGMENT, Bench, Worker, cut
from tests.contract.host import Host
from tests.contract.lab import ram_directory

SIZE = 2 * SEGMENT + 3 * BLOCK + 5
BLOCK_SIZES = (BLOCK, 4 * BLOCK)  # the larger ones are written page by page, too
NAMES = "ABC"  # few, so that what a block held before comes back (A → B → A)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with ram_directory() as root:
        yield root


class Disk:
    """A source whose blocks change, and the honest sender that replicates it, a bit at a time."""

    def __init__(self, bench: Bench, chance: random.Random) -> None:
        self.bench = bench
        self.chance = chance
        self.blocks = [""] * bench.layout.blocks

    def change(self) -> None:
        """The source changes, while no session is open."""
        for _ in range(self.chance.randrange(40)):
            first = self.chance.randrange(len(self.blocks))
            name = self.chance.choice(NAMES + " ").strip()
            for at in range(first, min(len(self.blocks), first + self.chance.choice((1, 1, 2, 9)))):
                self.blocks[at] = name

    def content(self, worker: Worker, first: int, total: int) -> bytes:
        return b"".join(self._block(worker, at) for at in range(first, first + total))

    def _block(self, worker: Worker, at: int) -> bytes:
        """Zeros, or pages of which some are the same for every name."""
        name, common = self.blocks[at], worker.content("", at)
        if not name:
            return bytes(len(common))
        own = worker.content(name, at)
        pages = range(0, len(own), BLOCK)
        kept = {page for page in pages[1:] if (page // BLOCK + at + ord(name)) % 3}
        return b"".join((common if at in kept else own)[at : at + BLOCK] for at in pages)

    def replicate(self, worker: Worker) -> None:
        """A pass; believes the receiver, and nothing but the receiver."""
        worker.begin()
        segments = list(range(worker.layout.segments))
        self.chance.shuffle(segments)
        for number in segments:
            self._replicate_segment(worker, number)
            if self.chance.random() < 0.4:
                worker.session.checkpoint()
        worker.end()

    def _replicate_segment(self, worker: Worker, number: int) -> None:
        first, total = number * wire.SEGMENT_BLOCKS, worker.layout.blocks_in(number)
        held = cut(worker.fetch(number, 1)[number])
        wanted = cut(worker.message(self.content(worker, first, total), first).entries)
        changed = [at for at in range(total) if held[at] != wanted[at]]
        self.chance.shuffle(changed)
        for at in changed:
            if wanted[at] == wire.ZERO:
                worker.zero(first + at)
            elif held[at] != wire.UNKNOWN and self.chance.random() < 0.7:
                assert not worker.patch(first + at, self._block(worker, first + at))
            else:
                worker.send(self._block(worker, first + at), first + at)
            if self.chance.random() < 0.02:
                worker.session.checkpoint()
        worker.complete(number, b"".join(wanted))

    def is_equal(self) -> bool:
        with self.bench.work() as worker:
            content = self.content(worker, 0, len(self.blocks))
        return self.bench.image.read_bytes() == content


def live(root: Path, chance: random.Random, lives: int) -> int:
    """One disk's life: passes, each cut off somewhere.  Returns how often the power went."""
    host, cuts = Host(), 0
    bench = Bench(root, SIZE, chance.choice(BLOCK_SIZES))
    disk = Disk(bench, chance)
    with host.installed():
        for _ in range(lives):
            disk.change()
            host.dies_at = chance.choice((chance.randrange(1, 12), chance.randrange(1, 90)))
            with contextlib.suppress(TargetError):
                with bench.work(finish=chance.random() < 0.8) as worker:
                    disk.replicate(worker)
                assert not host.is_dead
            cuts += host.is_dead
            if chance.random() < 0.3:
                host.is_dead, host.dies_at = False, None  # killed: all is still in the cache
            else:
                host.come_back(
                    is_lost=lambda: chance.random() < 0.5, time_goes_back=chance.random() < 0.5
                )
            if bench.image.exists() and bench.manifest.exists():
                bench.certain()
        with bench.work(finish=True) as worker:
            disk.replicate(worker)
        assert bench.certain() == set(range(bench.layout.segments))
        host.come_back(is_lost=lambda: True, time_goes_back=False)
        assert disk.is_equal()
    return cuts


CUTS = 1300 if LONG else 130


@pytest.mark.parametrize("batch", range(8))
def test_p2_p3_at_a_thousand_power_cuts_nothing_recorded_is_wrong(
    directory: Path, batch: int, tell: Tell
) -> None:
    cuts = life = 0
    while cuts < CUTS:
        life += 1
        root = directory / f"{batch}-{life}"
        root.mkdir()
        cuts += live(root, random.Random(f"{batch} {life}"), lives=12)
    tell(f"the power cut {cuts} times in the lives of {life} disks; nothing recorded was wrong")


@given(seed=st.integers(), lives=st.integers(1, 6))
def test_p2_p3_any_life(tmp_path_factory: pytest.TempPathFactory, seed: int, lives: int) -> None:
    live(tmp_path_factory.mktemp("life"), random.Random(seed), lives)
