"""Delta, cutover and rollback at the receiver (P8): the replica or, on top of it, the delta."""

import contextlib
import fcntl
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2v_receiver import codec, wire
from p2v_receiver.cutover import Cutover
from p2v_receiver.delta import Delta, DeltaDamaged
from p2v_receiver.target import TargetError
from p2v_receiver.wire import ErrorCode, Json, ProtocolError, Run, Runs
from tests.contract.channel_suite import wait_until
from tests.contract.cutover import CHUNK, CutBench, runs_of
from tests.contract.host import Host
from tests.contract.lab import block_of, ram_directory

FIRST, SECOND = {"action": "apply", "mode": "in-place"}, {"action": "rollback"}


@pytest.fixture
def bench() -> Iterator[CutBench]:
    with ram_directory() as root:
        yield CutBench(root)


@pytest.fixture
def chunks(bench: CutBench) -> dict[int, bytes]:
    """Changed, zeroed, two in a row, and the short one at the end of the disk."""
    last = bench.size - bench.size % CHUNK
    return {
        0: block_of("new"),
        10 * CHUNK: bytes(CHUNK),
        20 * CHUNK: block_of("longer", 3 * CHUNK),
        300 * CHUNK: block_of("far"),
        last: b"!" * (bench.size - last),
    }


def act(bench: CutBench, message: Json) -> Json:
    with bench.take() as cutover:
        return cutover.act(message, b"")


def sent(bench: CutBench, chunks: dict[int, bytes]) -> None:
    with bench.take() as cutover:
        bench.send(cutover, chunks)


def test_p8_applied_and_taken_back_is_the_replica(
    bench: CutBench, chunks: dict[int, bytes]
) -> None:
    sent(bench, chunks)
    assert bench.is_replica()
    for _ in range(2):  # each can be said again
        assert act(bench, FIRST)["phase"] == "applied"
        assert bench.image.read_bytes() == bench.with_delta(chunks)
    for _ in range(2):
        assert act(bench, SECOND)["phase"] == ""
        assert bench.is_replica()
    assert not os.path.exists(bench.place.undo)
    with bench.work() as worker:  # what is recorded is still believed
        assert worker.reasons == []
        assert worker.target.notes == []
    assert bench.certain() == set(range(bench.layout.segments))
    act(bench, FIRST)
    assert bench.image.read_bytes() == bench.with_delta(chunks)


def test_p8_a_pass_begins_by_taking_the_delta_back(
    bench: CutBench, chunks: dict[int, bytes]
) -> None:
    sent(bench, chunks)
    act(bench, FIRST)
    with bench.work() as worker:
        assert worker.reasons == []
        assert "taken back" in worker.target.notes[0]
        assert bench.is_replica()


def test_p8_a_verification_does_not_take_it_back(bench: CutBench, chunks: dict[int, bytes]) -> None:
    sent(bench, chunks)
    act(bench, FIRST)
    with pytest.raises(TargetError, match="cut over") as caught, bench.work(create=False):
        pass
    assert caught.value.code is ErrorCode.PHASE
    assert bench.image.read_bytes() == bench.with_delta(chunks)


def heal_by_pass(bench: CutBench, chunks: dict[int, bytes]) -> None:
    del chunks
    with bench.work():
        pass
    assert bench.is_replica()
    bench.certain()


def heal_by_rollback(bench: CutBench, chunks: dict[int, bytes]) -> None:
    del chunks
    act(bench, SECOND)
    assert bench.is_replica()


def heal_by_apply(bench: CutBench, chunks: dict[int, bytes]) -> None:
    # Half taken back it is not applied, but has to be taken back first.
    with contextlib.suppress(TargetError):
        act(bench, FIRST)
        assert bench.image.read_bytes() == bench.with_delta(chunks)
    heal_by_rollback(bench, chunks)


