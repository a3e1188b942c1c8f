"""The ledger of one disk: what the engine records while it copies, and reads when it goes on."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlite_utils

from p2v_sync.errors import WrongPhase
from p2v_sync.events import Counters
from p2v_sync.extent import Extent
from p2v_sync.records import Checkpoint, DigestSettings, PassRecord, TargetState
from p2v_sync.state import segments, unreadable
from p2v_sync.state.database import Database, damaged, utc_now

CHECKPOINTS_KEPT = 1000  # of each pass, the newest

SEED = "seed"


@dataclass
class _OpenPass:
    row: int
    timed_until: float  # time.monotonic() up to which the row's seconds count


class DiskLedger:
    """One disk of one job; satisfies ``engine.ports.Ledger``.

    Thread-safe.  Every method raises StateError, or StateCorrupt when the file turns out to be
    damaged; a write that raises has changed nothing.
    """

    def __init__(self, database: Database, job: int, disk: int) -> None:
        self._database = database
        self._job = job
        self._disk = disk
        self._open: _OpenPass | None = None

    def target_state(self) -> TargetState | None:
        """What the stored entries describe in full; None from ``begin_pass`` to ``finish_pass``."""
        with self._database.reading() as tables:
            row = self._row(tables)
            if row["entries_digest"] is None:
                return None
            is_whole = segments.total_digest(tables, self._disk) == row["entries_digest"]
        if is_whole:
            return TargetState(row["image"], row["generation"], row["commit_id"])
        self.event("the ledger's digests are not as they were stored; the manifest's are used")
        return None

    def entries(self, segment: int) -> bytes | None:
        """Packed entries as last recorded; None: every block is zero.

        Entries that were damaged in the file come back as unknown: never believed, no dead end.
        """
        return self.entries_between(segment, 1).get(segment)

    def entries_between(self, first: int, total: int) -> dict[int, bytes]:
        """The entries of ``total`` segments from ``first``, without those that are all zero."""
        with self._database.reading() as tables:
            found, broken = segments.load_between(tables, self._disk, first, total)
        if broken:
            text = "the ledger's entries of some segments are damaged"
            self.event(text, first=broken[0], count=len(broken))
        return found

    def segment_digests(self) -> Iterator[tuple[int, bytes]]:
        """``(segment, digest of its entries)`` in order, without the segments that are all zero."""
        after = -1
        while batch := self._digests_after(after):
            yield from batch
            after = batch[-1][0]

    def _digests_after(self, segment: int) -> list[tuple[int, bytes]]:
        with self._database.reading() as tables:
            return segments.digests(tables, self._disk, segment)

    def begin_pass(self, number: int, kind: str) -> PassRecord:
        """Open pass ``number``, or go on with it; from here ``target_state`` is None.

        A pass is what its last run makes it: every run reads the whole source again.
        """
        with self._database.writing() as tables:
            row = self._unfinished_pass(tables, number)
            if row is None:
                record = PassRecord(number, kind, resumed=False)
                pass_row = self._insert_pass(tables, record)
            else:
                record = PassRecord(number, kind, resumed=True, counters=counters_of(row))
                pass_row = self._reopen_pass(tables, row, kind)
            self._update(tables, entries_digest=None, last_error=None, delta=None)
        self._open = _OpenPass(pass_row, time.monotonic())
        return record

    def _unfinished_pass(self, tables: sqlite_utils.Database, number: int) -> dict[str, Any] | None:
        # Only the newest counts: after the receiver lost its manifest numbers start again, and
        # an old pass of the same number is another pass.
        newest = next(
            tables.table("passes").rows_where(
                "disk = ?", [self._disk], order_by="id DESC", limit=1
            ),
            None,
        )
        if newest is None or newest["number"] != number or newest["outcome"] == "complete":
            return None
        return newest

    def _insert_pass(self, tables: sqlite_utils.Database, record: PassRecord) -> int:
        row = {
            "disk": self._disk,
            "number": record.number,
            "kind": record.kind,
            "started": utc_now(),
        }
        return int(tables.execute(_INSERT_PASS, row).lastrowid or 0)

    def _reopen_pass(self, tables: sqlite_utils.Database, row: dict[str, Any], kind: str) -> int:
        changes = {
            "kind": kind,
            "outcome": "unfinished",
            "finished": None,
            "last_error": None,
            "runs": row["runs"] + 1,
        }
        tables.table("passes").update(row["id"], changes)
        return int(row["id"])

    def record(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint in one transaction.  Raises WrongPhase outside a pass."""
        current = self._require_open()
        now, until = utc_now(), time.monotonic()
        with self._database.writing() as tables:
            self._forget_other_image(tables, checkpoint.state.image)
            segments.store(tables, self._disk, checkpoint.segments)
            unreadable.add(tables, self._disk, checkpoint.unreadable, now)
            self._insert_checkpoint(tables, current.row, checkpoint, now)
            self._count(tables, current, checkpoint.counters, until)
            self._update_state(tables, checkpoint.state, entries_digest=None)
        current.timed_until = until

    def _require_open(self) -> _OpenPass:
        if self._open is None:
            raise WrongPhase("no pass is open; a checkpoint belongs to one")
        return self._open

    def _forget_other_image(self, tables: sqlite_utils.Database, image: str) -> None:
        # Entries of another image say nothing about this one, and "no row" says zeros.
        if self._row(tables)["image"] not in (None, image):
            segments.forget(tables, self._disk)

    def _insert_checkpoint(
        self, tables: sqlite_utils.Database, pass_row: int, checkpoint: Checkpoint, now: str
    ) -> None:
        row = {
            "pass": pass_row,
            "at": now,
            "generation": checkpoint.state.generation,
            "commit_id": checkpoint.state.commit,
            **asdict(checkpoint.counters),
        }
        tables.table("checkpoints", pk="id").insert(row)
        tables.execute(_TRIM_CHECKPOINTS, {"pass": pass_row, "kept": CHECKPOINTS_KEPT})

    def _count(
        self,
        tables: sqlite_utils.Database,
        current: _OpenPass,
        counters: Counters,
        until: float,
    ) -> None:
        row = {"id": current.row, "elapsed": until - current.timed_until, **asdict(counters)}
        tables.execute(_COUNT, row)

    def finish_pass(self, state: TargetState, counters: Counters, *, wire_digest: str) -> None:
        """The end record was agreed on; the stored entries now describe ``state`` in full.

        Raises WrongPhase outside a pass.
        """
        current = self._require_open()
        now, until = utc_now(), time.monotonic()
        done = {"outcome": "complete", "finished": now, "wire_digest": wire_digest}
        with self._database.writing() as tables:
            self._forget_other_image(tables, state.image)
            self._count(tables, current, counters, until)
            tables.table("passes").update(current.row, {**done, "last_error": None})
            total = segments.total_digest(tables, self._disk)
            self._update_state(tables, state, entries_digest=total)
            self._update(tables, last_error=None)
        self._open = None

    def doubt(self, reason: str) -> None:
        """The newest pass left no true copy of one moment: no cutover before another one (P11)."""
        with self._database.writing() as tables:
            tables.execute(_DOUBT, {"disk": self._disk, "reason": reason})

    def failed(self, reason: str) -> None:
        """This run of the disk ended with an error; the pass stays resumable."""
        with self._database.writing() as tables:
            self._update(tables, last_error=reason)
            if self._open is not None:
                changes = {"outcome": "failed", "finished": utc_now(), "last_error": reason}
                tables.table("passes").update(self._open.row, changes)
        self._open = None

    def unreadable(self) -> Sequence[Extent]:
        """What could not be read, up to now; in order and joined."""
        with self._database.reading() as tables:
            return unreadable.stored(tables, self._disk)

    def set_unreadable(self, extents: Sequence[Extent]) -> None:
        """These were just tried and are all there are."""
        with self._database.writing() as tables:
            unreadable.replace(tables, self._disk, extents, utc_now())

    def event(self, text: str, **details: Any) -> None:
        """Append to the job's history; ``details`` must be JSON."""
        with self._database.writing() as tables:
            insert_event(tables, self._job, self._disk, text, details)

    def identity(self) -> dict[str, Any] | None:
        """What tells this disk from others, as last set; None before that (P10)."""
        with self._database.reading() as tables:
            text = self._row(tables)["identity"]
            return None if text is None else self._parse_identity(text)

    def _parse_identity(self, text: str) -> dict[str, Any]:
        try:
            identity = json.loads(text)
        except ValueError as error:
            raise damaged(self._database.path, "an identity is not JSON") from error
        if not isinstance(identity, dict):
            raise damaged(self._database.path, "an identity is not a JSON object")
        return identity

    def set_identity(self, identity: dict[str, Any]) -> None:
        with self._database.writing() as tables:
            self._update(tables, identity=json.dumps(identity, sort_keys=True))

    def digest_settings(self) -> DigestSettings | None:
        """How the entries were made; None before it is known."""
        with self._database.reading() as tables:
            row = self._row(tables)
        if row["digest"] is None:
            return None
        return DigestSettings(row["digest"], row["digest_seed"], row["block_size"])

    def set_digest_settings(self, settings: DigestSettings) -> None:
        """Under other settings than before the stored entries mean nothing and are dropped."""
        columns = {
            "digest": settings.digest,
            "digest_seed": settings.seed,
            "block_size": settings.block_size,
        }
        with self._database.writing() as tables:
            row = self._row(tables)
            if any(row[name] != value for name, value in columns.items()):
                segments.forget(tables, self._disk)
                self._update(tables, entries_digest=None, **columns)

    def was_set_read_only(self) -> bool:
        """True while a read-only flag on the source is ours to undo (P1)."""
        with self._database.reading() as tables:
            return bool(self._row(tables)["set_read_only"])

    def note_set_read_only(self, value: bool) -> None:
        with self._database.writing() as tables:
            self._update(tables, set_read_only=int(value))

    def note_delta(self, value: str | None) -> None:
        """What became of the replica: its delta is "sent", "in-place", "qcow2"; or "virt-v2v"."""
        with self._database.writing() as tables:
            self._update(tables, delta=value)

    def _row(self, tables: sqlite_utils.Database) -> dict[str, Any]:
        row: dict[str, Any] = tables.table("disks").get(self._disk)
        return row

    def _update(self, tables: sqlite_utils.Database, **columns: Any) -> None:
        tables.table("disks").update(self._disk, columns)

    def _update_state(
        self, tables: sqlite_utils.Database, state: TargetState, *, entries_digest: str | None
    ) -> None:
        self._update(
            tables,
            image=state.image,
            generation=state.generation,
            commit_id=state.commit,
            entries_digest=entries_digest,
        )


