"""A disk after its passes, at a receiver without connections, and an honest sender's deltas."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from p2v_receiver import codec
from p2v_receiver.cutover import Cutover
from p2v_receiver.store import opened
from p2v_receiver.wire import Json, Run, Runs
from tests.contract.bench import Bench

CHUNK = 4096
Chunks = Mapping[int, bytes]  # offset → content


def runs_of(chunks: Chunks) -> tuple[Runs, bytes]:
    runs = [Run(start, len(data), codec.entries_digest(data)) for start, data in chunks.items()]
    return Runs(codec.RAW, runs), b"".join(chunks.values())


class CutBench(Bench):
    """A replica of a whole pass; ``take`` opens it as CUTOVER does."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fill("x")
        self.replica = self.image.read_bytes()

    @contextlib.contextmanager
    def take(self, *, may_run: bool = True) -> Iterator[Cutover]:
        request = self.request(cutover=True, create=False, block_size=None)
        with opened(str(self.root), request) as (place, target):
            cutover = Cutover(place, target, may_run=may_run)
            try:
                yield cutover
            finally:
                cutover.finish()

    def base(self) -> Json:
        with self.record() as manifest:
            header = manifest.header()
        return {
            "action": "delta",
            "image": header["uuid"],
            "pass": header["pass_number"],
            "size": self.size,
            "chunk_size": CHUNK,
        }

    def send(self, cutover: Cutover, chunks: Chunks) -> None:
        tally = codec.Tally()
        cutover.act(self.base_of(cutover), b"")
        for start, data in chunks.items():
            runs, body = runs_of({start: data})
            for run in runs.runs:
                tally.add(run)
            cutover.runs(runs, memoryview(body))
        cutover.act({"action": "end", **tally.end_record()}, b"")

    def base_of(self, cutover: Cutover) -> Json:
        base = cutover._target.base(CHUNK)
        return {"action": "delta", **base.to_json()}

    def with_delta(self, chunks: Chunks) -> bytes:
        """What a guest sees of replica and delta."""
        content = bytearray(self.replica)
        for start, data in chunks.items():
            content[start : start + len(data)] = data
        return bytes(content)

    def is_replica(self) -> bool:
        return self.image.read_bytes() == self.replica
