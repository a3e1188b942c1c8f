"""Opening the ledger: directories, versions, migrations, damage."""

import os
import random
import sqlite3
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlite_utils

from p2v_sync.errors import P2vError, StateCorrupt, StateError
from p2v_sync.events import Counters
from p2v_sync.state import schema
from p2v_sync.state.database import Database, move_aside
from p2v_sync.state.ledger import Ledger
from tests.contract.ledger_suite import checkpoint, packed, state


def no_notices(text: str) -> None:
    raise AssertionError(f"unexpected notice: {text}")


def fill(state_dir: Path) -> Path:
    """A ledger with something of everything in it; its file."""
    with Ledger.open(state_dir, no_notices) as ledger:
        disk = ledger.job("j", "t").disk("sda", path="/dev/sda", size=1 << 30)
        disk.set_identity({"wwn": "1"})
        disk.begin_pass(1, "initial")
        for start in range(0, 40, 8):
            disk.record(checkpoint(start, {start + n: packed(n + 1) for n in range(8)}))
            disk.event("recorded", start=start)
        disk.finish_pass(state(99), Counters(), wire_digest="")
    return state_dir / "ledger.sqlite"


def exercise(ledger: Ledger) -> None:
    """Read and write everything there is."""
    ledger.overview()
    disk = ledger.job("j", "t").disk("sda", path="/dev/sda", size=1 << 30)
    disk.target_state()
    disk.identity()
    disk.digest_settings()
    for segment, _ in disk.segment_digests():
        disk.entries(segment)
    disk.begin_pass(2, "incremental")
    disk.record(checkpoint(100, {1: packed(1), 2: None}))
    disk.unreadable()
    disk.event("exercised")
    disk.finish_pass(state(101), Counters(), wire_digest="")


def pragma(path: Path, name: str) -> object:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]
    finally:
        connection.close()


def test_the_directory_is_private(tmp_path: Path) -> None:
    path = fill(tmp_path / "a" / "state")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_p2_it_is_durable(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, no_notices) as ledger:
        connection = ledger._database._connection
        found = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert found == ["wal", 2, 1, 30000]


def test_an_unusable_directory_says_how_to_name_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "ledger.sqlite").mkdir()
    for state_dir in (tmp_path / "file" / "state", tmp_path / "file", tmp_path / "link"):
        with pytest.raises(StateError) as caught:
            Ledger.open(state_dir, no_notices)
        assert "--state DIR" in str(caught.value.hint)
        assert not isinstance(caught.value, StateCorrupt)


def test_an_unwritable_file_system_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        Ledger.open(Path("/proc/p2v-sync"), no_notices)
    assert "--state DIR" in str(caught.value.hint)
    assert Ledger.look(tmp_path) is None
    with pytest.raises(StateError):
        Ledger.look(tmp_path / ("x" * 300))


def test_many_may_open_a_new_one_at_once(tmp_path: Path) -> None:
    def begin(number: int) -> None:
        with Ledger.open(tmp_path, no_notices) as ledger:
            ledger.job(f"job{number}", "t")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, range(24)))
    with Ledger.open(tmp_path, no_notices) as ledger:
        assert len(ledger.overview()) == 24


@pytest.mark.parametrize("pragma_first", [False, True])
def test_an_empty_or_version_0_file_becomes_a_ledger(tmp_path: Path, pragma_first: bool) -> None:
    path = tmp_path / "ledger.sqlite"
    path.touch()
    if pragma_first:
        connection = sqlite3.connect(path)
        connection.execute("VACUUM")
        connection.close()
        assert path.stat().st_size
    with Ledger.open(tmp_path, no_notices) as ledger:
        exercise(ledger)
    assert pragma(path, "user_version") == len(schema.MIGRATIONS)


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = fill(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1000")
    connection.close()
    for way in (look, run):
        with pytest.raises(StateError, match="made by a newer p2v-sync"):
            way(tmp_path)
    assert pragma(path, "user_version") == 1000


def migrated(path: Path, migrations: Sequence[schema.Migration]) -> None:
    opened = Database(path, create=True)
    try:
        schema.migrate(path, opened.reading, opened.writing, migrations)
    finally:
        opened.close()


def _add_column(tables: sqlite_utils.Database) -> None:
    tables.execute("ALTER TABLE jobs ADD COLUMN note TEXT")
    tables.execute("UPDATE jobs SET note = 'was ' || name")


def _fail(tables: sqlite_utils.Database) -> None:
    tables.execute("ALTER TABLE jobs ADD COLUMN note TEXT")
    tables.execute("UPDATE nothing SET a = 1")


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_a_file_of_an_older_version_is_brought_forward_with_what_is_in_it(tmp_path: Path) -> None:
    path = fill(tmp_path)
    migrated(path, [*schema.MIGRATIONS, _add_column])
    assert pragma(path, "user_version") == len(schema.MIGRATIONS) + 1
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name, note FROM jobs").fetchall() == [("j", "was j")]
    connection.close()


def test_a_failing_migration_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = fill(tmp_path)
    before = dump(path)
    with pytest.raises(StateError, match="can't be brought to this version") as caught:
        migrated(path, [*schema.MIGRATIONS, _add_column, _fail])
    assert not isinstance(caught.value, StateCorrupt)
    assert dump(path) == before
    assert pragma(path, "user_version") == len(schema.MIGRATIONS)


def test_somebody_elses_database_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE jobs (a)")
    connection.close()
    with pytest.raises(StateError, match="table jobs already exists"):
        Ledger.open(tmp_path, no_notices)
    assert "CREATE TABLE jobs (a);" in dump(path)


def aside_files(state_dir: Path) -> list[Path]:
    return sorted(state_dir.glob("ledger.sqlite.corrupt-*"))


def test_p9_a_damaged_ledger_is_kept_and_a_new_one_begun(tmp_path: Path) -> None:
    path = fill(tmp_path)
    garbage = b"this is not a database" * 1000
    path.write_bytes(garbage)
    notices: list[str] = []
    with Ledger.open(tmp_path, notices.append) as ledger:
        assert ledger.overview() == []
        exercise(ledger)
    (aside,) = aside_files(tmp_path)
    assert aside.read_bytes() == garbage
    (notice,) = notices
    assert aside.name in notice
    assert "the receiver's manifest" in notice


def test_p9_many_may_open_a_damaged_one_at_once(tmp_path: Path) -> None:
    # Without a lock around opening the second moves aside what the first has just begun.
    for number in range(5):
        state_dir = tmp_path / str(number)
        fill(state_dir).write_bytes(b"garbage" * 1000)
        notices: list[str] = []

        def begin(job: int, state_dir: Path, notices: list[str]) -> None:
            with Ledger.open(state_dir, notices.append) as ledger:
                ledger.job(f"job{job}", "t")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(begin, range(8), [state_dir] * 8, [notices] * 8))
        assert len(notices) == len(aside_files(state_dir)) == 1
        with Ledger.open(state_dir, no_notices) as ledger:
            assert len(ledger.overview()) == 8


