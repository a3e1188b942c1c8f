"""The manifest: the SQLite record beside an image of what is durably in it.  The authority.

Every change is one transaction that is durable when the call returns, and every change gives the
manifest a new *commit*, a random name: two records with the same commit have the same history.
The only SQL on this side.
"""

import contextlib
import json
import os
import sqlite3
import struct
import threading
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from . import codec
from .target import Identity, TargetError
from .wire import (
    ENTRY_SIZE,
    MAX_SIZE,
    SEGMENT_BLOCKS,
    UNKNOWN,
    ZERO,
    ErrorCode,
    Json,
    Layout,
    is_block_size,
)

SCHEMA_VERSION = 1
_SCHEMA = (
    """
CREATE TABLE image (
    uuid TEXT NOT NULL,             -- of this image: new when the file is made anew
    job TEXT NOT NULL,
    disk TEXT NOT NULL,
    size INTEGER NOT NULL,          -- bytes
    block_size INTEGER NOT NULL,    -- bytes
    digest TEXT NOT NULL,           -- algorithm of the blocks' digests
    seed INTEGER NOT NULL,          -- of that algorithm, as a signed 64-bit number
    rest_is_zero INTEGER NOT NULL,  -- segments without a row: 1 all zero, 0 uncertain
    generation INTEGER NOT NULL,    -- counts commits
    commit_id TEXT NOT NULL,
    file_identity TEXT,             -- JSON, of the image file at the last commit
    source_identity TEXT,           -- JSON, of the disk it is a copy of
    pass_number INTEGER NOT NULL,
    pass_kind TEXT NOT NULL,
    pass_complete INTEGER NOT NULL,
    quiesced INTEGER NOT NULL,      -- 1: the last complete pass was not a seed (P11)
    seal BLOB                       -- digest of this row and of the unreadable extents
)""",
    """
CREATE TABLE segments (
    segment INTEGER PRIMARY KEY,
    entries BLOB,                   -- 16 bytes a block, NULL: all zero
    digest BLOB NOT NULL,           -- of the entries; empty when they don't count
    uncertain INTEGER NOT NULL,     -- 1: written to since its last commit (P3), 2: lost (P2)
    seal BLOB NOT NULL              -- digest of number, uncertain and digest
)""",
    # What became of the delta (P8): no row, or one.  Digests of the end records of delta and undo.
    "CREATE TABLE cutover (phase TEXT NOT NULL, delta TEXT NOT NULL, undo TEXT NOT NULL)",
    "CREATE TABLE unreadable (start INTEGER PRIMARY KEY, length INTEGER NOT NULL)",
)
APPLYING, APPLIED, UNDOING = "applying", "applied", "undoing"  # the image is not the replica
QCOW2 = "qcow2"  # the image is the replica, with an overlay above it
_ROW = struct.Struct("!Q")
_CERTAIN, _UNCERTAIN = 0, 1
_LOST = 2  # what the cache returns may not be on the disk: only sending it again helps


