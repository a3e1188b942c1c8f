"""The manifest: each change durable and whole (P2, P3), and no damage believed (P5)."""

import contextlib
import functools
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2v_receiver import codec, wire
from p2v_receiver.manifest import Manifest, ManifestDamaged, seed_to_column
from p2v_receiver.target import TargetError
from p2v_receiver.wire import ErrorCode, Json, Layout
from tests.contract.channel_suite import ROOT
from tests.contract.lab import ram_directory

BLOCK = 4096
BLOCKS = 4 * wire.SEGMENT_BLOCKS + 40
LAYOUT = Layout(BLOCKS * BLOCK - 7, BLOCK)
LAST = 4
FIELDS: Json = {
    "uuid": "image",
    "job": "job",
    "disk": "disk",
    "size": LAYOUT.size,
    "block_size": BLOCK,
    "digest": "blake2b",
    "seed": seed_to_column((1 << 64) - 2),
    "rest_is_zero": 1,
    "file_identity": None,
}
NOTHING: Json = {}


def entries(name: str, segment: int) -> bytes:
    packed = [codec.entries_digest(f"{name}{at}".encode()) for at in range(256)]
    return b"".join(packed[: LAYOUT.blocks_in(segment)])


@pytest.fixture
def path() -> Iterator[Path]:
    with ram_directory() as root:
        yield root / "disk.manifest"


@pytest.fixture
def manifest(path: Path) -> Iterator[Manifest]:
    with contextlib.closing(Manifest.create(str(path), FIELDS)) as made:
        yield made


def test_a_new_one(manifest: Manifest) -> None:
    header = manifest.header()
    assert header["seed"] == (1 << 64) - 2
    assert header["generation"] == 1
    assert (header["pass_number"], header["pass_complete"], header["quiesced"]) == (0, 1, 0)
    assert manifest.layout() == LAYOUT
    assert manifest.segment(3, LAYOUT) == (LAYOUT.zero_entries(3), False)
    assert manifest.is_certain(LAYOUT)
    assert manifest.data_segments() == []


