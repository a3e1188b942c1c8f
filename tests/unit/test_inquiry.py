"""What a receiver says of a job before a run, and what is put there after it."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from p2v_receiver.wire import Layout
from p2v_sync import jobs
from p2v_sync.config import Connection, SyncConfig
from p2v_sync.cutover import IN_PLACE, JobCutover
from p2v_sync.device.source import DiskSource
from p2v_sync.engine.delta import Status
from p2v_sync.engine.session import Target
from p2v_sync.errors import PeerLost, TargetLocked, TargetRefused, TargetTaken
from p2v_sync.events import Event
from p2v_sync.extent import Extent
from p2v_sync.inquiry import Inquiry, Replica, replica_of
from p2v_sync.records import TargetState
from p2v_sync.units import MIB
from tests.contract.lab import BLOCK, block_of, patterned, ram_directory

SEGMENT = 64 * MIB


class Machine:
    """One machine with one disk, sda; both have the same ``target`` and the same job name."""

    def __init__(self, place: Path, name: str, content: bytes) -> None:
        (place / name).mkdir()
        self.disk = place / name / "sda"
        self.disk.write_bytes(content)
        self.target = place / "target"
        self.state = place / name / "state"

    def sync(self) -> None:
        config = SyncConfig(
            sources=(self.disk,),
            target=str(self.target),
            state_dir=self.state,
            job="box",
            block_size=BLOCK,
            verify="none",
            retry_for_s=0.0,
        )
        jobs.sync(config, ignore, None)

    def asks(self) -> Inquiry:
        return Inquiry("box", {"sda": self.disk}, str(self.target), Connection(), None)

    @property
    def job(self) -> Path:
        return self.target / "box"


def ignore(event: Event) -> None:
    del event


@pytest.fixture
def machine() -> Iterator[Machine]:
    with ram_directory() as place:
        yield Machine(place, "first", patterned(4))


def twin_of(machine: Machine) -> Machine:
    """The same model with the same serial number, and another disk of the same size in it."""
    return Machine(machine.target.parent, "second", Random(2).randbytes(4 * MIB))


def content(directory: Path) -> dict[str, str]:
    return {
        each.name: hashlib.sha256(each.read_bytes()).hexdigest()
        for each in directory.iterdir()
        if each.suffix != ".lock"
    }


def test_where_nothing_is(machine: Machine) -> None:
    assert machine.asks().replicas() == []
    assert machine.asks().put("run.log", b"x") is False
    assert not machine.target.exists()


def test_a_complete_pass_with_its_date(machine: Machine) -> None:
    machine.sync()
    machine.sync()
    (replica,) = machine.asks().replicas()
    assert (replica.pass_number, replica.is_complete) == (2, True)
    assert replica.since == int((machine.job / "sda.manifest").stat().st_mtime)
    before = content(machine.job)
    machine.asks().replicas()
    assert content(machine.job) == before


def test_a_pass_that_was_cut_off_and_how_far_it_came(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine.disk.open("r+b") as file:
        file.truncate(8 * SEGMENT)
        for segment in range(8):
            file.seek(segment * SEGMENT)
            file.write(block_of(segment))
    read_into = DiskSource.read_into

    def read_until_the_power_goes(
        source: DiskSource, buffer: memoryview, start: int
    ) -> Sequence[Extent]:
        if start >= 4 * SEGMENT:
            raise PeerLost("gone")
        return read_into(source, buffer, start)

    with monkeypatch.context() as patch:
        patch.setattr(DiskSource, "read_into", read_until_the_power_goes)
        with pytest.raises(PeerLost):
            machine.sync()
    (replica,) = machine.asks().replicas()
    assert (replica.pass_number, replica.is_complete) == (1, False)
    assert replica.share is not None
    assert 0 < replica.share <= 0.5


def test_p8_what_is_cut_over_stays_so(machine: Machine) -> None:
    machine.sync()
    with JobCutover("box", machine.state, Connection(), ignore, None) as job:
        job.send_delta("sda", [(0, block_of("new"))], BLOCK)
        job.apply(IN_PLACE)
    (replica,) = machine.asks().replicas()
    assert str(replica).endswith("cut over")
    assert (machine.job / "sda.img").read_bytes()[:BLOCK] == block_of("new")


def test_p10_two_machines_with_one_name(machine: Machine) -> None:
    machine.sync()
    with JobCutover("box", machine.state, Connection(), ignore, None) as job:
        job.send_delta("sda", [(0, block_of("new"))], BLOCK)
        job.apply(IN_PLACE)
    before = content(machine.job)
    twin = twin_of(machine)
    for refused in (twin.asks().replicas, lambda: twin.asks().put("run.log", b"x")):
        with pytest.raises(TargetTaken, match="another machine's") as caught:
            refused()
        assert caught.value.hint == "give this machine's job another name"
        assert "\n" not in str(caught.value)
    assert content(machine.job) == before


def test_p10_a_disk_of_another_size(machine: Machine) -> None:
    machine.sync()
    twin = twin_of(machine)
    with twin.disk.open("r+b") as file:
        file.truncate(5 * MIB)
    with pytest.raises(TargetTaken, match="copy of a disk of") as caught:
        twin.asks().replicas()
    assert caught.value.hint == "give this machine's job another name"


def test_a_job_that_is_being_worked_on(machine: Machine) -> None:
    machine.sync()
    with (
        JobCutover("box", machine.state, Connection(), ignore, None) as job,
        job._session("sda"),
        pytest.raises(TargetLocked, match="held by another run"),
    ):
        machine.asks().replicas()


def test_a_log_is_put_beside_the_images(machine: Machine) -> None:
    machine.sync()
    assert machine.asks().put("run.log", b"line\n") is True
    assert (machine.job / "run.log").read_bytes() == b"line\n"
    with pytest.raises(TargetRefused):
        machine.asks().put("run.exe", b"x")


# What is said of it.


def opened(number: int, *, is_complete: bool, reasons: tuple[str, ...] = ()) -> Target:
    return Target(
        session="s",
        token="t",
        window=1 << 26,
        state=TargetState("image", 1, "commit"),
        layout=Layout(100 * SEGMENT, 256 * 1024),
        digest="xxh3-128",
        seed=1,
        created=False,
        reasons=reasons,
        notes=(),
        pass_number=number,
        pass_complete=is_complete,
        quiesced=True,
        unreadable=(),
        source=None,
    )


def said(**fields: int | str) -> Status:
    plain = {"phase": "", "refusal": "", "unreadable": 0, "programs": [], "files": []}
    return Status.from_json({**plain, "delta": None, "directory": "/d", **fields})


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        (opened(0, is_complete=True), said(), "sda: nothing copied yet"),
        (
            opened(1, is_complete=False),
            said(reached=38, since=1),
            "sda: pass 1, unfinished at 38 %",
        ),
        # Of an older receiver, a later pass, an image that was changed: nobody knows how far.
        (opened(1, is_complete=False), said(), "sda: pass 1, unfinished"),
        (opened(2, is_complete=False), said(reached=38, since=1), "sda: pass 2, unfinished"),
        (
            opened(1, is_complete=False, reasons=("changed",)),
            said(reached=38),
            "sda: pass 1, unfinished",
        ),
        (
            opened(3, is_complete=True),
            said(reached=38, since=1795132800, phase="applied"),
            "sda: pass 3, complete, of 2026-11-20, cut over",
        ),
        (
            opened(3, is_complete=True),
            said(phase="applying"),
            "sda: pass 3, complete, half cut over",
        ),
    ],
)
def test_in_one_line(target: Target, status: Status, text: str) -> None:
    assert str(replica_of("sda", target, status)) == text


def test_a_replica_says_what_it_knows() -> None:
    assert str(Replica("sdb", 1, is_complete=True)) == "sdb: pass 1, complete"
