"""The SQLite ledger: the contract, and what is its own business."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_receiver.wire import UNKNOWN
from p2v_sync.engine import ports
from p2v_sync.errors import JobNotFound, StateCorrupt, StateError, WrongPhase
from p2v_sync.events import Counters
from p2v_sync.extent import Extent
from p2v_sync.records import DigestSettings
from p2v_sync.state import disk as disk_module
from p2v_sync.state.disk import DiskLedger
from p2v_sync.state.ledger import DiskPlace, Ledger
from p2v_sync.state.overview import PassState
from tests.contract.ledger_suite import LedgerSuite, checkpoint, packed, state
from tests.contract.memory_ledger import MemoryLedger


def no_notices(text: str) -> None:
    raise AssertionError(f"unexpected notice: {text}")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "state", no_notices) as opened:
        yield opened


@pytest.fixture
def disk(ledger: Ledger) -> DiskLedger:
    return ledger.job("web01", "root@xen1:/vm").disk("sda", path="/dev/sda", size=1 << 30)


def rows(tmp_path: Path, sql: str) -> list[tuple[object, ...]]:
    """What somebody else sees who opens the file with plain sqlite3."""
    connection = sqlite3.connect(tmp_path / "state" / "ledger.sqlite")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def tamper(tmp_path: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(tmp_path / "state" / "ledger.sqlite")
    try:
        with connection:
            connection.execute(sql, values)
    finally:
        connection.close()


class TestSqliteLedger(LedgerSuite):
    @pytest.fixture(autouse=True)
    def _state_dir(self, tmp_path: Path) -> Iterator[None]:
        self.state_dir = tmp_path / "suite"
        self.opened: list[Ledger] = []
        yield
        for one in self.opened:
            one.close()

    def fresh(self) -> ports.Ledger:
        self.opened.append(Ledger.open(self.state_dir, no_notices))
        _: ports.Ledger = self.opened[-1].job("j", "t").disk("sda", path="/dev/sda", size=1 << 40)
        return _

    @pytest.fixture
    def ledger(self) -> ports.Ledger:
        return self.fresh()

    def reopened(self, ledger: ports.Ledger) -> ports.Ledger:
        assert isinstance(ledger, DiskLedger)
        self.opened[-1].close()
        return self.fresh()


class TestMemoryLedger(LedgerSuite):
    @pytest.fixture
    def ledger(self) -> ports.Ledger:
        _: ports.Ledger = MemoryLedger()
        return _

    def reopened(self, ledger: ports.Ledger) -> ports.Ledger:
        assert isinstance(ledger, MemoryLedger)
        return ledger.reopened()


def test_jobs_and_disks_are_found_again(ledger: Ledger) -> None:
    job = ledger.job("web01", "root@xen1:/vm")
    job.disk("sdb", path="/dev/sdb", size=10)
    job.disk("sda", path="/dev/sda", size=20)
    found = ledger.find_job("web01")
    assert (found.name, found.target, found.created) == ("web01", "root@xen1:/vm", job.created)
    assert found.disks() == [DiskPlace("sda", "/dev/sda", 20), DiskPlace("sdb", "/dev/sdb", 10)]
    found.find_disk("sda")
    with pytest.raises(StateError, match="web01 has no disk sdc"):
        found.find_disk("sdc")


def test_disks_of_one_job_or_name_are_apart(ledger: Ledger) -> None:
    one = ledger.job("a", "t")
    disks = [one.disk("sda", path="p", size=1), one.disk("sdb", path="p", size=1)]
    disks.append(ledger.job("b", "t").disk("sda", path="p", size=1))
    for number, disk in enumerate(disks):
        disk.begin_pass(1, "initial")
        disk.record(checkpoint(1, {0: packed(number)}, unreadable=(Extent(number, 1),)))
    disks[0].finish_pass(state(1), Counters(), wire_digest="")
    assert [disk.entries(0) for disk in disks] == [packed(0), packed(1), packed(2)]
    assert [list(disk.unreadable()) for disk in disks] == [[Extent(n, 1)] for n in range(3)]
    assert [disk.target_state() for disk in disks] == [state(1), None, None]


def test_the_target_may_change_and_that_is_told(ledger: Ledger, tmp_path: Path) -> None:
    ledger.job("web01", "xen1:/vm")
    assert ledger.job("web01", "xen2:/vm").target == "xen2:/vm"
    ((details,),) = rows(tmp_path, "SELECT details FROM events")
    assert json.loads(str(details)) == {"from": "xen1:/vm", "to": "xen2:/vm"}


def test_a_disk_that_moved_or_grew_is_noted(ledger: Ledger) -> None:
    job = ledger.job("j", "t")
    job.disk("sda", path="/dev/sda", size=10)
    job.disk("sda", path="/dev/sdb", size=20)
    assert job.disks() == [DiskPlace("sda", "/dev/sdb", 20)]


def test_an_unknown_job_names_the_known_ones(ledger: Ledger) -> None:
    ledger.job("db", "t")
    ledger.job("web", "t")
    with pytest.raises(JobNotFound) as caught:
        ledger.find_job("mail")
    assert caught.value.hint == "known are: db, web"


def test_settings_of_a_disk(disk: DiskLedger) -> None:
    assert disk.identity() is None
    assert disk.digest_settings() is None
    assert not disk.was_set_read_only()
    disk.set_identity({"wwn": "0x5000", "size": 5})
    disk.set_digest_settings(DigestSettings("xxh3", "00ff", 262144))
    disk.note_set_read_only(True)
    assert disk.identity() == {"wwn": "0x5000", "size": 5}
    assert disk.digest_settings() == DigestSettings("xxh3", "00ff", 262144)
    assert disk.was_set_read_only()


@pytest.mark.parametrize("identity", ["{", "[]"])
def test_a_damaged_identity_is_explained(disk: DiskLedger, tmp_path: Path, identity: str) -> None:
    tamper(tmp_path, "UPDATE disks SET identity = ?", identity)
    with pytest.raises(StateCorrupt, match="JSON"):
        disk.identity()


def test_p5_a_row_that_vanished_is_noticed(disk: DiskLedger, tmp_path: Path) -> None:
    disk.begin_pass(1, "initial")
    disk.record(checkpoint(1, {0: packed(1), 1: packed(2)}))
    disk.finish_pass(state(1), Counters(), wire_digest="")
    tamper(tmp_path, "DELETE FROM segments WHERE segment = 1")
    assert disk.target_state() is None
    ((text,),) = rows(tmp_path, "SELECT text FROM history WHERE text LIKE '%digests are not%'")
    assert "manifest" in str(text)


def test_p5_damaged_entries_are_unknown_not_believed(disk: DiskLedger, tmp_path: Path) -> None:
    disk.begin_pass(1, "initial")
    disk.record(checkpoint(1, {5: packed(1)}))
    tamper(tmp_path, "UPDATE segments SET entries = ?", packed(1)[:-1] + b"\2")
    disk.record(checkpoint(2, {6: packed(6)}))
    assert disk.entries_between(0, 10) == {5: UNKNOWN * 256, 6: packed(6)}
    ((details,),) = rows(tmp_path, "SELECT details FROM events")
    assert json.loads(str(details)) == {"first": 5, "count": 1}


def test_p12_when_a_part_was_first_seen_is_kept(
    disk: DiskLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(["monday", "tuesday", "wednesday", "thursday"])
    monkeypatch.setattr(disk_module, "utc_now", lambda: next(clock))
    disk.set_unreadable([Extent(0, 512), Extent(4096, 512)])
    disk.set_unreadable([Extent(512, 512), Extent(9000, 512)])
    monkeypatch.setattr(disk_module, "utc_now", lambda: "friday")
    disk.begin_pass(1, "initial")
    disk.record(checkpoint(1, unreadable=(Extent(1024, 10), Extent(99999, 1))))
    sql = "SELECT start, length, first_seen, last_tried FROM unreadable ORDER BY start"
    assert rows(tmp_path, sql) == [
        (512, 522, "monday", "friday"),
        (9000, 512, "tuesday", "tuesday"),
        (99999, 1, "friday", "friday"),
    ]


def test_checkpoints_of_a_pass_are_bounded(
    disk: DiskLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "CHECKPOINTS_KEPT", 3)
    for number in (1, 2):
        disk.begin_pass(number, "initial")
        for generation in range(5):
            disk.record(checkpoint(generation))
    found = rows(tmp_path, "SELECT pass, generation FROM checkpoints ORDER BY id")
    assert found == [(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4)]


def test_a_pass_row_tells_what_happened(disk: DiskLedger, tmp_path: Path) -> None:
    disk.begin_pass(1, "initial")
    disk.failed("the link broke")
    disk.begin_pass(1, "initial")
    disk.record(checkpoint(1, scanned=10))
    disk.finish_pass(state(2), Counters(20, 1, 2, 3, 4, 5), wire_digest="abcd")
    sql = """
        SELECT number, kind, outcome, runs, scanned, zero, same, sent, wire, unreadable,
            wire_digest, last_error, seconds > 0, finished >= started
        FROM passes"""
    found = rows(tmp_path, sql)
    assert found == [(1, "initial", "complete", 2, 20, 1, 2, 3, 4, 5, "abcd", None, 1, 1)]


def test_the_views_answer_what_happened(
    disk: DiskLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "utc_now", lambda: "2026-01-31T12:00:00.000Z")
    disk.begin_pass(1, "initial")
    disk.event("the link broke", tries=3)
    disk.record(checkpoint(1, scanned=1 << 29))
    happened = rows(tmp_path, "SELECT job, disk, text FROM history")
    assert happened == [
        ("web01", "sda", "pass 1 (initial) started"),
        ("web01", "sda", "the link broke"),
    ]
    progress = rows(tmp_path, "SELECT job, disk, pass, outcome, percent FROM progress")
    assert progress == [("web01", "sda", 1, "unfinished", 50.0)]
    disk.finish_pass(state(1), Counters(), wire_digest="")
    last = rows(tmp_path, "SELECT text FROM history")[-1]
    assert re.fullmatch(r"pass 1 \(initial\) complete after \d\.\d s, 0 bytes sent", str(last[0]))


def test_times_are_iso_utc(disk: DiskLedger, tmp_path: Path) -> None:
    disk.event("x")
    ((seconds,),) = rows(tmp_path, "SELECT strftime('%s', at) FROM events WHERE at GLOB '*T*Z'")
    assert abs(int(str(seconds)) - time.time()) < 60


def test_a_failed_run_stays_resumable(ledger: Ledger, disk: DiskLedger) -> None:
    disk.begin_pass(1, "initial")
    disk.record(checkpoint(1, scanned=7))
    disk.failed("no space left on xen1")
    found = ledger.overview("web01")[0].disks[0]
    assert (found.state, found.last_error) == (PassState.FAILED, "no space left on xen1")
    resumed = disk.begin_pass(1, "initial")
    assert resumed.resumed
    assert resumed.counters.scanned == 7
    assert ledger.overview("web01")[0].disks[0].last_error is None


def test_a_run_that_never_began_a_pass_leaves_its_error(ledger: Ledger, disk: DiskLedger) -> None:
    disk.failed("xen1 does not answer")
    found = ledger.overview()[0].disks[0]
    assert (found.state, found.last_error) == (PassState.FAILED, "xen1 does not answer")


def finish(disk: DiskLedger, number: int, kind: str) -> None:
    disk.begin_pass(number, kind)
    disk.finish_pass(state(number), Counters(), wire_digest="")


def test_p11_cutover_demands_a_quiesced_pass_of_every_disk(
    ledger: Ledger, disk: DiskLedger
) -> None:
    other = ledger.job("web01", "root@xen1:/vm").disk("sdb", path="/dev/sdb", size=1)
    finish(disk, 1, "initial")
    with pytest.raises(WrongPhase, match="sdb: there is no pass yet"):
        ledger.require_quiesced("web01")
    finish(other, 1, "seed")
    with pytest.raises(WrongPhase, match="sdb: pass 1 is a seed"):
        ledger.require_quiesced("web01")
    other.begin_pass(2, "final")
    with pytest.raises(WrongPhase, match="sdb: pass 2 is not finished"):
        ledger.require_quiesced("web01")
    other.finish_pass(state(2), Counters(), wire_digest="")
    ledger.require_quiesced("web01")
    finish(disk, 2, "seed")
    with pytest.raises(WrongPhase, match="sda: pass 2 is a seed"):
        ledger.require_quiesced("web01")


def test_p11_the_last_run_says_what_a_pass_is(ledger: Ledger, disk: DiskLedger) -> None:
    disk.begin_pass(1, "initial")
    finish(disk, 1, "seed")
    with pytest.raises(WrongPhase, match="pass 1 is a seed"):
        ledger.require_quiesced("web01")


def test_p11_a_job_without_disks_is_not_cut_over(ledger: Ledger) -> None:
    ledger.job("empty", "t")
    with pytest.raises(WrongPhase, match="no disks"):
        ledger.require_quiesced("empty")
    with pytest.raises(JobNotFound):
        ledger.require_quiesced("nobody")


def test_a_full_disk_is_said_and_changes_nothing(ledger: Ledger, disk: DiskLedger) -> None:
    disk.begin_pass(1, "initial")
    disk.record(checkpoint(1, {0: packed(1)}))
    connection = ledger._database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StateError, match="full") as caught:
        disk.record(checkpoint(2, {number: packed(9) for number in range(64)}, scanned=5))
    assert not isinstance(caught.value, StateCorrupt)
    assert "--state DIR" in str(caught.value.hint)
    assert disk.entries(0) == packed(1)
    connection.execute("PRAGMA max_page_count = 100000")
    disk.record(checkpoint(2, {1: packed(2)}))


def test_damage_found_later_is_explained(disk: DiskLedger, tmp_path: Path) -> None:
    disk.begin_pass(1, "initial")
    tamper(tmp_path, "DROP TABLE passes")
    with pytest.raises(StateCorrupt) as caught:
        disk.record(checkpoint(1, {0: packed(1)}))
    assert "manifest" in str(caught.value.hint)
    assert disk.entries(0) is None
    tamper(tmp_path, "PRAGMA foreign_keys = OFF")
    tamper(tmp_path, "DELETE FROM disks")
    with pytest.raises(StateCorrupt, match="row is missing"):
        disk.target_state()


def test_p2_a_checkpoint_is_recorded_whole_or_not_at_all(disk: DiskLedger, tmp_path: Path) -> None:
    disk.begin_pass(1, "initial")
    disk.record(checkpoint(1, {0: packed(1)}, scanned=1))
    tamper(
        tmp_path,
        "CREATE TRIGGER no BEFORE INSERT ON checkpoints BEGIN SELECT raise(ABORT, 'no'); END",
    )
    with pytest.raises(StateError):
        disk.record(checkpoint(2, {0: packed(2)}, scanned=2, unreadable=(Extent(0, 1),)))
    tamper(tmp_path, "DROP TRIGGER no")
    assert disk.entries(0) == packed(1)
    assert list(disk.unreadable()) == []
    assert disk.begin_pass(1, "initial").counters.scanned == 1


def timed(disk: DiskLedger, segments: dict[int, bytes | None]) -> float:
    begun = time.process_time()  # whatever else the machine is doing
    disk.record(checkpoint(1, segments))
    return time.process_time() - begun


def test_recording_is_quick(disk: DiskLedger) -> None:
    # The limits are wide for a slow machine: a few ms and half a second were measured.
    disk.begin_pass(1, "initial")
    assert timed(disk, dict.fromkeys(range(131072))) < 3
    some: list[dict[int, bytes | None]] = [
        {start + number: packed(7) for number in range(64)} for start in range(0, 640, 64)
    ]
    assert min(timed(disk, one) for one in some) < 0.1


_WRITER = """
import sys
from pathlib import Path
from p2v_sync.state.ledger import Ledger
from tests.contract.ledger_suite import checkpoint, packed