CHANGES: dict[str, Callable[[Manifest], None]] = {
    "mark_uncertain": lambda m: m.mark_uncertain([1, 2]),
    "commit": lambda m: m.commit({1: entries("A", 1)}, [1], [1, 2]),
    "lose": lambda m: m.lose([1]),
    "forget_blocks": lambda m: m.forget_blocks([(3, 2)], LAYOUT),
    "distrust": lambda m: m.distrust(),
    "reset": lambda m: m.reset({"uuid": "other"}),
    "recut": lambda m: m.recut("blake2b", 2 * BLOCK),
    "begin_pass": lambda m: m.begin_pass("initial", {}),
    "finish_pass": lambda m: m.finish_pass(True, [(0, 512)], [1, 2]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_p5_every_change_gives_it_another_commit(manifest: Manifest, path: Path, name: str) -> None:
    before = manifest.header()
    CHANGES[name](manifest)
    after = manifest.header()
    assert after["generation"] == before["generation"] + 1
    assert after["commit_id"] != before["commit_id"]
    manifest.close()
    with contextlib.closing(Manifest.open(str(path))) as again:
        assert again.header() == after


@pytest.mark.parametrize("name", CHANGES)
def test_p2_a_change_that_fails_leaves_nothing_behind(
    manifest: Manifest, path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    manifest.commit({0: entries("A", 0)}, [0], [1])
    content = path.read_bytes()

    def fail() -> bytes:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_seal", fail)
        with pytest.raises(TargetError, match="is full") as caught:
            CHANGES[name](manifest)
    assert caught.value.code is ErrorCode.FULL
    assert path.read_bytes() == content
    assert manifest.segment(0, LAYOUT) == (entries("A", 0), False)


# P3, P2: what rows become.


def test_p3_what_is_marked_uncertain_does_not_count(manifest: Manifest) -> None:
    manifest.commit({0: entries("A", 0), 1: entries("A", 1)}, [0, 1], [1])
    manifest.mark_uncertain([1])
    assert manifest.segment(0, LAYOUT) == (entries("A", 0), False)
    assert manifest.segment(1, LAYOUT).uncertain
    assert manifest.segment_digests(0, 5)[1] == b""
    assert not manifest.is_certain(LAYOUT)
    manifest.commit({1: entries("B", 1)}, [], [1])
    assert manifest.segment(1, LAYOUT).uncertain, "recorded, but still being written to"
    manifest.commit({1: entries("B", 1)}, [1], [1])
    assert manifest.segment(1, LAYOUT) == (entries("B", 1), False)
    assert manifest.is_certain(LAYOUT)


def test_p2_lost_outlives_distrust_and_marking(manifest: Manifest) -> None:
    manifest.commit({0: entries("A", 0), 1: entries("A", 1)}, [0, 1], [1])
    manifest.mark_uncertain([2])
    manifest.lose([1])
    unknown = (wire.UNKNOWN * 256, False)
    for change in (manifest.distrust, lambda: manifest.mark_uncertain([1, 2])):
        change()
        assert manifest.segment(1, LAYOUT) == manifest.segment(2, LAYOUT) == unknown
        assert not manifest.is_certain(LAYOUT)
    partly = wire.UNKNOWN + entries("A", 1)[wire.ENTRY_SIZE :]
    manifest.commit({1: partly, 2: entries("B", 2)}, [1, 2], [1])
    assert manifest.segment(1, LAYOUT) == unknown
    assert manifest.segment(2, LAYOUT) == (entries("B", 2), False)
    manifest.commit({1: entries("A", 1)}, [1], [1])
    assert manifest.segment(1, LAYOUT) == (entries("A", 1), False)


def test_p2_when_nothing_is_known_of_the_rest_all_of_it_is_lost(manifest: Manifest) -> None:
    manifest.distrust()
    manifest.commit({0: entries("A", 0)}, [0], [1])
    manifest.lose([])
    lost = [manifest.segment(number, LAYOUT).entries[:16] for number in range(LAYOUT.segments)]
    assert lost == [entries("A", 0)[:16]] + [wire.UNKNOWN] * LAST


@pytest.mark.parametrize(("block_size", "lost"), [(2 * BLOCK, {0}), (BLOCK, {1})])
def test_p2_lost_places_are_kept_in_other_blocks(
    manifest: Manifest, block_size: int, lost: set[int]
) -> None:
    manifest.lose([1])
    manifest.recut("xxh3", block_size)
    layout = manifest.layout()
    assert layout == (LAYOUT.size, block_size)
    for number in range(layout.segments):
        recorded = manifest.segment(number, layout)
        assert recorded.uncertain == (number not in lost)
        assert (wire.UNKNOWN in recorded.entries) == (number in lost)


def test_lost_at_the_end_of_the_disk(manifest: Manifest) -> None:
    manifest.lose([LAST])
    manifest.recut("xxh3", wire.MAX_BLOCK_SIZE)
    assert not manifest.segment(0, manifest.layout()).uncertain


def test_distrust_leaves_nothing_certain(manifest: Manifest) -> None:
    manifest.commit({0: entries("A", 0)}, [0], [1])
    manifest.distrust()
    assert all(manifest.segment(number, LAYOUT).uncertain for number in range(LAYOUT.segments))
    assert not manifest.is_certain(LAYOUT)
    every = {number: LAYOUT.zero_entries(number) for number in range(LAYOUT.segments)}
    manifest.commit(every, every, [1])
    assert manifest.is_certain(LAYOUT)


def test_forgotten_blocks_are_unknown(manifest: Manifest) -> None:
    manifest.commit({0: entries("A", 0)}, [0], [1])
    manifest.forget_blocks([(3, 2), (255, 2)], LAYOUT)
    assert manifest.segment(0, LAYOUT).entries.count(wire.UNKNOWN) == 3
    assert manifest.segment(1, LAYOUT).entries[:16] == wire.UNKNOWN
    assert manifest.segment(1, LAYOUT).entries[16:32] == wire.ZERO


def test_p7_the_state_digest_is_about_content_alone(manifest: Manifest, path: Path) -> None:
    manifest.commit({1: entries("A", 1), 0: entries("B", 0)}, [0, 1], [1])
    other = Manifest.create(str(path.with_name("other")), FIELDS)
    other.commit({0: entries("B", 0)}, [0], [5])
    assert other.state_digest() != manifest.state_digest()
    other.commit({1: entries("A", 1), 2: LAYOUT.zero_entries(2)}, [1, 2], [5])
    assert other.state_digest() == manifest.state_digest()
    other.close()


def test_passes_are_counted(manifest: Manifest) -> None:
    for number in (1, 2):
        for kind in ("seed", "final"):
            manifest.begin_pass(kind, {"name": kind})
            header = manifest.header()
            assert (header["pass_number"], header["pass_kind"]) == (number, kind)
            assert (header["pass_complete"], header["quiesced"]) == (0, 0)
            assert header["source_identity"] == {"name": kind}
        manifest.finish_pass(True, [(512, 1024)], [1])
        assert manifest.header()["quiesced"]
        assert manifest.unreadable() == [(512, 1024)]


# P5: damage.


def full(path: Path) -> None:
    """Rows of every kind: certain, zero, uncertain, lost; the last one is short."""
    with contextlib.closing(Manifest.create(str(path), FIELDS)) as made:
        made.begin_pass("initial", {"name": "disk"})
        made.commit({LAST: entries("A", LAST), 0: LAYOUT.zero_entries(0)}, [0, LAST], [1, 2])
        made.lose([1])
        made.mark_uncertain([2])
        made.finish_pass(True, [(512, 1024)], [1, 2])


def said_by(manifest: Manifest) -> tuple[Any, ...]:
    """All that a session asks of a manifest."""
    header = list(manifest.header().values())
    segments = [manifest.segment(number, LAYOUT) for number in range(LAYOUT.segments)]
    digests = manifest.segment_digests(0, LAYOUT.segments)
    certain = manifest.is_certain(LAYOUT)
    return header, manifest.unreadable(), digests, certain, manifest.state_digest(), segments


def believe(path: Path, original: tuple[Any, ...]) -> str:
    """Open a damaged manifest; fails when it says anything else than it did."""
    try:
        manifest = Manifest.open(str(path))
    except ManifestDamaged:
        return "damaged"
    except TargetError as error:
        return error.message if error.code is not ErrorCode.VERSION else "newer"
    with contextlib.closing(manifest):
        said = said_by(manifest)
    assert said[:-1] == original[:-1]
    for is_said, was in zip(said[-1], original[-1], strict=True):
        assert is_said.uncertain or is_said == was
    return "as before" if said == original else "uncertain"


def test_entries_that_are_called_a_text_are_the_same_bytes(path: Path) -> None:
    full(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE segments SET entries = CAST(entries AS TEXT)")
        db.commit()
    with contextlib.closing(Manifest.open(str(path))) as manifest:
        assert manifest.segment(LAST, LAYOUT) == (entries("A", LAST), False)


def test_p5_damage_anywhere_is_never_believed(path: Path) -> None:
    full(path)
    content = path.read_bytes()
    chance = random.Random(1)
    with contextlib.closing(Manifest.open(str(path))) as manifest:
        original = said_by(manifest)
    ends: Counter[str] = Counter()
    # What is no zero carries meaning; of the empty places between a few must do.
    flips = [(at, bit) for at, byte in enumerate(content) if byte for bit in range(8)]
    empty = [(at, 0) for at, byte in enumerate(content) if not byte]
    for at, bit in chance.sample(flips, 4000) + chance.sample(empty, 500):
        damaged = bytearray(content)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        ends[believe(path, original)] += 1
    assert ends["damaged"] > 1000
    assert ends["uncertain"] > 500
    assert {*ends} == {"damaged", "newer", "uncertain", "as before"}


@pytest.mark.parametrize("column", ["rest_is_zero", "quiesced", "pass_complete", "size", "seed"])
def test_p5_a_head_with_another_number_is_not_believed(path: Path, column: str) -> None:
    full(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"UPDATE image SET {column} = {column} - 1")
        db.commit()
    with pytest.raises(ManifestDamaged, match="altered"):
        Manifest.open(str(path))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE segments SET segment = 3 WHERE segment = 4",
        "UPDATE segments SET segment = -1 WHERE segment = 0",
        "UPDATE segments SET segment = 77 WHERE segment = 4",
        "UPDATE segments SET uncertain = 0",
        "UPDATE segments SET uncertain = 1 WHERE uncertain = 2",
        "UPDATE segments SET uncertain = 'x'",
        "UPDATE segments SET digest = zeroblob(16)",
        "UPDATE unreadable SET start = 0",
        "DELETE FROM unreadable",
        "DELETE FROM image",
        "INSERT INTO image SELECT * FROM image",
        "UPDATE image SET seed = 'x'",
        "UPDATE image SET file_identity = '{'",
        "DROP TABLE segments",
        "PRAGMA user_version = 0",
    ],
)
def test_p5_rows_that_were_altered_are_not_believed(path: Path, change: str) -> None:
    full(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(change)
        db.commit()
    with pytest.raises(ManifestDamaged):
        Manifest.open(str(path))


@pytest.mark.parametrize(
    "field",
    [
        {"block_size": 5},
        {"block_size": "x"},
        {"size": -1},
        {"source_identity": "[]"},
        {"seed": None},
    ],
)
def test_p5_a_head_of_nonsense_is_not_believed(path: Path, field: Json) -> None:
    """Sealed, but not by this program."""
    full(path)
    with contextlib.closing(Manifest(str(path))) as manifest, manifest._change():
        manifest._db.execute("CREATE TABLE loose AS SELECT * FROM image")
        manifest._db.execute("DROP TABLE image")
        manifest._db.execute("ALTER TABLE loose RENAME TO image")
        manifest._set(field)
    with pytest.raises(ManifestDamaged):
        Manifest.open(str(path))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.5, 0.75, 0.99])
def test_p5_a_cut_off_manifest_is_not_believed(path: Path, part: float) -> None:
    full(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ManifestDamaged):
        Manifest.open(str(path))


@pytest.mark.parametrize("content", [b"", b"text\n" * 100, bytes(8192)])
def test_p5_what_is_no_manifest_is_not_believed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ManifestDamaged):
        Manifest.open(str(path))


