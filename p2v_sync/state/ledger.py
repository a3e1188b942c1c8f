"""The sender's ledger: one SQLite file for all jobs of this machine.

It is a cache of what the targets hold; the receiver's manifest is the authority.  So a damaged
ledger is set aside and done without, and costs time, never data.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import sqlite_utils

from p2v_sync.errors import JobNotFound, StateError, WrongPhase
from p2v_sync.records import UNUSED
from p2v_sync.state.database import Database, open_checked, open_existing, utc_now
from p2v_sync.state.disk import DiskLedger, counters_of, insert_event
from p2v_sync.state.lock import is_locked
from p2v_sync.state.overview import DiskOverview, JobOverview, PassOverview
from p2v_sync.state.paths import unusable

FILE_NAME = "ledger.sqlite"

_COMPLETE_CONSIDERED = 20  # passes the projection looks at


class Ledger:
    """All jobs known here.  Thread-safe; other processes may read meanwhile.

    Every method, and those of the jobs and disks it hands out, raise StateError where the file
    can't be used and StateCorrupt where it is damaged.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, state_dir: Path, notices: Callable[[str], None]) -> Self:
        """The ledger in ``state_dir``, both made when missing.

        A damaged file is renamed (P9), a new one begun and ``notices`` told.  Raises StateError,
        StateCorrupt when the damaged file can't be renamed.
        """
        return cls(open_checked(state_dir / FILE_NAME, notices))

    @classmethod
    def look(cls, state_dir: Path) -> Self | None:
        """The ledger in ``state_dir`` for reading beside a run; None when there is none.

        A damaged file is left where it is.  Raises StateError, StateCorrupt.
        """
        path = state_dir / FILE_NAME
        try:
            path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unusable(state_dir, error) from error
        return cls(open_existing(path))

    def close(self) -> None:
        """Idempotent."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def job(self, name: str, target: str) -> "JobLedger":
        """The job ``name``, begun when it is new; ``target`` is noted as typed."""
        with self._database.writing() as tables:
            row = _job_row(tables, name)
            if row is None:
                new = {"name": name, "target": target, "created": utc_now()}
                tables.table("jobs", pk="id").insert(new)
            elif row["target"] != target:
                tables.table("jobs").update(row["id"], {"target": target})
                change = {"from": row["target"], "to": target}
                insert_event(tables, row["id"], None, "the target is another one now", change)
        return self.find_job(name)

    def find_job(self, name: str) -> "JobLedger":
        """The job ``name``.  Raises JobNotFound."""
        with self._database.reading() as tables:
            row = _job_row(tables, name)
            if row is None:
                raise job_not_found(name, _job_names(tables))
        return JobLedger(self._database, row)

    def overview(self, job: str | None = None) -> list[JobOverview]:
        """Where all jobs, or the one named, stand; by name.  Raises JobNotFound."""
        with self._database.reading() as tables:
            names = _job_names(tables)
            if job is not None and job not in names:
                raise job_not_found(job, names)
            rows = [_job_row(tables, name) for name in names if job in (None, name)]
            return [self._job_overview(tables, row) for row in rows if row is not None]

    def _job_overview(self, tables: sqlite_utils.Database, job: dict[str, Any]) -> JobOverview:
        is_running = is_locked(self._database.path.parent, job["name"])
        disks = tables.table("disks").rows_where("job = ?", [job["id"]], order_by="name")
        return JobOverview(
            job["name"],
            job["target"],
            is_running,
            tuple(_disk_overview(tables, disk, is_running=is_running) for disk in list(disks)),
        )

    def require_quiesced(self, job: str) -> None:
        """Raises WrongPhase unless every disk of the job may be cut over (P11), JobNotFound."""
        disks = self.overview(job)[0].disks
        if not disks:
            raise WrongPhase(f"job {job} can't be cut over: it has no disks yet")
        refusals = [
            f"{disk.name}: {disk.cutover_refusal}" for disk in disks if disk.cutover_refusal
        ]
        if refusals:
            raise WrongPhase(
                f"job {job} can't be cut over: {'; '.join(refusals)}",
                hint="boot the machine from the live CD and run sync again",
            )


@dataclass(frozen=True)
class DiskPlace:
    """A disk the job knows: its name in the job, its path and size (bytes) when last opened."""

    name: str
    path: str
    size: int


class JobLedger:
    """One job."""

    def __init__(self, database: Database, row: dict[str, Any]) -> None:
        self._database = database
        self._job: int = row["id"]
        self.name: str = row["name"]
        self.target: str = row["target"]
        self.created: str = row["created"]

    def disk(self, name: str, *, path: str, size: int) -> DiskLedger:
        """The ledger of one disk, begun when it is new; ``path`` and ``size`` are noted."""
        place = {"path": path, "size": size}
        with self._database.writing() as tables:
            row = self._disk_row(tables, name)
            if row is None:
                tables.table("disks", pk="id").insert({"job": self._job, "name": name, **place})
            else:
                tables.table("disks").update(row["id"], place)
        return self.find_disk(name)

    def find_disk(self, name: str) -> DiskLedger:
        """The ledger of a disk the job has.  Raises StateError."""
        with self._database.reading() as tables:
            row = self._disk_row(tables, name)
        if row is None:
            raise StateError(f"job {self.name} has no disk {name}")
        return DiskLedger(self._database, self._job, row["id"])

    def _disk_row(self, tables: sqlite_utils.Database, name: str) -> dict[str, Any] | None:
        rows = tables.table("disks").rows_where("job = ? AND name = ?", [self._job, name])
        return next(iter(list(rows)), None)

    def disks(self) -> list[DiskPlace]:
        """The disks of the job, by name."""
        with self._database.reading() as tables:
            rows = list(tables.table("disks").rows_where("job = ?", [self._job], order_by="name"))
        return [DiskPlace(row["name"], row["path"], row["size"]) for row in rows]

    def event(self, text: str, **details: Any) -> None:
        """Append to the job's history; ``details`` must be JSON."""
        with self._database.writing() as tables:
            insert_event(tables, self._job, None, text, details)