with Ledger.open(Path(sys.argv[1]), print) as ledger:
    disk = ledger.job("j", "t").disk("sda", path="/dev/sda", size=1)
    disk.begin_pass(1, "initial")
    for generation in range(1, 100000):
        fill = packed(generation % 250 + 1)
        disk.record(checkpoint(generation, dict.fromkeys(range(64), fill), scanned=generation))
        print(generation, flush=True)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that records without end; it says each generation once it is recorded."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'receiver'}"}
    argv = [sys.executable, "-c", _WRITER, str(tmp_path / "state")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        process.kill()


def written(process: "subprocess.Popen[str]", least: int) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= least:
            return int(line)
    raise AssertionError("the writer ended")


@pytest.mark.parametrize("least", [1, 7, 40])
def test_p2_kill_9_in_the_middle_of_recording_leaves_whole_checkpoints(
    tmp_path: Path, writer: "subprocess.Popen[str]", least: int
) -> None:
    written(writer, least)
    time.sleep(0.001 * least)
    writer.kill()
    writer.wait()
    assert writer.stdout is not None
    told = max([least, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    with Ledger.open(tmp_path / "state", no_notices) as ledger:
        disk = ledger.find_job("j").find_disk("sda")
        generation = disk.begin_pass(1, "initial").counters.scanned
        assert generation in (told, told + 1)
        assert {disk.entries(number) for number in range(64)} == {packed(generation % 250 + 1)}
        ((newest,),) = rows(tmp_path, "SELECT max(generation) FROM checkpoints")
        assert newest == generation


def test_it_can_be_read_while_another_process_writes(
    tmp_path: Path, writer: "subprocess.Popen[str]"
) -> None:
    least = written(writer, 1)
    looked = Ledger.look(tmp_path / "state")
    assert looked is not None
    with looked:
        for _ in range(50):
            (found,) = looked.overview("j")[0].disks
            assert found.done >= least
            least = found.done
    assert writer.poll() is None


def test_two_processes_may_write(tmp_path: Path, writer: "subprocess.Popen[str]") -> None:
    written(writer, 1)
    with Ledger.open(tmp_path / "state", no_notices) as ledger:
        disk = ledger.job("other", "t").disk("sda", path="p", size=1)
        disk.begin_pass(1, "initial")
        for generation in range(20):
            disk.record(checkpoint(generation, {generation: packed(1)}))
        assert len(list(disk.segment_digests())) == 20
    assert writer.poll() is None