@pytest.mark.parametrize("heal", [heal_by_pass, heal_by_rollback, heal_by_apply])
@pytest.mark.parametrize("message", [FIRST, SECOND], ids=["apply", "rollback"])
def test_p8_the_power_goes_at_every_step(
    message: Json, heal: Callable[[CutBench, dict[int, bytes]], None], chunks: dict[int, bytes]
) -> None:
    chance = random.Random(1)
    losses: tuple[Callable[[], bool], ...] = (
        lambda: True,
        lambda: False,
        lambda: chance.random() < 0.5,
    )
    at = 0
    is_dead = True
    with ram_directory() as root:
        bench, host = CutBench(root), Host()
        with host.installed():
            with bench.work(finish=True) as worker:  # the times are this machine's now
                bench.replica = bench.image.read_bytes()
                assert worker.reasons
                worker.begin()
                worker.fetch()
                worker.end()
            while is_dead:
                at += 1
                with bench.work(finish=True) as worker:  # after an untrusted rollback
                    worker.begin()
                    worker.fetch()
                    worker.end()
                sent(bench, chunks)
                if message == SECOND:
                    act(bench, FIRST)
                host.dies_at = at
                try:
                    act(bench, message)
                except TargetError:
                    assert host.is_dead
                is_dead = host.is_dead
                host.come_back(is_lost=losses[at % 3], time_goes_back=at % 2 == 0)
                heal(bench, chunks)
    assert at > 8


def test_p8_what_a_machine_wrote_meanwhile_is_found(
    bench: CutBench, chunks: dict[int, bytes]
) -> None:
    sent(bench, chunks)
    act(bench, FIRST)
    with bench.image.open("r+b") as file:
        file.seek(100 * CHUNK)
        file.write(b"written by the guest")
    act(bench, SECOND)
    with bench.work() as worker:
        assert worker.reasons == ["the image was changed since the last checkpoint"]


def test_p8_without_its_undo_file_all_is_compared(
    bench: CutBench, chunks: dict[int, bytes]
) -> None:
    sent(bench, chunks)
    act(bench, FIRST)
    undo = Path(bench.place.undo)
    undo.write_bytes(undo.read_bytes()[:-30])
    with pytest.raises(DeltaDamaged):
        act(bench, SECOND)
    assert bench.image.read_bytes() == bench.with_delta(chunks)
    with bench.work() as worker:
        assert "can't be taken back" in worker.reasons[0]
    assert bench.certain() == set()


def test_p8_a_new_pass_needs_a_new_delta(bench: CutBench, chunks: dict[int, bytes]) -> None:
    sent(bench, chunks)
    bench.fill("x")
    assert not act(bench, {"action": "status"})["delta"]["current"]
    with pytest.raises(TargetError, match="belongs to pass 1"):
        act(bench, FIRST)


def test_p8_a_delta_is_not_replaced_while_it_is_applied(
    bench: CutBench, chunks: dict[int, bytes]
) -> None:
    sent(bench, chunks)
    before = Path(bench.place.delta).read_bytes()
    act(bench, FIRST)
    with pytest.raises(TargetError) as caught:
        sent(bench, {0: block_of("other")})
    assert caught.value.code is ErrorCode.PHASE
    assert Path(bench.place.delta).read_bytes() == before


def test_p7_a_delta_without_its_end_record_is_none(
    bench: CutBench, chunks: dict[int, bytes]
) -> None:
    with bench.take() as cutover:
        cutover.act(bench.base_of(cutover), b"")
        runs, body = runs_of(chunks)
        cutover.runs(runs, memoryview(body))
    assert not os.path.exists(bench.place.delta)
    sent(bench, chunks)
    path = Path(bench.place.delta)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DeltaDamaged):
            Delta(str(path))
    path.write_bytes(whole + b"x")
    assert act(bench, {"action": "status"})["delta"]["current"]


def test_p7_the_end_record_is_compared(bench: CutBench, chunks: dict[int, bytes]) -> None:
    tally = codec.Tally()
    with bench.take() as cutover:
        cutover.act(bench.base_of(cutover), b"")
        cutover.runs(runs_of(chunks)[0], memoryview(runs_of(chunks)[1]))
        with pytest.raises(TargetError, match="does not agree"):
            cutover.act({"action": "end", **tally.end_record()}, b"")
    assert not os.path.exists(bench.place.delta)


