"""One disk being worked on: what the frames of its connections do to image and manifest.

Several connections call in at the same time, each from its own thread.  The order that keeps the
promises: P3 intent (``mark_uncertain``) → write → P2 flush → manifest commit → acknowledgement.
"""

import contextlib
import functools
import os
import threading
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple, Union

from . import codec
from .apply import Target
from .place import Place
from .store import Opened
from .target import TargetError, aligned_buffer
from .wire import (
    ENTRY_SIZE,
    MAX_FETCH,
    SEGMENT_BLOCKS,
    UNKNOWN,
    ZERO,
    Blocks,
    BlockSet,
    Data,
    ErrorCode,
    Json,
    Layout,
    Patch,
    ProtocolError,
    Segments,
    Verify,
    get,
    get_int,
    get_pairs,
    pack_json,
    page_pieces,
)

Pieces = List[Tuple[int, int]]  # (offset in a block, length)

_INTENT_SEGMENTS = 8  # marked by one commit: a flush per segment would slow an initial pass down
_READ_SIZE = 1024 * 1024
_MAX_IDENTITY = 16 * 1024  # of a source, in JSON
_MAX_UNREADABLE = 1 << 16


class Committed(NamedTuple):
    """What a checkpoint made durable."""

    generation: int
    commit: str
    ranges: List[Tuple[int, int]]  # (first, count) of the segments that are complete in it


