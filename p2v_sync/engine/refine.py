"""Page refinement: of a changed block only its changed pages go out.

What the target holds of a block is asked for while the scan goes on; the source's bytes are kept
until the answer is there, so that what is compared, digested and sent is one reading (P4).
"""

import mmap
import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress, count
from operator import ne
from typing import NamedTuple

from p2v_receiver import codec, wire
from p2v_receiver.wire import PAGE_DIGEST_SIZE, SEGMENT_BLOCKS, FrameType, Layout
from p2v_sync.engine.compression import Compressor
from p2v_sync.engine.scan import Finished, Report, tell_finished
from p2v_sync.engine.session import BulkStream, Question
from p2v_sync.events import Counters

_ASK_BUFFERS = 8  # one question is about the changed blocks of so many requests
_MOST_DUE = 64  # segments may end while an answer is awaited, and each has its entries
_PATCH_SIZE = 1024 * 1024  # pages are collected up to here; those of one block may be more


class Kept(NamedTuple):
    """A changed block, its entry, its bytes as they were read, and whether the target has zeros."""

    block: int
    entry: bytes
    data: memoryview
    was_zero: bool


@dataclass
class Batch:
    """Blocks of one segment that are sent together, and the buffers that hold them."""

    blocks: list[Kept] = field(default_factory=list)
    buffers: list[memoryview] = field(default_factory=list)
    question: Question | None = None  # about those that are not zero at the target

    @property
    def is_ready(self) -> bool:
        return self.question is None or self.question.is_answered


@dataclass
class Pages:
    """What one PATCH is made of."""

    bits: int = 0
    entries: list[bytes] = field(default_factory=list)
    maps: list[bytes] = field(default_factory=list)
    pieces: list[memoryview] = field(default_factory=list)
    length: int = 0
    covered: int = 0  # bytes of the blocks as a whole


def changed_pages(ours: bytes, theirs: bytes) -> int:
    """Packed page digests of a block here and there → a map of the pages that differ."""
    layout = f"!{len(ours) // PAGE_DIGEST_SIZE}Q"
    differ = map(ne, struct.unpack(layout, ours), struct.unpack(layout, theirs))
    return sum(1 << index for index in compress(count(), differ))