def test_p7_a_delta_that_rotted_is_not_applied(bench: CutBench, chunks: dict[int, bytes]) -> None:
    sent(bench, chunks)
    path = Path(bench.place.delta)
    content = bytearray(path.read_bytes())
    content[content.index(block_of("far")) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DeltaDamaged, match="digest differs"):
        act(bench, FIRST)
    assert bench.is_replica()


def run(start: int, length: int = CHUNK) -> Run:
    return Run(start, length, codec.entries_digest(bytes(length)))


@pytest.mark.parametrize(
    "runs",
    [
        [run(1 << 40)],
        [run((1 << 64) - CHUNK)],
        [run(0), run(0)],
        [run(0, 2 * CHUNK), run(CHUNK)],
        [run(CHUNK), run(0)],
        [run(0, 0)],
        [run(100)],
        [run(0, 100)],
    ],
    ids=["far", "overflow", "twice", "overlap", "back", "empty", "odd", "part"],
)
def test_runs_that_no_delta_has(bench: CutBench, runs: list[Run]) -> None:
    with bench.take() as cutover:
        cutover.act(bench.base_of(cutover), b"")
        message = Runs.unpack(Runs(codec.RAW, runs).pack())
        with pytest.raises(ProtocolError):
            cutover.runs(message, memoryview(bytes(message.raw_length)))


def test_p4_a_run_that_arrived_damaged(bench: CutBench) -> None:
    with bench.take() as cutover:
        cutover.act(bench.base_of(cutover), b"")
        with pytest.raises(TargetError) as caught:
            cutover.runs(Runs(codec.RAW, [run(0)]), memoryview(b"x" * CHUNK))
    assert caught.value.code is ErrorCode.INTEGRITY


@pytest.mark.parametrize("cut", [0, 5, -1])
def test_a_runs_frame_that_contradicts_itself(cut: int) -> None:
    packed = Runs(codec.RAW, [run(0)]).pack()
    with pytest.raises(ProtocolError):
        Runs.unpack(packed[: cut or 3])
    with pytest.raises(ProtocolError):
        Runs.unpack(Runs(codec.RAW, [run(0, wire.MAX_REQUEST), run(CHUNK)]).pack())


@pytest.mark.parametrize(
    "message",
    [
        {"action": "fly"},
        {},
        {"action": "apply", "mode": "twice"},
        {"action": "end", "runs": 0, "bytes": 0, "digest": ""},
        {"action": "delta", "image": "x", "pass": 1, "size": 1, "chunk_size": 3},
    ],
)
def test_actions_that_there_are_not(bench: CutBench, message: Json) -> None:
    with pytest.raises(ProtocolError):
        act(bench, message)


@pytest.mark.parametrize("change", [{"image": "x"}, {"pass": 2}, {"size": 4096}])
def test_a_delta_of_something_else(bench: CutBench, change: Json) -> None:
    with pytest.raises(TargetError, match="another state"):
        act(bench, {**bench.base(), **change})


def seed(bench: CutBench) -> None:
    with bench.work(finish=True) as worker:
        worker.begin("seed")
        worker.fetch()
        worker.end()


def unfinished(bench: CutBench) -> None:
    with bench.work(finish=True) as worker:
        worker.begin()


def changed(bench: CutBench) -> None:
    os.utime(bench.image)


@pytest.mark.parametrize("spoil", [seed, unfinished, changed])
def test_p11_what_is_no_copy_of_one_moment_is_not_cut_over(
    bench: CutBench, spoil: Callable[[CutBench], None]
) -> None:
    spoil(bench)
    for mode in ("in-place", "qcow2"):
        with pytest.raises(TargetError, match="can't be cut over") as caught:
            act(bench, {"action": "apply", "mode": mode})
        assert caught.value.code is ErrorCode.PHASE
    with pytest.raises(TargetError, match="can't be cut over"):
        act(bench, bench.base())


# As a qcow2.


