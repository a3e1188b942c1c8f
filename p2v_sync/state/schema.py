"""What the ledger's tables are, and how a file of an older version becomes one of today.

Names are for people: ``sqlite3 ledger.sqlite 'select * from history'`` tells what happened.
Times are ISO-8601 UTC text, sizes and positions bytes, flags 0 or 1.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import sqlite_utils

from p2v_sync.errors import StateError
from p2v_sync.state.paths import ELSEWHERE

Migration = Callable[[sqlite_utils.Database], None]
Transaction = Callable[[], AbstractContextManager[sqlite_utils.Database]]


def _integer(name: str, rest: str = "NOT NULL") -> str:
    # STRICT tables would check types too, but need SQLite 3.37, which RHEL 9 does not have.  The
    # check is there for quick_check: a flipped bit must not bring text where a number belongs.
    return f"{name} INTEGER {rest} CHECK (typeof({name}) = 'integer' AND {name} >= 0)"


def _blob(name: str) -> str:
    return f"{name} BLOB NOT NULL CHECK (typeof({name}) = 'blob' AND length({name}) % 16 = 0)"


_COUNTERS = ",\n    ".join(
    _integer(name, "NOT NULL DEFAULT 0")
    for name in ("scanned", "zero", "same", "sent", "wire", "unreadable")
)

_VERSION_1 = (
    """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    target TEXT NOT NULL,  -- as typed
    created TEXT NOT NULL
)""",
    f"""
CREATE TABLE disks (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL REFERENCES jobs(id),
    name TEXT NOT NULL,
    path TEXT NOT NULL,
    {_integer("size")},
    identity TEXT,  -- JSON: what tells this disk from others (P10)
    set_read_only INTEGER NOT NULL DEFAULT 0,  -- by us, so it is ours to undo
    block_size INTEGER,
    digest TEXT,  -- name of the algorithm
    digest_seed TEXT,  -- hex
    image TEXT,  -- uuid the receiver gave it
    generation INTEGER,  -- of its manifest, as last heard of
    commit_id TEXT,
    entries_digest TEXT,  -- over all segments, where they describe that generation in full (P5)
    last_error TEXT,
    UNIQUE (job, name)
)""",
    f"""
CREATE TABLE passes (
    id INTEGER PRIMARY KEY,
    disk INTEGER NOT NULL REFERENCES disks(id),
    {_integer("number")},
    kind TEXT NOT NULL CHECK (kind IN ('initial', 'incremental', 'final', 'seed')),
    outcome TEXT NOT NULL DEFAULT 'unfinished'
        CHECK (outcome IN ('unfinished', 'complete', 'failed')),
    started TEXT NOT NULL,
    finished TEXT,
    {_integer("runs", "NOT NULL DEFAULT 1")},
    seconds REAL NOT NULL DEFAULT 0,  -- all runs together, up to the last checkpoint
    {_COUNTERS},
    wire_digest TEXT,
    doubt TEXT,  -- why a complete pass is no copy of the source at one moment
    last_error TEXT
)""",
    "CREATE INDEX passes_of_disk ON passes (disk)",
    f"""
CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY,
    pass INTEGER NOT NULL REFERENCES passes(id),
    at TEXT NOT NULL,
    generation INTEGER NOT NULL,
    commit_id TEXT NOT NULL,
    {_COUNTERS}
)""",
    "CREATE INDEX checkpoints_of_pass ON checkpoints (pass)",
    f"""
CREATE TABLE unreadable (
    disk INTEGER NOT NULL REFERENCES disks(id),
    {_integer("start")},
    {_integer("length")},
    first_seen TEXT NOT NULL,
    last_tried TEXT NOT NULL,
    PRIMARY KEY (disk, start)
)""",
    """
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    job INTEGER NOT NULL REFERENCES jobs(id),
    disk INTEGER REFERENCES disks(id),
    text TEXT NOT NULL,
    details TEXT NOT NULL DEFAULT '{}'  -- JSON
)""",
    "CREATE INDEX events_of_job ON events (job)",
    # The digest comes before the entries so that reading only digests leaves the pages alone
    # onto which the entries overflow.
    f"""
