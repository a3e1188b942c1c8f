"""Several disks at once, put together as ``p2v-sync sync`` does it, with real files."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from p2v_receiver.manifest import Manifest
from p2v_sync import jobs
from p2v_sync.config import SyncConfig
from p2v_sync.errors import DeviceError, P2vError, SourceReadError, TargetRefused
from p2v_sync.events import DiskFailed, Event, PassFinished
from p2v_sync.records import TargetState
from p2v_sync.state.ledger import Ledger
from p2v_sync.units import KIB
from tests.contract.faults import SECTOR
from tests.contract.lab import BLOCK, patterned, ram_directory


@pytest.fixture
def place() -> Iterator[Path]:
    with ram_directory() as path:
        yield path


class Job:
    """Sources ``a``, ``b``, ``c`` and a local target."""

    def __init__(self, place: Path) -> None:
        self.sources = [place / f"{name}.img" for name in "abc"]
        for seed, path in enumerate(self.sources):
            path.write_bytes(patterned(2, seed=seed))
        self.target = place / "target"
        self.config = SyncConfig(
            sources=tuple(self.sources),
            target=str(self.target),
            state_dir=place / "state",
            job="job",
            block_size=BLOCK,
            verify="none",
            retry_for_s=0.0,
        )
        self.events: list[Event] = []

    def sync(self) -> None:
        self.events.clear()
        jobs.sync(self.config, self.events.append, None)

    def image(self, source: Path) -> Path:
        return self.target / "job" / source.name

    def is_complete(self, source: Path) -> bool:
        """Replica, manifest and ledger: all of them say so."""
        with closing(Manifest(str(self.image(source).with_suffix(".manifest")))) as manifest:
            header = manifest.header()
            is_recorded = header["pass_complete"] and manifest.is_certain(manifest.layout())
        with Ledger.open(self.config.state_dir, lambda _: None) as ledger:
            known = ledger.find_job("job").find_disk(source.stem).target_state()
        state = TargetState(header["uuid"], header["generation"], header["commit_id"])
        return (
            self.image(source).read_bytes() == source.read_bytes()
            and bool(is_recorded)
            and known == state
        )

    def failed(self) -> list[str]:
        return [event.disk for event in self.events if isinstance(event, DiskFailed)]

    def finished(self) -> dict[str, int]:
        """Disk → bytes sent."""
        return {
            event.disk: event.counters.sent
            for event in self.events
            if isinstance(event, PassFinished)
        }


@pytest.fixture
def job(place: Path) -> Job:
    return Job(place)


def bad_sector(monkeypatch: pytest.MonkeyPatch, path: Path, at: int) -> None:
    """Reads of a sector of a file fail as those of a dying disk do."""
    real, inode = os.preadv, path.stat().st_ino

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        end = offset + len(buffers[0])
        if os.fstat(fd).st_ino == inode and offset < at + SECTOR and end > at:
            if offset >= at:
                raise OSError(errno.EIO, "bad sector")
            end = at
        return real(fd, [buffers[0][: end - offset]], offset)

    monkeypatch.setattr("os.preadv", preadv)


def test_all_of_them(job: Job) -> None:
    job.sync()
    assert all(job.is_complete(source) for source in job.sources)
    job.sync()
    assert job.finished() == {"a": 0, "b": 0, "c": 0}


@pytest.mark.parametrize("bad", [0, 1])
def test_a_read_error_of_one_leaves_the_others_complete(
    job: Job, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    job.config = replace(job.config, on_read_error="fail")
    bad_sector(monkeypatch, job.sources[bad], 300 * KIB)
    with pytest.raises(SourceReadError):
        job.sync()
    others = [source for index, source in enumerate(job.sources) if index != bad]
    assert all(job.is_complete(source) for source in others)
    assert job.failed() == [job.sources[bad].stem]
    monkeypatch.undo()
    job.sync()
    assert all(job.is_complete(source) for source in job.sources)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_source_that_is_none_leaves_the_others_complete(job: Job, bad: int) -> None:
    path = job.sources[bad]
    path.unlink()
    path.mkdir()
    with pytest.raises(DeviceError, match="directory"):
        job.sync()
    assert all(job.is_complete(each) for each in job.sources if each is not path)


@pytest.mark.parametrize("bad", [0, 1])
def test_an_unchanged_disk_does_not_end_the_run_of_the_others(job: Job, bad: int) -> None:
    """A rival returns early there and loses the disks after it."""
    job.sync()
    changed = [source for index, source in enumerate(job.sources) if index != bad]
    for source in changed:
        with source.open("r+b") as file:
            file.write(b"changed")
    job.sync()
    assert all(job.is_complete(source) for source in job.sources)
    assert {name for name, sent in job.finished().items() if sent} == {
        source.stem for source in changed
    }


@pytest.mark.parametrize("bad", [0, 1])
def test_a_target_that_can_not_be_opened_leaves_the_others_complete(job: Job, bad: int) -> None:
    path = job.image(job.sources[bad])
    path.mkdir(parents=True)
    with pytest.raises(TargetRefused):
        job.sync()
    assert all(job.is_complete(each) for each in job.sources if each is not job.sources[bad])


def test_one_unchanged_one_failing_one_new(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = job.sources
    everything = job.config
    job.config = replace(everything, sources=(first, second))
    job.sync()
    bad_sector(monkeypatch, second, 300 * KIB)
    job.config = replace(everything, on_read_error="fail")
    with pytest.raises(P2vError):
        job.sync()
    assert (job.is_complete(first), job.is_complete(third)) == (True, True)
    assert job.image(second).read_bytes() == second.read_bytes()


def test_p12_bad_sectors_have_an_exit_code_and_are_retried(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_sector(monkeypatch, job.sources[1], 300 * KIB + 3 * SECTOR)
    with pytest.raises(SourceReadError, match="could not be read and are zeros") as caught:
        job.sync()
    assert caught.value.exit_code == 13
    assert job.is_complete(job.sources[0])
    assert job.is_complete(job.sources[2])
    replica = bytearray(job.sources[1].read_bytes())
    start = 300 * KIB + 3 * SECTOR
    replica[start : start + SECTOR] = bytes(SECTOR)
    assert job.image(job.sources[1]).read_bytes() == replica
    monkeypatch.undo()
    job.sync()
    assert job.finished() == {"a": 0, "b": BLOCK, "c": 0}
    assert all(job.is_complete(source) for source in job.sources)