def test_p8_a_qcow2_leaves_the_replica_alone(bench: CutBench, chunks: dict[int, bytes]) -> None:
    sent(bench, chunks)
    message = {"action": "apply", "mode": "qcow2"}
    assert act(bench, message)["phase"] == "qcow2"
    overlay = Path(bench.place.qcow2)
    overlay.write_bytes(overlay.read_bytes() + b"a machine ran on it")
    before = overlay.read_bytes()
    act(bench, message)
    assert overlay.read_bytes() == before
    assert bench.is_replica()
    with pytest.raises(TargetError) as caught:
        act(bench, FIRST)
    assert caught.value.code is ErrorCode.PHASE
    kept = act(bench, SECOND)["kept"]
    assert overlay.with_name(kept).read_bytes() == before
    with bench.work(create=False) as worker:
        assert worker.reasons == []


def test_p8_a_qcow2_is_moved_aside_before_its_base_changes(
    bench: CutBench, chunks: dict[int, bytes]
) -> None:
    sent(bench, chunks)
    act(bench, {"action": "apply", "mode": "qcow2"})
    overlay = Path(bench.place.qcow2)
    with bench.work(create=False):
        assert overlay.exists()
    with bench.work() as worker:
        assert "moved aside" in worker.target.notes[0]
        worker.begin()
        assert not overlay.exists()
    assert list(overlay.parent.glob("disk.qcow2.aside-*"))


# A machine that runs.


def test_p10_an_image_that_a_machine_runs_on_is_not_opened(bench: CutBench) -> None:
    def lock(kind: int) -> bytes:
        return struct.pack("hhqqi4x", kind, os.SEEK_SET, 100, 1, 0)

    with bench.image.open("r+b") as qemu:
        fcntl.fcntl(qemu, 37, lock(fcntl.F_RDLCK))  # F_OFD_SETLK
        with pytest.raises(TargetError, match="in use") as caught, bench.work():
            pass
        assert caught.value.code is ErrorCode.REFUSED
        fcntl.fcntl(qemu, 37, lock(fcntl.F_UNLCK))
        with bench.work():
            pass


# Definitions.


def put(cutover: Cutover, name: str, content: bytes, arrives: bytes | None = None) -> None:
    digest = codec.entries_digest(content).hex()
    body = content if arrives is None else arrives
    cutover.act({"action": "put", "name": name, "digest": digest}, body)


@pytest.mark.parametrize("name", ["web.xml", "a.proxmox.sh", "b.cfg", "c.yaml", "d.json"])
def test_a_definition_is_kept_and_replaced(bench: CutBench, name: str) -> None:
    for content in (b"one", b"two"):
        with bench.take() as cutover:
            put(cutover, name, content)
            assert name in cutover.act({"action": "status"}, b"")["files"]
        assert bench.image.with_name(name).read_bytes() == content


def test_p4_a_definition_that_arrives_damaged_replaces_nothing(bench: CutBench) -> None:
    with bench.take() as cutover:
        put(cutover, "web.xml", b"<domain/>")
    with bench.take() as cutover, pytest.raises(TargetError, match="arrived damaged") as caught:
        put(cutover, "web.xml", b"<domain a='1'/>", arrives=b"<domain a='3'/>")
    assert caught.value.code is ErrorCode.INTEGRITY
    assert bench.image.with_name("web.xml").read_bytes() == b"<domain/>"


@pytest.mark.parametrize(
    "name",
    ["", "../x.xml", "/x.xml", "a/b.xml", ".xml", "disk.img", "disk.manifest", "x.xml\n", "-x.xml"],
)
def test_p10_other_names_are_refused(bench: CutBench, name: str) -> None:
    before = sorted(os.listdir(bench.place.directory))
    with bench.take() as cutover, pytest.raises(TargetError, match="can't be kept"):
        put(cutover, name, b"x")
    assert sorted(os.listdir(bench.place.directory)) == before