_NONSENSE = (
    sqlite3.Error,
    struct.error,
    ArithmeticError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ManifestDamaged(Exception):
    """The file is there, but it is not a manifest that can be believed."""


class Segment(NamedTuple):
    """What is recorded of one segment."""

    entries: bytes
    uncertain: bool


class Cutover(NamedTuple):
    """What became of the delta; ``undo`` is "" for a QCOW2."""

    phase: str
    delta: str
    undo: str


def _as_target_error(error: sqlite3.Error, path: str) -> TargetError:
    text = "the manifest {}: {}".format(path, error)
    if "full" in str(error):
        return TargetError(
            ErrorCode.FULL, text, "make room on the host, then run the same command again"
        )
    if "readonly" in str(error) or "unable to open" in str(error):
        return TargetError(
            ErrorCode.READ_ONLY, text, "make it writable for the receiver's user, or use --sudo"
        )
    return TargetError(ErrorCode.IO, text, "run the same command again; the image is checked then")


class Manifest:
    """One open manifest.  Thread-safe.  Raises TargetError when the file can't be used."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise _as_target_error(error, path) from error
        try:
            self._db.execute("PRAGMA journal_mode = TRUNCATE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        except sqlite3.Error as error:
            self._db.close()
            raise _as_target_error(error, path) from error
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def create(cls, path: str, fields: Json) -> "Manifest":
        """A new manifest; ``fields`` are the columns of ``image`` that are known now."""
        manifest = cls(path)
        row = dict(
            {
                "generation": 0,
                "commit_id": "",
                "pass_number": 0,
                "pass_kind": "",
                "pass_complete": 1,
                "quiesced": 0,
            },
            **fields,
        )
        columns = ", ".join(row)
        marks = ", ".join("?" * len(row))
        try:
            with manifest._change():
                for statement in _SCHEMA:
                    manifest._db.execute(statement)
                manifest._db.execute("PRAGMA user_version = {}".format(SCHEMA_VERSION))
                manifest._db.execute(
                    "INSERT INTO image ({}) VALUES ({})".format(columns, marks), list(row.values())
                )
        except BaseException:
            manifest.close()
            raise
        return manifest

    @classmethod
    def open(cls, path: str) -> "Manifest":
        """An existing manifest, checked.  Raises ManifestDamaged."""
        try:
            manifest = cls(path)
        except TargetError as error:
            if _is_about_access(error):
                raise
            raise ManifestDamaged(error.message) from error
        except _NONSENSE as error:  # SQLite quotes what it found in messages that are no text
            raise ManifestDamaged("{}: {}".format(path, error)) from error
        try:
            manifest._check()
        except _NONSENSE as error:
            manifest.close()
            raise ManifestDamaged("{}: {}".format(path, error)) from error
        except TargetError as error:
            manifest.close()
            if error.code is ErrorCode.VERSION or _is_about_access(error):
                raise
            raise ManifestDamaged(error.message) from error
        return manifest

    def _check(self) -> None:
        """Everything but the entries, which ``segment`` checks one by one.

        SQLite finds what breaks its own structure; the seals find the rest.
        """
        answer = self._value("PRAGMA quick_check(1)")
        if answer != "ok":
            raise ValueError(answer)
        version = self._value("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise TargetError(
                ErrorCode.VERSION,
                "{} was written by a newer receiver".format(self.path),
                "use that version of p2v-sync, or move the file away to have the image compared",
            )
        if version < 1 or self._value("SELECT seal FROM image") != self._seal():
            raise ValueError("its head was altered")
        _check_header(self.header())
        cutover = self.cutover()
        if cutover and cutover.phase not in (APPLYING, APPLIED, UNDOING, QCOW2):
            raise ValueError("its phase is not one this program writes")
        # A name that was altered in the schema would be noticed only when it is used.
        self._rows("SELECT rest_is_zero, length, entries FROM image, unreadable, segments LIMIT 0")
        segments = self.layout().segments
        with self._lock:
            for number, digest, uncertain, seal in self._db.execute(
                "SELECT segment, digest, uncertain, seal FROM segments"
            ):
                right = 0 <= number < segments and seal == _row_seal(number, uncertain, digest)
                if not right:
                    raise ValueError("its record of segment {} was altered".format(number))

    def close(self) -> None:
        with self._lock:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA journal_mode = DELETE")  # takes the empty journal away
            self._db.close()

    # Reading

    def _value(self, query: str, *arguments: Any) -> Any:
        row = self._rows(query, *arguments)
        return row[0][0] if row else None

    def _rows(self, query: str, *arguments: Any) -> List[Any]:
        with self._lock:
            try:
                return self._db.execute(query, arguments).fetchall()
            except sqlite3.Error as error:
                raise _as_target_error(error, self.path) from error

    def header(self) -> Json:
        """The one row of ``image`` as a dict, with the JSON columns decoded."""
        with self._lock:
            try:
                cursor = self._db.execute("SELECT * FROM image")
                row = cursor.fetchone()
            except sqlite3.Error as error:
                raise _as_target_error(error, self.path) from error
        header = dict(zip([column[0] for column in cursor.description], row))
        for name in ("file_identity", "source_identity"):
            header[name] = json.loads(header[name]) if header[name] else None
        header["seed"] &= 0xFFFFFFFFFFFFFFFF
        return header

    def layout(self) -> Layout:
        return Layout(*self._rows("SELECT size, block_size FROM image")[0])

    def segment(self, number: int, layout: Layout) -> Segment:
        """What is recorded of a segment; entries that can't be right come as uncertain."""
        rows = self._rows(
            "SELECT CAST(entries AS BLOB), digest, uncertain FROM segments WHERE segment = ?",
            number,
        )
        if not rows:
            return Segment(layout.zero_entries(number), not self.rest_is_zero())
        entries, digest, uncertain = rows[0]
        if uncertain == _LOST:
            return Segment(UNKNOWN * layout.blocks_in(number), False)
        if entries is None:
            entries = layout.zero_entries(number)
        sound = (
            len(entries) == layout.blocks_in(number) * ENTRY_SIZE
            and codec.entries_digest(entries) == digest
        )
        return Segment(entries, bool(uncertain) or not sound)

    def rest_is_zero(self) -> bool:
        """True when segments without a row are all zero, False when nothing is known of them."""
        return bool(self._value("SELECT rest_is_zero FROM image"))

    def data_segments(self) -> List[int]:
        """The segments that are not all zero."""
        return [row[0] for row in self._rows("SELECT segment FROM segments WHERE entries NOTNULL")]

    def segment_digests(self, first: int, total: int) -> Dict[int, bytes]:
        """Digests of the entries of the segments that have a row, of ``total`` from ``first``.

        That of an uncertain one is empty.
        """
        return dict(
            self._rows(
                "SELECT segment, digest FROM segments WHERE segment BETWEEN ? AND ?",
                first,
                first + total - 1,
            )
        )

    def reached(self) -> int:
        """Segments up to the last one that is certain: how far a first pass has come."""
        return self._value("SELECT max(segment) + 1 FROM segments WHERE NOT uncertain") or 0

    def is_certain(self, layout: Layout) -> bool:
        """True when something is known of every block."""
        if self._value("SELECT count(*) FROM segments WHERE uncertain"):
            return False
        if self.rest_is_zero():
            return True
        return bool(self._value("SELECT count(*) FROM segments") == layout.segments)

    def state_digest(self) -> bytes:
        """The digest over (segment, digest) of all segments that are not all zero (P7)."""
        rows = self._rows(
            "SELECT segment, digest FROM segments WHERE entries NOTNULL ORDER BY segment"
        )
        return codec.entries_digest(b"".join(_ROW.pack(row[0]) + row[1] for row in rows))

    def unreadable(self) -> List[Tuple[int, int]]:
        return self._rows("SELECT start, length FROM unreadable ORDER BY start")

    def cutover(self) -> Optional[Cutover]:
        """What became of the delta; None: the image is the replica, and nothing is above it."""
        rows = self._rows("SELECT phase, delta, undo FROM cutover")
        return Cutover(*rows[0]) if rows else None

    # Changing

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """One durable transaction; a failed one leaves nothing behind."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute(
                    "UPDATE image SET generation = generation + 1, commit_id = ?",
                    [os.urandom(8).hex()],
                )
                self._db.execute("UPDATE image SET seal = ?", [self._seal()])
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise _as_target_error(error, self.path) from error
            except BaseException:
                self._roll_back()
                raise

    def _seal(self) -> bytes:
        """Of the head: what SQLite can't know to be damaged."""
        image = [row[:-1] for row in self._db.execute("SELECT * FROM image")]
        unreadable = self._db.execute("SELECT * FROM unreadable ORDER BY start").fetchall()
        cutover = self._db.execute("SELECT * FROM cutover").fetchall()
        return codec.entries_digest(json.dumps([image, unreadable, cutover]).encode())

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")

    def mark_uncertain(self, segments: Iterable[int]) -> None:
        """P3: before segments are overwritten, say that they will be.

        From then on nothing recorded of them counts until their next commit.
        """
        with self._change():
            self._db.executemany(
                _STORE, [_empty_row(number, self._doubt(number)) for number in segments]
            )

    def _doubt(self, number: int) -> int:
        """Within a change: what a segment becomes that is not certain.  Lost stays lost."""
        lost = self._value(
            "SELECT 1 FROM segments WHERE segment = ? AND uncertain = ?", number, _LOST
        )
        return _LOST if lost else _UNCERTAIN

    def _store(self, number: int, entries: bytes, uncertain: bool) -> None:
        """Within a change: replace the row of a segment."""
        doubt = self._doubt(number)
        if uncertain or (doubt == _LOST and not _is_known(entries)):
            self._db.execute(_STORE, _empty_row(number, doubt))
            return
        stored = None if entries == ZERO * (len(entries) // ENTRY_SIZE) else entries
        digest = codec.entries_digest(entries)
        seal = _row_seal(number, _CERTAIN, digest)
        self._db.execute(_STORE, (number, stored, digest, _CERTAIN, seal))

    def commit(
        self,
        entries: Dict[int, bytes],
        certain: Iterable[int],
        file_identity: Identity,
        unreadable: Sequence[Tuple[int, int]] = (),
    ) -> None:
        """P2: what ``entries`` say of their segments is durably in the image.

        Segments in ``certain`` are being written to no more; the others stay uncertain.
        """
        sure = set(certain)
        with self._change():
            for number, packed in entries.items():
                self._store(number, packed, uncertain=number not in sure)
            self._add_unreadable(unreadable)
            self._db.execute("UPDATE image SET file_identity = ?", [json.dumps(file_identity)])

    def _add_unreadable(self, extents: Sequence[Tuple[int, int]]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO unreadable VALUES (?, ?)", extents)

    def lose(self, segments: Iterable[int]) -> None:
        """P2: a flush failed; these segments and all uncertain ones have to be sent again.

        The kernel may have dropped what it could not write and still return it from its cache, so
        that digesting the image again proves nothing.
        """
        with self._change():
            recorded = dict(self._rows("SELECT segment, uncertain FROM segments"))
            lost = {number for number, uncertain in recorded.items() if uncertain}.union(segments)
            if not self.rest_is_zero():
                lost.update(set(range(self.layout().segments)).difference(recorded))
            self._add_lost(lost)

    def _add_lost(self, segments: Iterable[int]) -> None:
        self._db.executemany(_STORE, [_empty_row(number, _LOST) for number in segments])

    def forget_blocks(self, runs: Sequence[Tuple[int, int]], layout: Layout) -> None:
        """Nothing is known of ``(first block, count)`` runs any more: they are sent again."""
        with self._change():
            self._db.execute("UPDATE image SET quiesced = 0")
            for first, total in runs:
                for block in range(first, first + total):
                    number, index = divmod(block, SEGMENT_BLOCKS)
                    recorded = self.segment(number, layout)
                    entries = bytearray(recorded.entries)
                    entries[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE] = UNKNOWN
                    self._store(number, bytes(entries), recorded.uncertain)

    def distrust(self) -> None:
        """P5: the image may be anything; all of it has to be digested again."""
        with self._change():
            self._db.execute("DELETE FROM segments WHERE uncertain != ?", [_LOST])
            self._db.execute("UPDATE image SET rest_is_zero = 0")

    def reset(self, fields: Json) -> None:
        """Start the record over, for a new image."""
        with self._change():
            self._db.execute("DELETE FROM segments")
            self._db.execute("DELETE FROM cutover")
            self._set(fields)

    def set_cutover(self, cutover: Optional[Cutover], file_identity: Optional[Identity]) -> None:
        """P8: before the image is changed, and when that is durable.

        ``file_identity`` None: it will not be known again as the image of the last checkpoint, for
        somebody else may have written to it as well.
        """
        with self._change():
            self._db.execute("DELETE FROM cutover")
            if cutover is not None:
                self._db.execute("INSERT INTO cutover VALUES (?, ?, ?)", cutover)
            identity = None if file_identity is None else json.dumps(file_identity)
            self._db.execute("UPDATE image SET file_identity = ?", [identity])

    def recut(self, digest: str, block_size: int) -> None:
        """Start the record over, with other parameters: nothing is known of the image."""
        with self._change():
            before = self.layout()
            rows = self._rows("SELECT segment FROM segments WHERE uncertain = ?", _LOST)
            self._db.execute("DELETE FROM segments")
            self._set({"digest": digest, "block_size": block_size, "rest_is_zero": 0})
            segment_size = block_size * SEGMENT_BLOCKS
            for (number,) in rows:
                start, end = before.segment_extent(number)
                self._add_lost(range(start // segment_size, -(-end // segment_size)))

    def _set(self, fields: Json) -> None:
        for name, value in fields.items():
            self._db.execute("UPDATE image SET {} = ?".format(name), [value])

    def begin_pass(self, kind: str, source_identity: Json) -> None:
        """Go on with an incomplete pass, or begin the next one."""
        with self._change():
            self._db.execute(
                "UPDATE image SET pass_number = pass_number + pass_complete, pass_complete = 0,"
                " pass_kind = ?, quiesced = 0, source_identity = ?",
                [kind, json.dumps(source_identity)],
            )

    def finish_pass(
        self, quiesced: bool, unreadable: Sequence[Tuple[int, int]], file_identity: Identity
    ) -> None:
        """P7: both sides agreed on the end record."""
        with self._change():
            self._db.execute(
                "UPDATE image SET pass_complete = 1, quiesced = ?, file_identity = ?",
                [int(quiesced), json.dumps(file_identity)],
            )
            self._db.execute("DELETE FROM unreadable")
            self._add_unreadable(unreadable)


_STORE = "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?)"


def _row_seal(number: int, uncertain: int, digest: bytes) -> bytes:
    return codec.entries_digest(_ROW.pack(number) + _ROW.pack(uncertain) + digest)


def _empty_row(number: int, uncertain: int) -> Tuple[int, None, bytes, int, bytes]:
    return number, None, b"", uncertain, _row_seal(number, uncertain, b"")


def _is_known(entries: bytes) -> bool:
    """False when one of the packed entries is UNKNOWN."""
    starts = range(0, len(entries), ENTRY_SIZE)
    return all(entries[at : at + ENTRY_SIZE] != UNKNOWN for at in starts)


def _is_about_access(error: TargetError) -> bool:
    """True when the file could not be read or written just now, whatever is in it."""
    return isinstance(error.__cause__, sqlite3.OperationalError) and any(
        text in str(error.__cause__)
        for text in ("locked", "unable to open", "readonly", "disk I/O error", "full")
    )


def _check_header(header: Json) -> None:
    """Raises ValueError for values this receiver would not have written."""
    counts = ("size", "generation", "pass_number", "pass_complete", "quiesced")
    numbers = [header[name] for name in counts]
    texts = [header[name] for name in ("uuid", "job", "disk", "digest", "commit_id", "pass_kind")]
    sound = (
        all(isinstance(number, int) and 0 <= number <= MAX_SIZE for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and is_block_size(header["block_size"])
        and isinstance(header["source_identity"], (dict, type(None)))
    )
    if not sound:
        raise ValueError("its head is not one this program writes")


def seed_to_column(seed: int) -> int:
    """SQLite's integers are signed."""
    return seed - (1 << 64) if seed >> 63 else seed