CREATE TABLE segments (
    disk INTEGER NOT NULL REFERENCES disks(id),
    {_integer("segment")},
    {_blob("digest")},
    {_blob("entries")},
    PRIMARY KEY (disk, segment)
) WITHOUT ROWID""",
    """
CREATE VIEW history AS
SELECT at, jobs.name AS job, disks.name AS disk, text, details
FROM (
    SELECT at, 1 AS step, job, disk, text, details FROM events
    UNION ALL
    SELECT started, 0, disks.job, disk, printf('pass %d (%s) started', number, kind), '{}'
    FROM passes JOIN disks ON disks.id = passes.disk
    UNION ALL
    SELECT finished, 2, disks.job, disk,
        printf('pass %d (%s) %s after %.1f s, %d bytes sent', number, kind, outcome, seconds, sent),
        '{}'
    FROM passes JOIN disks ON disks.id = passes.disk
    WHERE finished IS NOT NULL
) AS happened
JOIN jobs ON jobs.id = happened.job
LEFT JOIN disks ON disks.id = happened.disk
ORDER BY at, step""",
    """
CREATE VIEW progress AS
SELECT jobs.name AS job, disks.name AS disk, disks.size, number AS pass, kind, outcome,
    CASE WHEN disks.size THEN round(100.0 * scanned / disks.size, 1) ELSE 100 END AS percent,
    sent, passes.unreadable,
    (SELECT max(at) FROM checkpoints WHERE checkpoints.pass = passes.id) AS last_checkpoint,
    disks.last_error
FROM disks
JOIN jobs ON jobs.id = disks.job
LEFT JOIN passes ON passes.id = (SELECT max(id) FROM passes WHERE passes.disk = disks.id)
ORDER BY jobs.name, disks.name""",
)


def _create(tables: sqlite_utils.Database) -> None:
    for statement in _VERSION_1:
        tables.execute(statement)


def _note_deltas(tables: sqlite_utils.Database) -> None:
    # What became of the delta of the newest pass: sent, in-place, qcow2; NULL: there is none.
    # Or virt-v2v: it was converted by that.
    tables.execute("ALTER TABLE disks ADD COLUMN delta TEXT")


# The n-th brings a file of version n to version n + 1.  They are never edited, only added to.
MIGRATIONS: Sequence[Migration] = (_create, _note_deltas)


def migrate(
    path: Path,
    reading: Transaction,
    writing: Transaction,
    migrations: Sequence[Migration] = MIGRATIONS,
) -> None:
    """Bring the file to the newest version, in one transaction or not at all.

    Raises StateError for a file that is newer than this program, or when a migration fails.
    """
    with reading() as tables:
        if _version(path, tables, migrations) == len(migrations):
            return
    with writing() as tables:
        # Asked again: another process may have done it in between.
        version = _version(path, tables, migrations)
        for migration in migrations[version:]:
            _apply(path, tables, migration)
        tables.execute(f"PRAGMA user_version = {len(migrations)}")


def _version(path: Path, tables: sqlite_utils.Database, migrations: Sequence[Migration]) -> int:
    version = int(tables.execute("PRAGMA user_version").fetchone()[0])
    if not 0 <= version <= len(migrations):
        raise StateError(
            f"the ledger {path} (version {version}) was made by a newer p2v-sync",
            hint=f"use that one, or {ELSEWHERE}",
        )
    return version


def _apply(path: Path, tables: sqlite_utils.Database, migration: Migration) -> None:
    try:
        migration(tables)
    except sqlite3.OperationalError as error:
        # SQLITE_ERROR here means that the tables are not those we know; the file itself is whole.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        raise StateError(
            f"the ledger {path} can't be brought to this version: {error}", hint=ELSEWHERE
        ) from error


def is_intact(tables: sqlite_utils.Database) -> bool:
    """Whether a file of the newest version has all tables and views as they were made.

    What others added is left alone.
    """
    made = sqlite_utils.Database(memory=True, execute_plugins=False)
    try:
        for migration in MIGRATIONS:
            migration(made)
        return _objects(made) <= _objects(tables)
    finally:
        made.close()


def _objects(tables: sqlite_utils.Database) -> set[tuple[str, str, str]]:
    return set(tables.execute("SELECT type, name, sql FROM sqlite_master").fetchall())