class Refiner:
    """Keeps, asks, and sends.  One per scanner, used by its thread alone.

    At most ``most`` buffers are kept, two at least: that bounds memory, and how far the scan runs
    ahead of the answers.
    """

    def __init__(
        self,
        stream: BulkStream,
        layout: Layout,
        page_digests: codec.PageDigests,
        compressor: Compressor,
        report: Report,
        most: int,
    ) -> None:
        self._stream = stream
        self._layout = layout
        self._page_digests = page_digests
        self._compressor = compressor
        self._report = report
        self._unused = max(2, most)
        self._free: list[memoryview] = []
        self._batch = Batch()
        self._due: deque[Batch | Finished] = deque()
        self._counters = Counters()  # of the segment whose end comes next
        self._zero_digests: dict[int, bytes] = {}  # length of a block → digests of its pages

    @property
    def is_waiting(self) -> bool:
        """Whether something kept waits for its answer."""
        return bool(self._due)

    def keep(self, block: int, entries: list[bytes], data: memoryview, was_zero: bool) -> None:
        """These changed blocks wait; their buffer has to be handed over by ``swap`` then."""
        size = self._layout.block_size
        for index, entry in enumerate(entries):
            part = data[index * size : (index + 1) * size]
            self._batch.blocks.append(Kept(block + index, entry, part, was_zero))

    def swap(self, buffer: memoryview) -> memoryview:
        """Keep ``buffer`` until what is in it is sent; returns another one of its size."""
        self._batch.buffers.append(buffer)
        if len(self._batch.buffers) >= _ASK_BUFFERS:
            self._ask()
        if not self._free and self._unused:
            self._unused -= 1
            return memoryview(mmap.mmap(-1, len(buffer)))
        if not self._free:
            self._ask()
        while not self._free:
            self.settle_one()
        return self._free.pop()

    def end_segment(self, finished: Finished) -> None:
        """Say so once all that was kept of it is sent."""
        self._ask()
        self._due.append(finished)
        self.settle()
        while len(self._due) > _MOST_DUE:
            self.settle_one()

    def settle(self) -> None:
        """Send what has its answer."""
        while self._due:
            first = self._due[0]
            if isinstance(first, Batch) and not first.is_ready:
                return
            self.settle_one()

    def settle_one(self) -> None:
        """Send what is next, and wait for its answer before."""
        first = self._due.popleft()
        if isinstance(first, Batch):
            self._send_batch(first)
        else:
            counters = first.counters + self._counters
            self._counters = Counters()
            tell_finished(self._stream, self._report, first._replace(counters=counters))

    def _ask(self) -> None:
        batch = self._batch
        if not batch.blocks:
            return
        self._batch = Batch()
        asked = [kept.block for kept in batch.blocks if not kept.was_zero]
        if asked:
            batch.question = self._stream.ask_pages(_block_set(asked))
        self._due.append(batch)

    def _send_batch(self, batch: Batch) -> None:
        segment = batch.blocks[0].block // SEGMENT_BLOCKS
        pages = Pages()
        for kept, page_map in self._compared(batch):
            pieces = wire.page_pieces(page_map, len(kept.data))
            length = sum(length for _, length in pieces)
            if pages.bits and pages.length + length > _PATCH_SIZE:
                self._send(segment, pages)
                pages = Pages()
            pages.bits |= 1 << kept.block % SEGMENT_BLOCKS
            pages.entries.append(kept.entry)
            pages.maps.append(page_map.to_bytes(self._layout.page_map_size, "big"))
            pages.pieces += [kept.data[start : start + size] for start, size in pieces]
            pages.length += length
            pages.covered += len(kept.data)
            # Noted before it is sent: it may be refused soon.
            self._report.patched(kept.block, length)
        self._send(segment, pages)
        self._free += batch.buffers

    def _compared(self, batch: Batch) -> Iterator[tuple[Kept, int]]:
        """Each block with the map of its pages that differ."""
        answer, at = b"", 0
        if batch.question is not None:
            answer = self._stream.answer_to(batch.question)
            self._count(Counters(wire=batch.question.wire))
        for kept in batch.blocks:
            ours = self._page_digests(kept.data)
            if kept.was_zero:
                theirs = self._digests_of_zeros(len(kept.data))
            else:
                theirs = answer[at : at + len(ours)]
                at += len(ours)
            yield kept, changed_pages(ours, theirs)

    def _digests_of_zeros(self, length: int) -> bytes:
        if length not in self._zero_digests:
            self._zero_digests[length] = self._page_digests(memoryview(bytes(length)))
        return self._zero_digests[length]

    def _send(self, segment: int, pages: Pages) -> None:
        blocks = wire.BlockSet(segment, pages.bits)
        number, body = self._compressor.body(memoryview(bytearray().join(pages.pieces)))
        patch = wire.Patch(
            blocks, number, pages.length, b"".join(pages.entries), b"".join(pages.maps)
        )
        began = time.perf_counter()
        wire_bytes = self._stream.send(FrameType.PATCH, patch.pack(), body)
        self._compressor.sent(len(body), time.perf_counter() - began)
        counters = Counters(
            scanned=pages.covered,
            same=pages.covered - pages.length,
            sent=pages.length,
            wire=wire_bytes,
        )
        self._count(counters, blocks_sent=blocks.total)

    def _count(self, counters: Counters, *, blocks_sent: int = 0) -> None:
        self._counters += counters
        self._report.tally.add(counters, blocks_sent=blocks_sent)


def _block_set(blocks: list[int]) -> wire.BlockSet:
    bits = sum(1 << block % SEGMENT_BLOCKS for block in blocks)
    return wire.BlockSet(blocks[0] // SEGMENT_BLOCKS, bits)
