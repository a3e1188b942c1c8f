"""Cutover and rollback of a job as the commands do it, with a receiver that is a process."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from p2v_receiver import wire
from p2v_receiver.wire import ErrorCode, Frame, FrameType
from p2v_sync import jobs
from p2v_sync.cli import cli
from p2v_sync.config import Connection, SyncConfig
from p2v_sync.convert import Conversion, ConvertConfig, Fixups, Outcome
from p2v_sync.cutover import IN_PLACE, QCOW2, JobCutover, choose_hypervisor
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.engine.delta import Status, _batches, _send
from p2v_sync.engine.ports import Channel
from p2v_sync.errors import (
    ConfigError,
    FixupError,
    PeerLost,
    ProtocolError,
    TargetFull,
    TargetRefused,
    WrongPhase,
)
from p2v_sync.events import Event, Notice, PassFinished
from p2v_sync.fixup.plan import Bus, Hypervisor, Plan, Target
from p2v_sync.guest_disks import Look
from p2v_sync.state.ledger import Ledger
from p2v_sync.units import MIB
from tests.contract.lab import BLOCK, block_of, patterned, ram_directory
from tests.contract.machines import BIOS_SERVER, guest

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

    def config(self, *, seed: bool = False) -> SyncConfig:
        return SyncConfig(
            sources=(self.source,),
            target=str(self.image.parents[1]),
            state_dir=self.state,
            job="web",
            block_size=BLOCK,
            seed=seed,
            verify="none",
            retry_for_s=0.0,
        )

    def sync(self, *, seed: bool = False) -> int:
        """Returns the bytes sent."""
        self.events.clear()
        jobs.sync(self.config(seed=seed), self.events.append, None)
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


# virt-v2v, played by a script: it writes into the images that its XML names, and nowhere else.

CONVERTS = """\
for last; do :; done
sed -n 's/.*<source file="\\([^"]*\\)".*/\\1/p' "$last" | while read -r image; do
    qemu-io -f qcow2 -c 'write -P 7 0 4k' "$image" || exit 1
done
"""
FAILS = "echo 'virt-v2v-in-place: error: inspection could not find a root' >&2; exit 1\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those that the host has, and no real virt-v2v."""
    for name in ("sh", "date", "dirname", "grep", "mv", "sed", "tail", "qemu-img", "qemu-io"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def converter(programs: Path, script: str) -> None:
    file = programs / "virt-v2v-in-place"
    file.write_text(f"#!/bin/sh\n{script}")
    file.chmod(0o755)


def convert(machine: Machine, **wishes: Any) -> None:
    """What follows the copy in ``convert --fixups virt-v2v``."""
    config = ConvertConfig(sync=machine.config(), fixups=Fixups.VIRT_V2V, **wishes)
    look = Look(guest(), NOTHING_KNOWN, BIOS_SERVER)
    machine.events.clear()
    Conversion(config, machine.events.append, None).finish([], Outcome(look, Plan((), ())))


def shown(image: Path) -> bytes:
    """What a virtual machine sees."""
    raw = image.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    return raw.read_bytes()


def defined_image(machine: Machine, name: str) -> str | None:
    source = ET.parse(machine.image.with_name(name)).find("devices/disk/source")
    return None if source is None else source.get("file")


@pytest.mark.real_parts
def test_p8_virt_v2v_converts_above_the_replica(machine: Machine, programs: Path) -> None:
    converter(programs, CONVERTS)
    convert(machine)
    converted = machine.image.with_suffix(".qcow2")
    assert machine.image.read_bytes() == machine.source.read_bytes()
    assert shown(converted) == b"\x07" * 4096 + machine.source.read_bytes()[4096:]
    assert machine.delta() == "virt-v2v"
    assert "converted by virt-v2v" in machine.ask("status", "web")
    assert defined_image(machine, "web.xml") == str(converted)
    assert defined_image(machine, "web.compat.xml") == str(converted)

    # Before the replica changes, what lies above it goes out of the way.
    with machine.source.open("r+b") as file:
        file.write(b"changed")
    assert machine.sync() == BLOCK
    assert "moved aside" in machine.notices()
    assert machine.delta() is None
    (aside,) = machine.image.parent.glob("sda.qcow2.aside-*")
    assert not converted.exists()
    convert(machine)
    assert shown(converted)[4096:] == machine.source.read_bytes()[4096:]
    assert "kept as sda.qcow2.aside-" in machine.ask("rollback", "web")
    assert not converted.exists()
    assert aside.exists()
    assert machine.sync() == 0


@pytest.mark.real_parts
def test_a_conversion_that_fails_leaves_the_replica(machine: Machine, programs: Path) -> None:
    converter(programs, FAILS)
    with pytest.raises(FixupError, match=r"virt-v2v did not convert web: .*could not find a root"):
        convert(machine)
    log = machine.image.with_name("web.virt-v2v.log")
    assert "could not find a root" in log.read_text()
    assert machine.image.read_bytes() == machine.source.read_bytes()
    assert machine.delta() is None
    assert defined_image(machine, "web.xml") == str(machine.image), "the guest as it was"
    converter(programs, CONVERTS)
    convert(machine)
    assert shown(machine.image.with_suffix(".qcow2"))[:4096] == b"\x07" * 4096


@pytest.mark.real_parts
def test_without_virt_v2v_it_says_what_to_run(machine: Machine, programs: Path) -> None:
    convert(machine)
    script = machine.image.with_name("web.virt-v2v.sh")
    assert f"run this on the host: sh {script}" in machine.notices()
    assert not machine.image.with_suffix(".qcow2").exists()
    with pytest.raises(ConfigError, match="run this on the host"):
        convert(machine, start=True)
    # There, somebody does.
    converter(programs, CONVERTS)
    for _ in range(2):
        subprocess.run(["sh", script], check=True)
        assert shown(machine.image.with_suffix(".qcow2"))[:4096] == b"\x07" * 4096
    assert machine.sync() == 0
    assert not machine.image.with_suffix(".qcow2").exists()


@pytest.mark.parametrize("target", [Target(Hypervisor.XEN), Target(bus=Bus.SATA)])
def test_virt_v2v_makes_machines_for_kvm_only(machine: Machine, target: Target) -> None:
    config = ConvertConfig(sync=machine.config(), fixups=Fixups.VIRT_V2V, target=target)
    with pytest.raises(ConfigError, match="virtual machines for KVM"):
        Conversion(config, print, None).check()


@pytest.mark.real_parts
def test_an_overlay_can_be_had_without_fixups(machine: Machine) -> None:
    config = ConvertConfig(sync=machine.config(), fixups=Fixups.NONE, mode=QCOW2)
    conversion = Conversion(config, machine.events.append, None)
    conversion.finish([], conversion.preview([]))
    assert defined_image(machine, "web.xml") == str(machine.image.with_suffix(".qcow2"))
    assert shown(machine.image.with_suffix(".qcow2")) == machine.source.read_bytes()
