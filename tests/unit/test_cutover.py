"""Cutover and rollback of a job as the commands do it, with a receiver that is a process."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from p2v_receiver import wire
from p2v_receiver.wire import ErrorCode, Frame, FrameType
from p2v_sync import jobs
from p2v_sync.cli import cli
from p2v_sync.config import Connection, SyncConfig
from p2v_sync.cutover import IN_PLACE, QCOW2, JobCutover, choose_hypervisor
from p2v_sync.engine.delta import Status, _batches, _send
from p2v_sync.engine.ports import Channel
from p2v_sync.errors import (
    ConfigError,
    PeerLost,
    ProtocolError,
    TargetFull,
    TargetRefused,
    WrongPhase,
)
from p2v_sync.events import Event, Notice, PassFinished
from p2v_sync.state.ledger import Ledger
from p2v_sync.units import MIB
from tests.contract.lab import BLOCK, block_of, patterned, ram_directory

CHUNKS = [(0, block_of("new")), (BLOCK, bytes(BLOCK)), (MIB, block_of("far"))]


class Machine:
    """A disk that was synced to a directory."""

    def __init__(self, place: Path) -> None:
        self.source = place / "sda.img"
        self.source.write_bytes(patterned(2))
        self.state = place / "state"
        self.image = place / "target" / "web" / "sda.img"
        self.events: list[Event] = []
        self.sync()

    def sync(self, *, seed: bool = False) -> int:
        """Returns the bytes sent."""
        config = SyncConfig(
            sources=(self.source,),
            target=str(self.image.parents[1]),
            state_dir=self.state,
            job="web",
            block_size=BLOCK,
            seed=seed,
            verify="none",
            retry_for_s=0.0,
        )
        self.events.clear()
        jobs.sync(config, self.events.append, None)
        return sum(each.counters.sent for each in self.events if isinstance(each, PassFinished))

    def notices(self) -> str:
        return "\n".join(each.text for each in self.events if isinstance(each, Notice))

    def cutover(self) -> JobCutover:
        self.events.clear()
        return JobCutover("web", self.state, Connection(), self.events.append, None)

    def delta(self) -> str | None:
        with Ledger.open(self.state, print) as ledger:
            return ledger.overview("web")[0].disks[0].delta

    def expected(self) -> bytes:
        content = bytearray(self.source.read_bytes())
        for start, data in CHUNKS:
            content[start : start + len(data)] = data
        return bytes(content)

    def ask(self, *arguments: str) -> str:
        argv = [*arguments, "--state", str(self.state)]
        result = CliRunner().invoke(cli, argv, catch_exceptions=False)
        assert result.exit_code == 0
        return result.output


@pytest.fixture
def machine() -> Iterator[Machine]:
    with ram_directory() as place:
        yield Machine(place)


def test_p8_cut_over_taken_back_and_nothing_is_sent_again(machine: Machine) -> None:
    with machine.cutover() as job:
        kept = job.send_delta("sda", CHUNKS, BLOCK)
        assert (kept.runs, kept.length, kept.is_current) == (2, 3 * BLOCK, True)
        assert machine.delta() == "sent"
        job.apply(IN_PLACE)
        job.apply(IN_PLACE)
        assert machine.image.read_bytes() == machine.expected()
        assert machine.delta() == "in-place"
        with pytest.raises(WrongPhase, match="applied as in-place"):
            job.apply(QCOW2)
        job.roll_back()
        assert machine.image.read_bytes() == machine.source.read_bytes()
        job.apply(IN_PLACE)
    assert machine.sync() == 0
    assert "the delta was taken back" in machine.notices()
    assert "compared" not in machine.notices()
    assert machine.image.read_bytes() == machine.source.read_bytes()
    assert machine.delta() is None
    with machine.cutover() as job, pytest.raises(WrongPhase, match="earlier pass"):
        job.apply(IN_PLACE)


def test_the_commands(machine: Machine) -> None:
    with machine.cutover() as job:
        job.send_delta("sda", CHUNKS, BLOCK)
    assert "sent, not applied" in machine.ask("status", "web")
    assert "applied (qcow2)" in machine.ask("cutover", "web", "--apply", "qcow2")
    assert "applied as a qcow2" in machine.ask("status", "web")
    assert "kept as sda.qcow2.aside-" in machine.ask("rollback", "web")
    assert "the image is the replica" in machine.ask("rollback", "web")
    machine.ask("cutover", "web")
    assert machine.image.read_bytes() == machine.expected()
    machine.ask("rollback", "web")
    assert machine.image.read_bytes() == machine.source.read_bytes()


def test_without_a_delta_the_replica_is_used_as_it_is(machine: Machine) -> None:
    with machine.cutover() as job:
        job.apply(IN_PLACE)
    assert "used as it is" in machine.notices()


def test_an_empty_delta_is_one(machine: Machine) -> None:
    with machine.cutover() as job:
        assert job.send_delta("sda", [], BLOCK).runs == 0
        job.apply(IN_PLACE)
        job.roll_back()
    assert machine.sync() == 0


def test_p11_a_seed_is_not_cut_over(machine: Machine) -> None:
    machine.sync(seed=True)
    with machine.cutover() as job:
        for call in (
            lambda: job.apply(IN_PLACE),
            lambda: job.send_delta("sda", CHUNKS, BLOCK),
        ):
            with pytest.raises(WrongPhase, match="is a seed"):
                call()


def test_chunks_out_of_order_are_refused_and_the_former_delta_stays(machine: Machine) -> None:
    with machine.cutover() as job:
        before = job.send_delta("sda", CHUNKS, BLOCK)
        with pytest.raises(ProtocolError, match="not behind the one before"):
            job.send_delta("sda", CHUNKS[::-1], BLOCK)
        assert job.status("sda").delta == before


def test_the_reason_is_heard_while_more_is_sent(machine: Machine) -> None:
    far = ((at * MIB, bytes(MIB)) for at in range(64))
    with machine.cutover() as job, pytest.raises(ProtocolError, match="is not on this disk"):
        job.send_delta("sda", far, BLOCK)


class HungUp:
    """A receiver that refused and went away before all was sent."""

    bytes_sent = 0

    def send(self, kind: FrameType, meta: bytes = b"", body: bytes | memoryview = b"") -> int:
        del kind, meta, body
        raise PeerLost("connection lost: Broken pipe")

    def receive(self) -> Frame:
        said = wire.pack_json({"code": int(ErrorCode.FULL), "message": "no space left"})
        return Frame(FrameType.ERROR, 0, said, memoryview(b""))

    def close(self) -> None:
        """There is nothing to close."""


def test_a_refusal_counts_more_than_the_link_that_broke_with_it() -> None:
    with pytest.raises(TargetFull, match="no space left"):
        _send(cast(Channel, HungUp()), FrameType.RUNS, b"", b"")


def test_definitions_are_kept_beside_the_images(machine: Machine) -> None:
    with machine.cutover() as job:
        job.put_files({"web.xml": b"<domain/>", "web.cfg": b"x"})
        assert job.status("sda").files == ("web.cfg", "web.xml")
        with pytest.raises(TargetRefused, match="can't be kept"):
            job.put_files({"sda.img": b""})
    assert machine.image.with_name("web.xml").read_bytes() == b"<domain/>"


@pytest.mark.parametrize(
    ("programs", "files", "chosen"),
    [
        (("virsh", "xl"), ("web.cfg", "web.xml"), "kvm"),
        (("xl",), ("web.cfg", "web.xml"), "xen"),
        (("qm",), ("web.proxmox.sh",), "proxmox"),
    ],
)
def test_what_a_machine_is_started_with(
    programs: tuple[str, ...], files: tuple[str, ...], chosen: str
) -> None:
    status = Status("applied", None, "", 0, programs, files, "/srv")
    assert choose_hypervisor(status, "web") == chosen
    with pytest.raises(ConfigError, match=r"the host has none of virsh with db\.xml"):
        choose_hypervisor(status, "db")


def test_chunks_become_frames() -> None:
    assert list(_batches([])) == []
    near = [(0, b"a" * BLOCK), (BLOCK, b"b" * BLOCK), (4 * BLOCK, b"c" * BLOCK)]
    assert list(_batches(near)) == [[(0, b"a" * BLOCK + b"b" * BLOCK), (4 * BLOCK, b"c" * BLOCK)]]
    large = [(at * MIB, bytes(MIB)) for at in range(9)]
    batches = list(_batches(large))
    assert [len(data) for batch in batches for _, data in batch] == [4 * MIB, 4 * MIB, MIB]
    assert len(batches) == 3