def test_a_newer_one_is_refused_whatever_it_looks_like(path: Path) -> None:
    full(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE image; CREATE TABLE image (a); PRAGMA user_version = 2")
    with pytest.raises(TargetError, match="newer receiver") as caught:
        Manifest.open(str(path))
    assert caught.value.code is ErrorCode.VERSION


def test_one_that_somebody_else_has_open_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(path)
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", functools.partial(real, timeout=0.05))
    with contextlib.closing(real(path)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TargetError, match="locked"):
            Manifest.open(str(path))


def test_a_directory_that_is_not_there(path: Path) -> None:
    with pytest.raises(TargetError, match="unable to open") as caught:
        Manifest(str(path / "nowhere"))
    assert caught.value.code is ErrorCode.READ_ONLY


def test_making_one_where_there_is_one(path: Path) -> None:
    full(path)
    with pytest.raises(TargetError, match="already exists"):
        Manifest.create(str(path), FIELDS)
    with contextlib.closing(Manifest.open(str(path))) as manifest:
        assert manifest.segment(LAST, LAYOUT).entries == entries("A", LAST)


# P2: a kill at any time.

_WRITE_ON = """
import sys
sys.path[:0] = sys.argv[1:3]
from p2v_receiver.manifest import Manifest
from tests.unit.test_receiver_manifest import LAST, entries
manifest = Manifest.open(sys.argv[3])
for number in range(100000):
    name = str(number)
    if number % 3 == 0:
        manifest.mark_uncertain([0, 1, 2, 3])
    else:
        manifest.commit({each: entries(name, each) for each in range(4)}, range(4), [number])
    print(number, manifest.header()["generation"], flush=True)
"""


def test_p2_what_was_committed_survives_a_kill(path: Path) -> None:
    full(path)
    chance = random.Random(2)
    for _ in range(8):
        argv = [sys.executable, "-c", _WRITE_ON, str(ROOT), str(ROOT / "receiver"), str(path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            lines = [victim.stdout.readline() for _ in range(chance.randrange(1, 60))]
            victim.kill()
            lines += victim.stdout.readlines()
        number, generation = map(int, lines[-1].split())
        with contextlib.closing(Manifest.open(str(path))) as manifest:
            ahead = manifest.header()["generation"] - generation
            assert ahead in (0, 1)
            found = [manifest.segment(each, LAYOUT) for each in range(4)]
            if (number + ahead) % 3 == 0:
                assert all(each.uncertain for each in found)
            else:
                name = str(number + ahead)
                assert found == [(entries(name, each), False) for each in range(4)]


def test_p2_a_transaction_that_was_cut_off_is_rolled_back(path: Path) -> None:
    full(path)
    content = path.read_bytes()
    copy = path.with_name("copy")
    with contextlib.closing(Manifest.open(str(path))) as manifest:
        manifest._db.execute("PRAGMA cache_size = 1")  # writes into the file before the commit
        with contextlib.suppress(ZeroDivisionError), manifest._change():
            for number in range(4):
                manifest._store(number, entries("B", number), False)
            shutil.copy(path, copy)
            shutil.copy(f"{path}-journal", f"{copy}-journal")
            raise ZeroDivisionError
    assert copy.read_bytes() != content
    with contextlib.closing(Manifest.open(str(copy))) as manifest:
        assert manifest.segment(LAST, LAYOUT).entries == entries("A", LAST)
        assert manifest.segment(2, LAYOUT).uncertain