def test_p10_a_link_in_the_place_of_a_definition_is_not_followed(
    bench: CutBench, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    link = bench.image.with_name("web.xml")
    link.symlink_to(other)
    with bench.take() as cutover:
        put(cutover, "web.xml", b"new")
    assert other.read_bytes() == b"precious"
    assert link.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("hypervisor", "what", "name"),
    [
        ("kvm", "destroy", "web"),
        ("bash", "start", "web"),
        ("kvm", "start", "--help"),
        ("kvm", "start", "a b"),
        ("kvm", "start", "../web"),
    ],
)
def test_only_a_few_commands_are_run(
    bench: CutBench, hypervisor: str, what: str, name: str
) -> None:
    message = {"action": "run", "hypervisor": hypervisor, "what": what, "name": name}
    with pytest.raises(TargetError, match="not done here"):
        act(bench, message)


def test_a_missing_program_is_named(bench: CutBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2v_receiver.machine._PATH", "/nowhere")
    message = {"action": "run", "hypervisor": "xen", "what": "start", "name": "web"}
    with pytest.raises(TargetError, match="there is no xl"):
        act(bench, message)


def test_who_may_not_starts_nothing(bench: CutBench) -> None:
    message = {"action": "run", "hypervisor": "kvm", "what": "start", "name": "web"}
    with (
        bench.take(may_run=False) as cutover,
        pytest.raises(TargetError, match="starts no programs"),
    ):
        cutover.act(message, b"")


PATIENCE_S = 60.0
CONVERT = {"action": "run", "hypervisor": "virt-v2v", "what": "convert", "name": "web"}


@pytest.fixture
def script(bench: CutBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is run instead of virt-v2v's script: it waits for the file ``go`` beside it."""
    program = tmp_path / "virt-v2v-in-place"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr("p2v_receiver.machine._PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("p2v_receiver.machine._ANSWER_S", 0.2)
    path = bench.image.with_name("web.virt-v2v.sh")
    path.write_text(
        'cd "$(dirname "$0")"; echo $$ >pid; until [ -e go ]; do sleep 0.1; done; . ./go'
    )
    return path


@pytest.mark.real_parts
def test_a_program_that_takes_long_is_asked_again(bench: CutBench, script: Path) -> None:
    with bench.take() as cutover:
        assert "virt-v2v-in-place" in cutover.act({"action": "status"}, b"")["programs"]
        assert cutover.act(CONVERT, b"")["output"] is None
        assert cutover.act(CONVERT, b"")["output"] is None
        script.with_name("go").write_text("echo all is well\n")
        wait_until(lambda: cutover.act(CONVERT, b"")["output"] == "all is well", PATIENCE_S)


@pytest.mark.real_parts
def test_what_it_said_when_it_failed_is_told(bench: CutBench, script: Path) -> None:
    script.with_name("go").write_text("echo no root found >&2; exit 1\n")
    with bench.take() as cutover, pytest.raises(TargetError, match="failed: no root found"):
        wait_until(lambda: cutover.act(CONVERT, b"")["output"] is not None, PATIENCE_S)


@pytest.mark.real_parts
def test_a_program_ends_with_the_session(bench: CutBench, script: Path) -> None:
    with bench.take() as cutover:
        while not script.with_name("pid").exists():
            assert cutover.act(CONVERT, b"")["output"] is None
    pid = int(script.with_name("pid").read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), PATIENCE_S)


@pytest.mark.real_parts
def test_p8_virt_v2v_works_above_a_replica_only(bench: CutBench, script: Path) -> None:
    script.with_name("go").touch()
    sent(bench, {0: block_of("new")})
    act(bench, FIRST)
    with pytest.raises(TargetError, match="has a delta that is applied"):
        act(bench, CONVERT)
    act(bench, SECOND)
    assert act(bench, CONVERT)["output"] == ""


def test_p9_what_virt_v2v_made_is_moved_aside_by_a_rollback_and_by_a_pass(bench: CutBench) -> None:
    parts: list[Callable[[], object]] = [lambda: act(bench, SECOND), lambda: bench.fill("x")]
    for number, part in enumerate(parts, 1):
        bench.image.with_suffix(".qcow2").write_bytes(b"converted")
        part()
        aside = [*bench.image.parent.glob("*.qcow2.aside-*")]
        assert len(aside) == number
        assert {path.read_bytes() for path in aside} == {b"converted"}
        assert not bench.image.with_suffix(".qcow2").exists()
        assert bench.is_replica()
