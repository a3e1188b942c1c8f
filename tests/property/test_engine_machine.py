"""Whatever happens between and during runs: nothing is believed that is not so, nothing is lost.

A state machine over one disk with the real engine and the real receiver, on a machine that can lose
its power (``tests/contract/host.py``).
"""

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from p2v_receiver import codec, serve, wire
from p2v_receiver.manifest import Manifest
from p2v_sync.engine import replicate
from p2v_sync.errors import P2vError
from tests.contract.faults import Fault, Link, faulty
from tests.contract.host import PART, Host
from tests.contract.lab import (
    BLOCK,
    DISK,
    JOB,
    SEGMENT,
    Lab,
    MemorySource,
    Receiver,
    block_of,
    ram_directory,
)
from tests.contract.memory_ledger import MemoryLedger

SIZE = 2 * SEGMENT + 5 * BLOCK + 100
BLOCKS = -(-SIZE // BLOCK)
PLACES = st.one_of(
    st.integers(0, BLOCKS - 1),
    st.sampled_from([0, 255, 256, 257, 511, 512, BLOCKS - 2, BLOCKS - 1]),
)
CUTS = st.none() | st.integers(0, 40_000) | st.integers(0, SIZE * 2)


@dataclass(frozen=True)
class Plan:
    """A run, and what becomes of it."""

    sent: int | None  # the link is cut after so many bytes, as the sender sees it
    received: int | None
    flip: int | None  # a bit of the data on its way
    dies_at: int | None
    luck: int  # seeds what a power cut takes away
    streams: int
    again: bool
    verify: str
    seed: bool


def plans(**what: st.SearchStrategy[int | None]) -> st.SearchStrategy[Plan]:
    """Plans in which nothing goes wrong but ``what``."""
    faults = {name: st.none() for name in ("sent", "received", "flip", "dies_at")}
    return st.builds(
        Plan,
        **{**faults, **what},
        luck=st.integers(0, 7),
        streams=st.integers(1, 3),
        again=st.booleans(),
        verify=st.sampled_from(["none", "none", "auto", "full"]),
        seed=st.booleans(),
    )


class Machine(RuleBasedStateMachine):
    """One disk, its replica, and all that can go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.host = Host()
        self._stack.enter_context(self.host.installed())
        self._stack.enter_context(_no_back_off())
        self.lab = Lab(self._stack.enter_context(ram_directory()), MemorySource(bytes(SIZE)))
        self.host.going_down = lambda: self.lab.receiver.hang_up()
        self.features = [wire.PAGES]
        self._stack.enter_context(mock.patch.object(serve, "FEATURES", self.features))
        self.earlier: list[bytes] = [bytes(SIZE)]
        self.files: dict[int, tuple[str, int]] = {}

    # The source

    @initialize(
        seed=st.integers(0, 3),
        sparse=st.booleans(),
        block_size=st.sampled_from([BLOCK, 4 * BLOCK, 16 * BLOCK]),
    )
    def first_content(self, seed: int, sparse: bool, block_size: int) -> None:
        self.lab.block_size = block_size
        chance = random.Random(seed)
        for block in range(BLOCKS):
            if chance.random() < 0.7:
                self._put(block, block_of((seed, block)))
        self.lab.source.sparse = sparse
        self.earlier.append(bytes(self.lab.source.data))

    def _put(self, block: int, content: bytes) -> None:
        start = block * BLOCK
        self.lab.source.fill(start, content[: SIZE - start])

    @rule(
        blocks=st.lists(PLACES, min_size=1, max_size=20)
        | st.builds(lambda at, n: range(at, min(at + n, BLOCKS)), PLACES, st.integers(1, 300)),
        name=st.integers(0, 5),
    )
    def write(self, blocks: Sequence[int], name: int) -> None:
        """Zeros are name 0."""
        self.earlier.append(bytes(self.lab.source.data))
        for block in blocks:
            self._put(block, block_of((name, block)) if name else bytes(BLOCK))

    @rule(refines=st.booleans())
    def change_receiver(self, refines: bool) -> None:
        """By one that knows nothing of pages, or back."""
        self.features[:] = [wire.PAGES] if refines else []

    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        """P3: what the manifest once knew is right again."""
        now = bytes(self.lab.source.data)
        self.lab.source.fill(0, data.draw(st.sampled_from(self.earlier[-4:])))
        self.earlier.append(now)

    # Runs

    @rule(plan=plans())
    def run(self, plan: Plan) -> None:
        assert self._run(plan), "nothing went wrong, and yet it failed"

    @rule(plan=plans(sent=CUTS) | plans(received=CUTS) | plans(flip=st.integers(0, SIZE)))
    def run_on_a_bad_link(self, plan: Plan) -> None:
        self._run(plan)

    @rule(plan=plans(dies_at=st.integers(1, 25)) | plans(dies_at=st.integers(1, 25), sent=CUTS))
    def run_into_a_power_cut(self, plan: Plan) -> None:
        self._run(plan)

    def _run(self, plan: Plan) -> bool:
        """Whether it was a success."""
        lab = self.lab
        lab.dialer.wrap = faulty(
            Link(Fault(cut_after=plan.sent, flip=plan.flip), Fault(cut_after=plan.received))
        )
        self.host.dies_at = plan.dies_at
        luck = random.Random(plan.luck)
        lab.dialer.before_dial = lambda: self._restart(luck)
        # A power cut may tear a write: the block is uncertain then, and half of it what it was.
        unit = BLOCK if plan.dies_at is None else PART
        before = self._blocks_there(unit)
        try:
            lab.sync(
                streams=plan.streams,
                verify=plan.verify,
                seed=plan.seed,
                retry_for_s=60.0 if plan.again else 0.0,
            )
        except P2vError:
            is_success = False
        else:
            is_success = True
        lab.dialer.wrap = faulty()
        lab.receiver.wait()  # a cut link does not stop a write that has begun
        self._restart(luck)
        self.host.dies_at = None
        self._check_no_damage(before, unit)
        if is_success:
            assert lab.is_equal(), "P7: success, and the target differs"
            assert lab.header()["pass_complete"]
            assert bool(lab.header()["quiesced"]) == (not plan.seed), "P11"
        return is_success

    def _restart(self, luck: random.Random) -> None:
        """After a power cut; a run that goes on by itself finds the receiver there again."""
        if not self.host.is_dead:
            return
        self.lab.receiver.wait()
        lost = luck.choice([0.0, 0.5, 1.0])
        self.host.come_back(
            is_lost=lambda: luck.random() < lost, time_goes_back=luck.random() < 0.5
        )
        self.lab.receiver = self.lab.dialer.receiver = Receiver(self.lab.root)

    def _blocks_there(self, unit: int) -> set[bytes]:
        known = {bytes(unit)}
        image = self.lab.image.read_bytes() if self.lab.image.exists() else b""
        # A file that is too short is made longer.
        for content in (image, image.ljust(SIZE, b"\0"), bytes(self.lab.source.data)):
            known.update(content[at : at + unit] for at in range(0, len(content), unit))
        return known

    def _check_no_damage(self, before: set[bytes], unit: int) -> None:
        """P4: no block holds what neither side ever held."""
        if not self.lab.image.exists():
            return
        image = self.lab.image.read_bytes()
        odd = len(image) // unit * unit
        known = before | {bytes(len(image) - odd)}
        for at in range(0, len(image), unit):
            assert image[at : at + unit] in known, f"P4: block {at // BLOCK} is damaged"

    # What others do to sender and receiver

    @rule(keeps_ledger=st.booleans())
    def crash_sender(self, keeps_ledger: bool) -> None:
        self.lab.ledger = self.lab.ledger.reopened() if keeps_ledger else MemoryLedger()

    @rule(
        block_size=st.sampled_from([None, BLOCK, 4 * BLOCK]),
        digest=st.sampled_from(["blake2b", None]),
    )
    def change_parameters(self, block_size: int | None, digest: str | None) -> None:
        self.lab.block_size, self.lab.digest = block_size, digest

    @rule(at=st.none() | st.integers(0, 30_000))
    def spoil_manifest(self, at: int | None) -> None:
        """Delete it, or overwrite some of it."""
        if not self.lab.manifest.exists():
            return
        if at is None:
            self.lab.manifest.unlink()
            self._note_removed()
            return
        with self.lab.manifest.open("r+b") as file:
            file.seek(min(at, self.lab.manifest.stat().st_size - 1))
            file.write(b"\xa5" * 16)

    @rule(block=PLACES, total=st.integers(1, 40))
    def alter_image(self, block: int, total: int) -> None:
        """With its old mtime; the ctime tells."""
        if not self.lab.image.exists():
            return
        with self.lab.image.open("r+b") as file:
            file.seek(block * BLOCK)
            file.write((b"altered!" * (total * BLOCK // 8))[: max(0, SIZE - block * BLOCK)])
        self.host.touch(str(self.lab.image))

    @rule(length=st.none() | st.sampled_from([0, SEGMENT, SIZE, SIZE + BLOCK]))
    def replace_image(self, length: int | None) -> None:
        """By nothing, or by another file of some length."""
        if not self.lab.image.exists():
            return
        self.lab.image.unlink()
        self._note_removed()
        if length is not None:
            self.lab.image.write_bytes(b"another!" * (length // 8))

    # What always holds

    @invariant()
    def p2_what_is_called_certain_is_so(self) -> None:
        if not (self.lab.manifest.exists() and self.lab.image.exists()):
            return
        with contextlib.ExitStack() as stack:
            try:
                manifest = Manifest.open(str(self.lab.manifest))
            except Exception:  # noqa: BLE001 - spoilt: the receiver will not believe it either
                return
            stack.callback(manifest.close)
            header = manifest.header()
            status = os.stat(self.lab.image)
            version = self.host.versions[status.st_ino]
            if header["file_identity"] != [status.st_dev, status.st_ino, status.st_size, version]:
                return
            self._compare(manifest, header["digest"], header["seed"])

    def _compare(self, manifest: Manifest, name: str, seed: int) -> None:
        layout, digest = manifest.layout(), codec.digest_function(name, seed)
        image = self.lab.image.read_bytes()
        for number in range(layout.segments):
            start, end = layout.segment_extent(number)
            recorded = manifest.segment(number, layout)
            if recorded.uncertain:
                continue
            found = codec.entries_of(memoryview(image)[start:end], layout.block_size, digest)
            for index, entry in enumerate(found):
                said = recorded.entries[index * wire.ENTRY_SIZE :][: wire.ENTRY_SIZE]
                assert said in (entry, wire.UNKNOWN), f"P2: block {index} of segment {number}"

    @invariant()
    def p9_nothing_disappears_or_shrinks(self) -> None:
        now = self._files_now()
        for number, (name, size) in self.files.items():
            assert number in now, f"P9: {name} is gone"
            assert now[number][1] >= size, f"P9: {name} shrank"
        self.files = now

    def _files_now(self) -> dict[int, tuple[str, int]]:
        """inode → name and size, of what is not SQLite's journal or a lock."""
        directory = self.lab.root / JOB
        paths = directory.iterdir() if directory.is_dir() else ()
        found = {}
        for path in paths:
            if path.name.startswith((f"{DISK}.img", f"{DISK}.manifest")) and not (
                path.name.endswith(("-journal", ".new"))
            ):
                status = path.stat()
                found[status.st_ino] = path.name, status.st_size
        return found

    def _note_removed(self) -> None:
        now = self._files_now()
        self.files = {number: each for number, each in self.files.items() if number in now}

    def teardown(self) -> None:
        """A clean run ends with target = source, holes where zeros are (P6), and says so."""
        try:
            self.lab.sync(verify="none")
            assert self.lab.is_equal()
            self.p2_what_is_called_certain_is_so()
            self.p9_nothing_disappears_or_shrinks()
            # Once more, from the ledger.
            outcome = self.lab.sync(verify="none")
            assert (outcome.counters.sent, self.lab.is_equal()) == (0, True)
        finally:
            self._stack.close()


@contextlib.contextmanager
def _no_back_off() -> Iterator[None]:
    with mock.patch.object(replicate, "_BACKOFF_S", (0.0,)):
        yield


TestEngineMachine = pytest.mark.timeout(900)(Machine.TestCase)
TestEngineMachine.settings = settings(stateful_step_count=10)
