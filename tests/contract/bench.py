"""A receiver's session without connections: what its frames do to image and manifest."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2v_receiver import codec, wire
from p2v_receiver.manifest import Manifest
from p2v_receiver.place import Place
from p2v_receiver.session import Session
from p2v_receiver.store import Opened, Request, opened
from p2v_receiver.wire import Blocks, Data, Layout, Segments
from p2v_sync.engine.refine import changed_pages
from p2v_sync.units import KIB, MIB
from tests.contract.lab import block_of

BLOCK = 4 * KIB
SEGMENT = wire.SEGMENT_BLOCKS * BLOCK
SIZE = 2 * SEGMENT + 20 * BLOCK + 5  # three segments, the last one short, its last block too


class Worker:
    """One opened disk, and the frames of an honest sender."""

    def __init__(self, place: Place, target: Opened) -> None:
        self.place = place
        self.target = target
        self.reasons = target.reasons
        self.session = Session(place, target)
        self.layout = self.session.layout
        header = target.manifest.header()
        self.digest = codec.digest_function(header["digest"], header["seed"])
        self.sent = self.zeroed = 0

    def begin(self, kind: str = "initial") -> None:
        self.session.begin({"kind": kind, "source": {}})

    def content(self, name: object, first: int, total: int = 1) -> bytes:
        """Blocks that no other name has, as long as the disk lets them be."""
        start, end = self.layout.extent(first, total)
        size = self.layout.block_size
        return b"".join(block_of((name, first + at), size) for at in range(total))[: end - start]

    def message(self, data: bytes, first: int) -> Data:
        view = memoryview(data)
        entries = codec.entries_of(view, self.layout.block_size, self.digest)
        return Data(first, codec.RAW, len(data), b"".join(entries))

    def send(self, data: bytes, first: int) -> None:
        message = self.message(data, first)
        self.session.data(message, memoryview(data))
        self.sent += len(message.entries) // wire.ENTRY_SIZE

    def patch(self, block: int, data: bytes, *, entry: bytes = b"", whole: bool = False) -> int:
        """Send what differs of a block from what the receiver says; returns what it refuses."""
        layout, view = self.layout, memoryview(bytearray(data))
        blocks = wire.BlockSet(block // 256, 1 << block % 256)
        header = self.target.manifest.header()
        ours = codec.page_digests_function(header["digest"], header["seed"])(view)
        page_map = changed_pages(ours, bytes(len(ours)) if whole else self.session.pages(blocks))
        pieces = wire.page_pieces(page_map, len(data))
        body = b"".join(data[start : start + length] for start, length in pieces)
        entry = entry or self.message(data, block).entries
        maps = page_map.to_bytes(layout.page_map_size, "big")
        refused = self.session.patch(
            wire.Patch(blocks, codec.RAW, len(body), entry, maps), memoryview(body)
        )
        self.sent += 1
        return refused

    def write(self, name: object, first: int, total: int = 1) -> None:
        self.send(self.content(name, first, total), first)

    def zero(self, first: int, total: int = 1) -> None:
        self.session.zeros(Blocks(first, total))
        self.zeroed += total

    def fetch(self, first: int = 0, total: int | None = None) -> dict[int, bytes]:
        """Segment → entries, the zeros too."""
        found: dict[int, bytes] = {}

        def answer(segments: Segments, entries: bytes) -> None:
            for number in range(segments.first, segments.first + segments.total):
                found[number] = entries or self.layout.zero_entries(number)

        count = self.layout.segments - first if total is None else total
        self.session.fetch(Segments(first, count), answer)
        return found

    def complete(self, first: int, *entries: bytes) -> None:
        digests = b"".join(map(codec.entries_digest, entries))
        self.session.segments(Segments(first, len(entries), codec.entries_digest(digests)))

    def end(self, **changes: Any) -> wire.Json:
        """END as the counts and the manifest have it."""
        self.session.checkpoint(quiet=True)
        message = {
            "digest": self.target.manifest.state_digest().hex(),
            "blocks_sent": self.sent,
            "blocks_zeroed": self.zeroed,
            "quiesced": True,
            "unreadable": [],
        }
        answer = self.session.end({**message, **changes})
        self.sent = self.zeroed = 0
        return answer


class Bench:
    """One disk of one job below ``root``.  ``work`` without ``finish`` is a receiver's kill -9."""

    def __init__(self, root: Path, size: int = SIZE, block_size: int = BLOCK) -> None:
        self.root = root
        self.size = size
        self.block_size = block_size
        self.place = Place(str(root), "job", "disk")
        self.image = Path(self.place.image)
        self.manifest = Path(self.place.manifest)
        self.layout = Layout(size, block_size)

    def request(self, **changes: Any) -> Request:
        request = Request(
            job="job",
            disk="disk",
            size=self.size,
            block_size=self.block_size,
            digest=None,
            digests=tuple(codec.digest_names()),
            run="run",
            source_file={},
            create=True,
            take_back=True,
        )
        return request._replace(**changes)

    @contextlib.contextmanager
    def work(self, *, finish: bool = False, **changes: Any) -> Iterator[Worker]:
        with opened(str(self.root), self.request(**changes)) as (place, target):
            worker = Worker(place, target)
            yield worker
            if finish:
                worker.session.finish()

    def fill(self, name: object) -> None:
        """A whole pass: every block gets a content of its own."""
        with self.work(finish=True) as worker:
            worker.begin()
            for first in range(0, self.layout.blocks, 200):
                worker.write(name, first, min(200, self.layout.blocks - first))
            worker.fetch()
            worker.end()

    @contextlib.contextmanager
    def record(self) -> Iterator[Manifest]:
        """The manifest as it is on the disk."""
        with contextlib.closing(Manifest(str(self.manifest))) as manifest:
            yield manifest

    def certain(self) -> set[int]:
        """The segments of which every block is known; P2: and right, else this fails."""
        content = memoryview(self.image.read_bytes())
        sure = set()
        with self.record() as manifest:
            header, layout = manifest.header(), manifest.layout()
            digest = codec.digest_function(header["digest"], header["seed"])
            for number in range(layout.segments):
                recorded = manifest.segment(number, layout)
                if recorded.uncertain:
                    continue
                start, end = layout.segment_extent(number)
                there = codec.entries_of(content[start:end], layout.block_size, digest)
                said = cut(recorded.entries)
                for index, (is_so, is_said) in enumerate(zip(there, said, strict=True)):
                    where = f"block {index} of segment {number} is not what is recorded"
                    assert is_said in (is_so, wire.UNKNOWN), where
                if wire.UNKNOWN not in said:
                    sure.add(number)
        return sure


def cut(entries: bytes) -> list[bytes]:
    """Packed entries, one by one."""
    return [entries[at : at + wire.ENTRY_SIZE] for at in range(0, len(entries), wire.ENTRY_SIZE)]


assert SEGMENT == MIB