def test_p9_moving_aside_takes_all_files_and_overwrites_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    for number in range(3):
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").write_text(f"{number}{suffix}")
        aside = move_aside(path)
        assert Path(f"{aside}-wal").read_text() == f"{number}-wal"
    assert len(aside_files(tmp_path)) == 9
    assert not path.exists()


def test_damage_that_cant_be_moved_aside_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fill(tmp_path)
    path.write_bytes(b"garbage" * 1000)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StateCorrupt, match="can't be moved aside") as caught:
        Ledger.open(tmp_path, no_notices)
    assert "--state DIR" in str(caught.value.hint)
    assert path.read_bytes() == b"garbage" * 1000


def test_p9_a_look_leaves_a_damaged_ledger_where_it_is(tmp_path: Path) -> None:
    path = fill(tmp_path)
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(StateCorrupt):
        Ledger.look(tmp_path)
    assert aside_files(tmp_path) == []
    assert path.read_bytes() == b"garbage" * 1000


def test_p9_damage_found_midway_is_set_aside_by_the_next_run(tmp_path: Path) -> None:
    path = fill(tmp_path)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE disks SET identity = '{'")
    connection.close()
    with pytest.raises(StateCorrupt, match="identity"):
        run(tmp_path)
    notices: list[str] = []
    with Ledger.open(tmp_path, notices.append) as ledger:
        exercise(ledger)
    assert len(notices) == len(aside_files(tmp_path)) == 1
    with Ledger.open(tmp_path, no_notices) as ledger:
        assert len(ledger.overview()) == 1


def test_a_table_that_is_gone_is_damage(tmp_path: Path) -> None:
    path = fill(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE VIEW mine AS SELECT * FROM jobs")
    connection.close()
    run(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE checkpoints")
    connection.close()
    with pytest.raises(StateCorrupt, match="tables"):
        look(tmp_path)
    notices: list[str] = []
    with Ledger.open(tmp_path, notices.append) as ledger:
        exercise(ledger)
    assert len(notices) == 1


def truncated(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def flipped(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice([1, 1, 8, 64])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def flipped_in_front(data: bytearray, chance: random.Random) -> bytearray:
    data[chance.randrange(4096)] ^= 1 << chance.randrange(8)
    return data


def overwritten(data: bytearray, chance: random.Random) -> bytearray:
    start, length = chance.randrange(len(data)), chance.choice([1, 16, 512, 4096])
    junk = chance.choice([bytes(length), chance.randbytes(length), b"\xff" * length])
    data[start : start + length] = junk
    return data


_DAMAGE = [truncated, flipped, flipped_in_front, overwritten]


@pytest.mark.parametrize("damage", _DAMAGE, ids=lambda damage: damage.__name__)
def test_p5_no_damage_of_the_file_is_a_traceback_or_a_dead_end(
    tmp_path: Path, damage: Callable[[bytearray, random.Random], bytearray]
) -> None:
    whole = fill(tmp_path / "whole").read_bytes()
    for seed in range(25):
        state_dir = tmp_path / str(seed)
        state_dir.mkdir()
        damaged = damage(bytearray(whole), random.Random(seed))
        (state_dir / "ledger.sqlite").write_bytes(damaged)
        # Refusals are P2vErrors with a remedy; a second run may only be refused for the version.
        assert is_explained(refusal(look, state_dir), state_dir)
        assert is_explained(refusal(run, state_dir), state_dir)
        again = refusal(run, state_dir)
        assert again is None or "version" in again.message, seed


def look(state_dir: Path) -> None:
    ledger = Ledger.look(state_dir)
    if ledger is not None:
        with ledger:
            ledger.overview()


def run(state_dir: Path) -> None:
    with Ledger.open(state_dir, lambda _: None) as ledger:
        exercise(ledger)


def refusal(way: Callable[[Path], None], state_dir: Path) -> P2vError | None:
    """What ``way`` refused with; anything but a P2vError goes up."""
    try:
        way(state_dir)
    except P2vError as error:
        return error
    return None


def is_explained(refused: P2vError | None, state_dir: Path) -> bool:
    has_file = (state_dir / "ledger.sqlite").exists()
    return has_file and (refused is None or refused.hint is not None)