def runs(numbers: Iterable[int]) -> List[Tuple[int, int]]:
    """Integers → ``(first, count)`` runs: 1 2 3 7 → (1, 3) (7, 1)."""
    found: List[Tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found


class Session:
    """Raises TargetError and ProtocolError from everything.

    After a failed write or flush the session is *poisoned*: nothing more is committed, and what
    was written since the last checkpoint stays uncertain.
    """

    def __init__(self, place: Place, target: Opened) -> None:
        header = target.manifest.header()
        self._place = place
        self._image = target.image
        self._manifest = target.manifest
        self.layout: Layout = target.manifest.layout()
        self._seed: int = header["seed"]
        self._digest = codec.digest_function(header["digest"], self._seed)
        self._page_digests = codec.page_digests_function(header["digest"], self._seed)
        self._strong = codec.strong_digest(self._seed)
        self._zero_entries = ZERO * SEGMENT_BLOCKS
        self._zero_segment = codec.entries_digest(self._zero_entries)
        # Guards what follows, and makes marking and committing exclude each other.
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        # Of segments that differ from the manifest; bytes until one is written to, so that many
        # that are all zero share one object.
        self._entries: Dict[int, Union[bytes, bytearray]] = {}
        self._marked: Set[int] = set()  # durably uncertain, so free to be written to
        self._complete: Set[int] = set()  # since the last commit
        self._writes: Dict[int, int] = {}  # segment → how often it was written to
        self._refused: Set[int] = set()  # segments of which the sender will tell once more
        self._unreadable: List[Tuple[int, int]] = []
        self._dirty = False
        self._poison: Optional[BaseException] = None  # the first failure
        self._began = False
        self._quiesced = True
        self._blocks_written = 0
        self._blocks_zeroed = 0
        self._buffers = threading.local()

    # Beginning

    def begin(self, message: Json) -> None:
        """BEGIN: a pass begins or goes on."""
        kind = get(message, "kind", str)
        if kind not in ("initial", "incremental", "final", "seed"):
            raise ProtocolError("there is no pass of kind {!r}".format(kind[:40]))
        source = get(message, "source", dict)
        if len(pack_json(source)) > _MAX_IDENTITY:
            raise ProtocolError("the source's identity is too long")  # it goes into each OPENED
        # P8: what lies above the replica would no longer fit.
        Target(self._place, self._image, self._manifest, True).part_from_qcow2()
        self._quiesced = kind != "seed"  # P11
        self._manifest.begin_pass(kind, source)
        self._began = True

    def fetch(self, wanted: Segments, answer: Callable[[Segments, bytes], None]) -> None:
        """FETCH: what the target holds, from the manifest or, if uncertain, from the image."""
        if wanted.total > MAX_FETCH:
            raise ProtocolError("{} segments are fetched at once".format(wanted.total))
        self._check_segments(wanted)
        zero_from = wanted.first
        for number in range(wanted.first, wanted.first + wanted.total):
            with self._lock:
                known = self._known(number)
            entries = known or self._redigest(number)
            if entries != self.layout.zero_entries(number):
                if zero_from < number:
                    answer(Segments(zero_from, number - zero_from), b"")
                answer(Segments(number, 1), entries)
                zero_from = number + 1
        if zero_from < wanted.first + wanted.total:
            answer(Segments(zero_from, wanted.first + wanted.total - zero_from), b"")

    def _known(self, number: int) -> Optional[bytes]:
        """What is known of a segment; None: it is uncertain.  The lock is held."""
        if number in self._entries:
            return bytes(self._entries[number])
        recorded = self._manifest.segment(number, self.layout)
        return None if recorded.uncertain else recorded.entries

    def _redigest(self, number: int) -> bytes:
        start, end = self.layout.segment_extent(number)
        entries = self._entries_on_disk(start, end, self._digest)
        if entries == self._zero_entries:
            entries = self._zero_entries
        with self._lock:
            # Whoever wrote to it in the meantime knows better.
            known = self._known(number)
            if known is not None:
                return known
            # What was read may still be only in the page cache: it counts as written, and is
            # recorded by the next checkpoint, after its flush.
            self._entries[number] = entries
            self._marked.add(number)
            self._dirty = True
        return entries

    # Bulk

    def data(self, message: Data, body: memoryview) -> None:
        """DATA: check what came before a byte of it is written (P4)."""
        try:
            raw = codec.decompress(message.codec, body, message.raw_length)
        except codec.CodecError as error:
            raise TargetError(ErrorCode.INTEGRITY, str(error)) from error
        blocks = len(message.entries) // ENTRY_SIZE
        start = self._check_blocks(message.first, blocks, len(raw))
        if b"".join(codec.entries_of(raw, self.layout.block_size, self._digest)) != message.entries:
            raise TargetError(
                ErrorCode.INTEGRITY,
                "blocks {}+{} arrived damaged: their digests differ".format(message.first, blocks),
                "run the same command again; if it happens again, check both machines' memory",
            )
        self._change(message.first, message.entries, lambda: self._image.write(raw, start))
        with self._lock:
            self._blocks_written += blocks

    def zeros(self, message: Blocks) -> None:
        """ZEROS: make blocks zero (P6)."""
        first, end = message.first, message.first + message.total
        self._check_blocks(first, message.total, None)
        while first < end:
            total = min(end - first, SEGMENT_BLOCKS - first % SEGMENT_BLOCKS)
            start, stop = self.layout.extent(first, total)
            make_zero = functools.partial(self._image.make_zero, start, stop - start)
            self._change(first, ZERO * total, make_zero)
            first += total
        with self._lock:
            self._blocks_zeroed += message.total

    # Pages

    def pages(self, wanted: BlockSet) -> bytes:
        """ASK_PAGES: the digests of the pages of these blocks, as they are on the image now."""
        self._check_set(wanted)
        return b"".join([self._page_digests(self._read(block)) for block in wanted.blocks])

    def patch(self, message: Patch, body: memoryview) -> int:
        """PATCH: complete the blocks that are there, and check each before it is written (P4).

        Returns the bit set of those that can't be completed so: nothing of them is written, and
        they are UNKNOWN until they come whole.
        """
        try:
            raw = codec.decompress(message.codec, body, message.raw_length)
        except codec.CodecError as error:
            raise TargetError(ErrorCode.INTEGRITY, str(error)) from error
        known = self._entries_of(message.blocks)
        refused = at = total = 0
        for block, entry, pieces in self._check_patch(message):
            length = sum(length for _, length in pieces)
            if not self._complete_block(block, entry, pieces, raw[at : at + length], known):
                refused |= 1 << block % SEGMENT_BLOCKS
            at += length
            total += 1
        with self._lock:
            self._blocks_written += total
            if refused:
                self._refused.add(message.blocks.segment)
        return refused

    def _check_set(self, blocks: BlockSet) -> None:
        if blocks.segment >= self.layout.segments or (
            blocks.bits >> self.layout.blocks_in(blocks.segment)
        ):
            raise ProtocolError("blocks of segment {} are not on this disk".format(blocks.segment))

    def _check_patch(self, message: Patch) -> List[Tuple[int, bytes, Pieces]]:
        """What to write where; all of it must be right before any of it is written."""
        self._check_set(message.blocks)
        if len(message.page_maps) != self.layout.page_map_size * message.blocks.total:
            raise ProtocolError("a PATCH has page maps for blocks of another size")
        parts = [
            (block, entry, page_pieces(page_map, self._length(block)))
            for block, entry, page_map in message.parts()
        ]
        length = sum(length for _, _, pieces in parts for _, length in pieces)
        if length != message.raw_length:
            raise ProtocolError("{} bytes came for {} of pages".format(message.raw_length, length))
        return parts

    def _length(self, block: int) -> int:
        start, end = self.layout.extent(block, 1)
        return end - start

    def _complete_block(
        self, block: int, entry: bytes, pieces: Pieces, pages: memoryview, known: bytes
    ) -> bool:
        """False: what is there and what came do not make the block."""
        content = pages
        if len(pages) < self._length(block):
            index = block % SEGMENT_BLOCKS * ENTRY_SIZE
            # P2: after a failed flush the cache may show of an UNKNOWN block what no disk holds.
            if known[index : index + ENTRY_SIZE] == UNKNOWN:
                return self._refuse(block)
            content = self._read(block)
            at = 0
            for offset, length in pieces:
                content[offset : offset + length] = pages[at : at + length]
                at += length
        if codec.entries_of(content, self.layout.block_size, self._digest) != [entry]:
            return self._refuse(block)
        start, _ = self.layout.extent(block, 1)

        def write() -> None:
            for offset, length in pieces:
                self._image.write(content[offset : offset + length], start + offset)

        self._change(block, entry, write)
        return True

    def _refuse(self, block: int) -> bool:
        self._change(block, UNKNOWN, lambda: None)
        return False

    def _read(self, block: int) -> memoryview:
        """A block as it is, in this thread's buffer: valid until the next one."""
        start, end = self.layout.extent(block, 1)
        view = self._buffer()[: end - start]
        self._image.read_into(view, start)
        return view

    def _entries_on_disk(self, start: int, end: int, digest: codec.Digest) -> bytes:
        return self._image.entries(start, end, self.layout.block_size, digest, self._buffer())

    def _buffer(self) -> memoryview:
        """This thread's: to touch fresh memory takes longer than to read and digest a block."""
        if not hasattr(self._buffers, "view"):
            self._buffers.view = aligned_buffer(max(_READ_SIZE, self.layout.block_size))
        view: memoryview = self._buffers.view
        return view

    def _entries_of(self, blocks: BlockSet) -> bytes:
        """What is known of the blocks of a set's segment."""
        self._check_set(blocks)
        with self._lock:
            return self._known(blocks.segment) or UNKNOWN * SEGMENT_BLOCKS

    # What all of these come down to

    def _check_blocks(self, first: int, total: int, length: Optional[int]) -> int:
        """Blocks must be on the disk and have the length they say; returns where they start."""
        if not total or first + total > self.layout.blocks:
            raise ProtocolError("blocks {}+{} are not on this disk".format(first, total))
        start, end = self.layout.extent(first, total)
        if length is not None and length != end - start:
            raise ProtocolError("{} bytes came for blocks {}+{}".format(length, first, total))
        return start

    def _change(self, first: int, entries: bytes, write: Callable[[], None]) -> None:
        """Write blocks; until that is done nothing is known of them."""
        if not self._began:
            raise ProtocolError("blocks came before a pass was begun")
        total = len(entries) // ENTRY_SIZE
        self._record(first, UNKNOWN * total)
        with self._poisoning():
            write()
        self._record(first, entries)

    @contextlib.contextmanager
    def _poisoning(self) -> Iterator[None]:
        """Around what writes to image or manifest: after a failure nothing is recorded any more."""
        self._refuse_if_poisoned()
        try:
            yield
        except BaseException as error:
            self._poison = self._poison or error
            raise

    def _record(self, first: int, entries: bytes) -> None:
        """Note entries of blocks that may cross into the next segments."""
        at = 0
        with self._lock:
            while at < len(entries):
                number, index = divmod(first + at // ENTRY_SIZE, SEGMENT_BLOCKS)
                count = min(len(entries) - at, (SEGMENT_BLOCKS - index) * ENTRY_SIZE)
                known = self._writable(number)
                known[index * ENTRY_SIZE : index * ENTRY_SIZE + count] = entries[at : at + count]
                self._writes[number] = self._writes.get(number, 0) + 1
                self._complete.discard(number)
                at += count
            self._dirty = True

    def _writable(self, number: int) -> bytearray:
        """The entries of a segment that is durably marked uncertain (P3).  The lock is held."""
        if number not in self._marked:
            last = min(number + _INTENT_SEGMENTS, self.layout.segments)
            ahead = [number] + [each for each in range(number + 1, last) if self._load(each)]
            self._load(number, even_uncertain=True)
            with self._poisoning():
                self._manifest.mark_uncertain(ahead)
            self._marked.update(ahead)
        known = self._entries[number]
        if not isinstance(known, bytearray):
            known = self._entries[number] = bytearray(known)
        return known

    def _load(self, number: int, even_uncertain: bool = False) -> bool:
        """Take over what the manifest says of a segment; of an uncertain one that is nothing."""
        if number not in self._entries:
            recorded = self._manifest.segment(number, self.layout)
            if recorded.uncertain and not even_uncertain:
                return False
            nothing = UNKNOWN * self.layout.blocks_in(number)
            self._entries[number] = nothing if recorded.uncertain else recorded.entries
        return True

    def segments(self, message: Segments) -> None:
        """SEGMENTS: all of them is sent; both sides must hold the same entries (P7)."""
        self._check_segments(message)
        with self._lock:
            told = range(message.first, message.first + message.total)
            if codec.entries_digest(b"".join(self._digests(message))) != message.digest:
                if not self._refused.isdisjoint(told):
                    # The sender did not know yet: it sends what was refused, and tells again.
                    self._refused.difference_update(told)
                    return
                raise TargetError(
                    ErrorCode.INTEGRITY,
                    "segments {}+{} differ from what was sent".format(message.first, message.total),
                    "run the same command again: they are compared anew then",
                )
            self._complete.update(told)

    def _digests(self, message: Segments) -> List[bytes]:
        """The digest of each segment's entries, as they are now; empty when they are uncertain.

        The lock is held.
        """
        rest_is_zero = self._manifest.rest_is_zero()
        recorded = self._manifest.segment_digests(message.first, message.total)
        digests = []
        for number in range(message.first, message.first + message.total):
            if number in self._entries:
                digests.append(codec.entries_digest(bytes(self._entries[number])))
            elif number in recorded:
                digests.append(recorded[number])
            elif not rest_is_zero:
                digests.append(b"")
            elif self.layout.blocks_in(number) == SEGMENT_BLOCKS:
                digests.append(self._zero_segment)
            else:
                digests.append(codec.entries_digest(self.layout.zero_entries(number)))
        return digests

    def _check_segments(self, message: Segments) -> None:
        if message.first + message.total > self.layout.segments:
            raise ProtocolError(
                "segments {}+{} are not on this disk".format(message.first, message.total)
            )

    def unreadable(self, message: Json) -> None:
        """UNREADABLE: the sender filled these extents with zeros (P12)."""
        extents = self._get_extents(message, "extents")
        with self._lock:
            if len(self._unreadable) + len(extents) > _MAX_UNREADABLE:
                raise ProtocolError("there are too many unreadable extents between checkpoints")
            self._unreadable.extend(extents)
            self._dirty = True

    def _get_extents(self, message: Json, name: str) -> List[Tuple[int, int]]:
        extents = get_pairs(message, name)
        if any(start + length > self.layout.size for start, length in extents):
            raise ProtocolError("field {!r} has an extent that is not on this disk".format(name))
        return extents

    # Checkpoints

    def checkpoint(self, quiet: bool = False) -> Committed:
        """P2: flush, then record, then tell.  ``quiet``: nothing is being written any more."""
        with self._committing:
            self._refuse_if_poisoned()
            with self._lock:
                entries = {number: bytes(packed) for number, packed in self._entries.items()}
                complete = self._complete | set(entries) if quiet else set(self._complete)
                writes = dict(self._writes)
                # A segment may be complete without having been written to since it was marked.
                dirty = self._dirty or not complete.isdisjoint(entries)
                self._dirty = False
            if dirty:
                self._flush()
            done = self._commit(entries, complete, writes) if dirty else complete
            with self._lock:
                self._complete -= done
            header = self._manifest.header()
            return Committed(header["generation"], header["commit_id"], runs(done))

    def _flush(self) -> None:
        with self._poisoning():
            try:
                self._image.sync()
            except TargetError as error:
                self._poison = self._poison or error
                # The kernel may have dropped the pages and call them clean: only sending all again
                # that was written since the last checkpoint makes it true (P2), what came after
                # the snapshot as well.
                with self._lock:
                    self._manifest.lose(self._entries)
                raise
            if not self._image.is_in_place():
                raise TargetError(
                    ErrorCode.CHANGED,
                    "{} was removed, replaced or cut while it was written to".format(
                        self._image.path
                    ),
                    "run the same command again",
                )

    def _refuse_if_poisoned(self) -> None:
        """Raises the first failure again: the sender is to hear that one, whoever tells it."""
        if self._poison is not None:
            raise self._poison

    def _commit(
        self, entries: Dict[int, bytes], complete: Set[int], writes: Dict[int, int]
    ) -> Set[int]:
        """Record what was flushed.  Returns which segments are done: recorded, and written to no
        more; one that was written to after the snapshot stays uncertain."""
        identity = self._image.identity()
        with self._lock:
            self._refuse_if_poisoned()
            done = {each for each in complete if self._writes.get(each) == writes.get(each)}
            with self._poisoning():
                self._manifest.commit(entries, done, identity, self._unreadable)
            self._unreadable = []
            self._marked -= done
            for number in done.intersection(entries):
                del self._entries[number]
                self._writes.pop(number, None)
        return done

    def end(self, message: Json) -> Json:
        """END: the pass is over if both sides counted and digested the same (P7)."""
        if not self._began:
            raise ProtocolError("a pass ends that was not begun")
        committed = self.checkpoint(quiet=True)
        with self._lock:
            counted = (self._blocks_written, self._blocks_zeroed)
        said = (get_int(message, "blocks_sent"), get_int(message, "blocks_zeroed"))
        digest = get(message, "digest", str)
        if not self._manifest.is_certain(self.layout):
            raise TargetError(
                ErrorCode.INTEGRITY,
                "the sender says it is done, but not every segment is complete",
                "run the same command again",
            )
        if said != counted or digest != self._manifest.state_digest().hex():
            self._manifest.distrust()
            raise TargetError(
                ErrorCode.INTEGRITY,
                "the end record does not agree: sent and zeroed blocks {} here, {} there".format(
                    counted, said
                ),
                "run the same command again: the whole image is compared then",
            )
        extents = self._get_extents(message, "unreadable")
        quiesced = self._quiesced and get(message, "quiesced", bool)
        self._manifest.finish_pass(quiesced, extents, self._image.identity())
        self._write_map(extents)
        header = self._manifest.header()
        self._blocks_written = self._blocks_zeroed = 0
        return {
            "generation": header["generation"],
            "commit": header["commit_id"],
            "digest": digest,
            "complete": committed.ranges,
        }

    def _write_map(self, extents: List[Tuple[int, int]]) -> None:
        """What was unreadable, in ddrescue's mapfile format (ddrescue manual, "Mapfile structure").

        A convenience beside the image: the manifest has the list that counts.
        """
        if not extents and not os.path.lexists(self._place.map):
            return
        lines = ["# Mapfile. Written by p2v-sync", "0x00000000     +               1"]
        at = 0
        for start, length in [*extents, (self.layout.size, 0)]:
            if start > at:
                lines.append("0x{:08X}  0x{:08X}  +".format(at, start - at))
            if length:
                lines.append("0x{:08X}  0x{:08X}  -".format(start, length))
            at = start + length
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            with os.fdopen(os.open(self._place.map, flags, 0o600), "w") as file:
                file.write("\n".join(lines) + "\n")
        except OSError:
            return

    # Verification

    def verify(self, message: Verify, strong: bytes) -> List[Tuple[int, int]]:
        """VERIFY: ``(first, count)`` runs of blocks on the disk that are not what they should be.

        Against the sender's strong digests, or without them against the manifest.
        """
        self._check_blocks(message.first, message.total, None)
        if strong and len(strong) != message.total * ENTRY_SIZE:
            raise ProtocolError("VERIFY has digests for another number of blocks")
        start, end = self.layout.extent(message.first, message.total)
        self._image.forget_cache(start, end - start)
        digest = self._strong if strong else self._digest
        found = self._entries_on_disk(start, end, digest)
        wanted = strong or self._recorded(message)
        if found == wanted:
            return []
        wrong = runs(
            message.first + index
            for index in range(message.total)
            if found[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE]
            != wanted[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE]
        )
        with self._lock:
            self._forget(wrong)
        return wrong

    def _forget(self, runs_of_blocks: List[Tuple[int, int]]) -> None:
        """Nothing is known of these blocks any more, whatever was written.  The lock is held."""
        for first, total in runs_of_blocks:
            for block in range(first, first + total):
                number, index = divmod(block, SEGMENT_BLOCKS)
                if number in self._entries:
                    entries = bytearray(self._entries[number])
                    entries[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE] = UNKNOWN
                    self._entries[number] = entries
        with self._poisoning():
            self._manifest.forget_blocks(runs_of_blocks, self.layout)

    def _recorded(self, message: Verify) -> bytes:
        first, index = divmod(message.first, SEGMENT_BLOCKS)
        last = (message.first + message.total - 1) // SEGMENT_BLOCKS
        with self._lock:
            entries = b"".join(
                self._known(number) or UNKNOWN * self.layout.blocks_in(number)
                for number in range(first, last + 1)
            )
        return entries[index * ENTRY_SIZE : (index + message.total) * ENTRY_SIZE]

    # Ending

    def finish(self) -> None:
        """All connections are gone: record what they had written."""
        if self._poison is None:
            self.checkpoint(quiet=True)