def counters_of(row: dict[str, Any]) -> Counters:
    """The counters in a row of passes or checkpoints."""
    return Counters(**{name: row[name] for name in _COUNTERS})


def insert_event(
    tables: sqlite_utils.Database, job: int, disk: int | None, text: str, details: dict[str, Any]
) -> None:
    row = {
        "at": utc_now(),
        "job": job,
        "disk": disk,
        "text": text,
        "details": json.dumps(details),
    }
    tables.table("events", pk="id").insert(row)


_COUNTERS = tuple(asdict(Counters()))

_INSERT_PASS = """
INSERT INTO passes (disk, number, kind, started) VALUES (:disk, :number, :kind, :started)
"""

_COUNT = f"""
UPDATE passes SET seconds = seconds + :elapsed,
    {", ".join(f"{name} = :{name}" for name in _COUNTERS)}
WHERE id = :id
"""

_DOUBT = """
UPDATE passes SET doubt = :reason WHERE id = (SELECT max(id) FROM passes WHERE disk = :disk)
"""

_TRIM_CHECKPOINTS = """
DELETE FROM checkpoints WHERE pass = :pass AND id <= (
    SELECT id FROM checkpoints WHERE pass = :pass ORDER BY id DESC LIMIT 1 OFFSET :kept
)
"""