def job_not_found(name: str, known: list[str]) -> JobNotFound:
    """The error for a job that is not among those ``known``."""
    hint = f"known are: {', '.join(known)}" if known else "no job was begun here yet"
    return JobNotFound(f"there is no job {name}", hint=hint)


def _job_names(tables: sqlite_utils.Database) -> list[str]:
    return [name for (name,) in tables.execute("SELECT name FROM jobs ORDER BY name").fetchall()]


def _job_row(tables: sqlite_utils.Database, name: str) -> dict[str, Any] | None:
    return next(iter(list(tables.table("jobs").rows_where("name = ?", [name]))), None)


def _disk_overview(
    tables: sqlite_utils.Database, disk: dict[str, Any], *, is_running: bool
) -> DiskOverview:
    newest = _passes(tables, "disk = ?", disk, 1)
    parts, unreadable = tables.execute(_UNREADABLE, [disk["id"]]).fetchone()
    return DiskOverview(
        name=disk["name"],
        path=disk["path"],
        size=disk["size"],
        newest=newest[0] if newest else None,
        complete=_passes(tables, "disk = ? AND outcome = 'complete'", disk, _COMPLETE_CONSIDERED),
        unreadable_parts=parts,
        unreadable=unreadable,
        last_checkpoint=tables.execute(_LAST_CHECKPOINT, [disk["id"]]).fetchone()[0],
        last_error=disk["last_error"],
        is_running=is_running,
        used_only=_is_used_only(disk["identity"]),
        delta=disk["delta"],
    )


def _is_used_only(identity: str | None) -> bool:
    """Whether the record of the source says that something was left out."""
    try:
        recorded = json.loads(identity or "{}")
    except ValueError:
        return False
    return isinstance(recorded, dict) and recorded.get(UNUSED) is not None


def _passes(
    tables: sqlite_utils.Database, where: str, disk: dict[str, Any], limit: int
) -> tuple[PassOverview, ...]:
    rows = tables.table("passes").rows_where(where, [disk["id"]], order_by="id DESC", limit=limit)
    return tuple(
        PassOverview(
            row["number"],
            row["kind"],
            row["outcome"],
            row["started"],
            row["finished"],
            row["seconds"],
            counters_of(row),
            row["doubt"],
        )
        for row in list(rows)
    )


_UNREADABLE = "SELECT count(*), coalesce(sum(length), 0) FROM unreadable WHERE disk = ?"

_LAST_CHECKPOINT = """
SELECT max(at) FROM checkpoints WHERE pass IN (SELECT id FROM passes WHERE disk = ?)
"""
