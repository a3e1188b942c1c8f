"""The SQLite file under the ledger: opening it, transactions, and what its errors mean.

Nothing here knows of jobs and disks.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import sqlite_utils
from sqlite_utils.db import NotFoundError

from p2v_sync.errors import P2vError, StateCorrupt, StateError
from p2v_sync.state.lock import waiting_lock
from p2v_sync.state.paths import ELSEWHERE, make_state_dir, unusable
from p2v_sync.state.schema import is_intact, migrate

BUSY_TIMEOUT_S = 30.0

_FALLS_BACK = (
    "the next p2v-sync sync sets a damaged ledger aside and uses the receiver's manifest in its "
    "place; nothing is lost"
)
_NO_SPACE = f"make room, or {ELSEWHERE}"
_IN_USE = "another program keeps it locked; end that and run the same command again"

# SQLite's primary result codes that are not about the contents of the file.
_NOT_DAMAGE = {
    sqlite3.SQLITE_FULL: _NO_SPACE,
    sqlite3.SQLITE_BUSY: _IN_USE,
    sqlite3.SQLITE_LOCKED: _IN_USE,
    sqlite3.SQLITE_READONLY: ELSEWHERE,
    sqlite3.SQLITE_CANTOPEN: ELSEWHERE,
    sqlite3.SQLITE_PERM: ELSEWHERE,
    sqlite3.SQLITE_AUTH: ELSEWHERE,
    sqlite3.SQLITE_IOERR: ELSEWHERE,
    sqlite3.SQLITE_PROTOCOL: ELSEWHERE,
    sqlite3.SQLITE_NOMEM: None,
}


def utc_now() -> str:
    """Now, as the ledger writes it: ``2026-01-31T12:00:00.000Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Database:
    """One connection to the file, shared by the threads of a run.

    ``reading`` and ``writing`` are transactions; one at a time, other processes may read
    meanwhile.  Both raise StateError where the file can't be used and StateCorrupt where what is
    in it makes no sense.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self._lock = threading.RLock()
        with explained(path):
            self._connection = _connect(path, create=create)
            self._tables = sqlite_utils.Database(self._connection, execute_plugins=False)

    def close(self) -> None:
        """Idempotent."""
        with self._lock, explained(self.path):
            self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite_utils.Database]:
        """All that is read inside is of one moment."""
        with self._transaction("BEGIN") as tables:
            yield tables

    @contextmanager
    def writing(self) -> Iterator[sqlite_utils.Database]:
        """All that is written inside is durable afterwards, or nothing of it ever happened."""
        # Not plain BEGIN: a transaction that reads first and then finds that somebody else wrote
        # fails at once, whatever the busy timeout.
        with self._transaction("BEGIN IMMEDIATE") as tables:
            yield tables

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite_utils.Database]:
        with self._lock, self._damage_noted(), explained(self.path):
            self._connection.execute(begin)
            try:
                yield self._tables
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    @contextmanager
    def _damage_noted(self) -> Iterator[None]:
        # Not all damage shows when the file is opened: without a mark the next run would fail
        # over the same row again.
        try:
            yield
        except StateCorrupt:
            with suppress(OSError):
                _mark(self.path).touch()
            raise

    def _roll_back(self) -> None:
        # The first error is the one to tell; SQLite rolls back by itself when it can't here.
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def prepare(self) -> None:
        """WAL with full durability, and the schema of today.  Raises StateError, StateCorrupt."""
        with self._lock, explained(self.path):
            self._tables.enable_wal()
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        migrate(self.path, self.reading, self.writing)

    def check(self) -> None:
        """Look through the whole file for damage.  Raises StateCorrupt."""
        if _mark(self.path).exists():
            raise damaged(self.path, "an earlier run could not use it")
        with self._lock, explained(self.path):
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != ("ok",):
            raise damaged(self.path, str(found and found[0]))

    def check_tables(self) -> None:
        """Are all tables there, as they were made?  After ``prepare``.  Raises StateCorrupt."""
        with self.reading() as tables:
            if not is_intact(tables):
                raise damaged(self.path, "its tables are not as they were made")


def open_checked(path: Path, notices: Callable[[str], None]) -> Database:
    """The database at ``path``, begun anew when there is none or a damaged one.

    A damaged file is renamed, never deleted (P9).  Raises StateError, StateCorrupt when it can't
    be renamed.
    """
    make_state_dir(path.parent)
    # Two runs that start together must not both move the file aside: the second would move the
    # fresh one.
    with waiting_lock(path.with_name(path.name + "-opening")):
        try:
            return _open_prepared(path)
        except StateCorrupt as damage:
            aside = move_aside(path)
            notices(
                f"{damage.message}; it was kept as {aside.name} and a new ledger begun: what the "
                "targets hold is taken from the receiver's manifest"
            )
        return _open_prepared(path)


def open_existing(path: Path) -> Database:
    """The database at ``path`` for a look, without reading all of it.

    A damaged one stays where it is.  Raises StateError, StateCorrupt.
    """
    with _closed_on_error(Database(path, create=False)) as opened:
        opened.prepare()
        opened.check_tables()
        return opened


def move_aside(path: Path) -> Path:
    """Rename a database and its -wal and -shm files; the new name.  Raises StateCorrupt."""
    aside = _free_name(path)
    try:
        # The database goes last: a crash in between must not leave a write-ahead log that a new
        # file would take for its own.
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{aside}{suffix}")
        _mark(path).unlink(missing_ok=True)
    except OSError as error:
        raise StateCorrupt(
            f"the ledger {path} is damaged and can't be moved aside: {error.strerror}",
            hint=ELSEWHERE,
        ) from error
    return aside


def _free_name(path: Path) -> Path:
    stem = f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    aside, tries = path.with_name(stem), 1
    while os.path.lexists(aside):
        tries += 1
        aside = path.with_name(f"{stem}-{tries}")
    return aside


def _open_prepared(path: Path) -> Database:
    _create_private(path)
    with _closed_on_error(Database(path, create=True)) as opened:
        opened.check()
        opened.prepare()
        opened.check_tables()
        return opened


@contextmanager
def _closed_on_error(database: Database) -> Iterator[Database]:
    try:
        yield database
    except BaseException:
        # The error that brought us here is the one to tell.
        with suppress(P2vError):
            database.close()
        raise


def _create_private(path: Path) -> None:
    # Only ever a new file: closing any descriptor of an open database drops its POSIX locks.
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise unusable(path.parent, error) from error


def _connect(path: Path, *, create: bool) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite says about the file into StateError or StateCorrupt."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # ours, not the file's
    except sqlite3.Error as error:
        raise _explanation(path, error) from error
    except NotFoundError as error:
        raise damaged(path, "a row is missing") from error
    except UnicodeDecodeError as error:  # SQLite quotes damaged text in its message
        raise damaged(path, "a text is not UTF-8") from error


def _explanation(path: Path, error: sqlite3.Error) -> StateError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code not in _NOT_DAMAGE:
        return damaged(path, str(error))
    return StateError(f"can't use the ledger {path}: {error}", hint=_NOT_DAMAGE[code])


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}-damaged")


def damaged(path: Path, what: str) -> StateCorrupt:
    """The error for a file whose contents make no sense."""
    return StateCorrupt(f"the ledger {path} is damaged: {what}", hint=_FALLS_BACK)
