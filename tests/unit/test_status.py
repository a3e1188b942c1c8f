"""``p2v-sync status``."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2v_sync.cli.status import status
from p2v_sync.errors import JobNotFound, StateCorrupt
from p2v_sync.events import Counters
from p2v_sync.extent import Extent
from p2v_sync.state.disk import DiskLedger
from p2v_sync.state.ledger import Ledger
from p2v_sync.state.lock import job_lock
from p2v_sync.units import GIB, MIB
from tests.contract.ledger_suite import checkpoint, packed, state


def asked(state_dir: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(status, ["--state", str(state_dir), *arguments])
    if result.exception is not None:
        raise result.exception
    return result


def begun(ledger: Ledger, job: str = "web01", disk: str = "sda") -> DiskLedger:
    opened = ledger.job(job, "root@xen1:/vm").disk(disk, path=f"/dev/{disk}", size=2 * GIB)
    opened.begin_pass(1, "initial")
    return opened


def test_no_jobs_is_one_friendly_line(tmp_path: Path) -> None:
    for state_dir in (tmp_path / "none", tmp_path):
        Ledger.open(tmp_path, print).close()
        result = asked(state_dir)
        assert result.stdout.startswith(f"No jobs in {state_dir} yet. Begin one with: p2v-sync")
        assert result.stdout.count("\n") == 1
        result = asked(state_dir, "--json")
        assert result.stdout == ""
        assert "No jobs" in result.stderr
    assert not (tmp_path / "none").exists()


def test_an_unknown_job_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(JobNotFound, match="no job was begun here yet"):
        asked(tmp_path, "web01")
    with Ledger.open(tmp_path, print) as ledger:
        begun(ledger)
        begun(ledger, "db01")
    with pytest.raises(JobNotFound, match="known are: db01, web01"):
        asked(tmp_path, "mail")


def test_a_running_pass(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, print) as ledger, job_lock(tmp_path, "web01"):
        begun(ledger).record(checkpoint(1, {0: packed(1)}, scanned=512 * MIB))
        lines = asked(tmp_path).stdout.splitlines()
        ((at,),) = ledger._database._connection.execute("SELECT at FROM checkpoints")
    assert lines == [
        "web01 -> root@xen1:/vm  (running)",
        "  sda  2.0 GiB  pass 1 (initial): running",
        "      done             512.0 MiB, 25.0 %",
        "      sent             0 B",
        f"      last checkpoint  {at}",
        "      cutover          no: pass 1 is not finished",
    ]


def test_an_interrupted_pass(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, print) as ledger:
        begun(ledger)
    output = asked(tmp_path).stdout
    assert "(not running)" in output
    assert "pass 1 (initial): interrupted" in output


def test_a_failed_pass_says_why(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, print) as ledger:
        begun(ledger).failed("no space left on xen1")
    output = asked(tmp_path, "web01").stdout
    assert "pass 1 (initial): failed" in output
    assert "last error       no space left on xen1" in output


def test_a_disk_without_a_pass(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, print) as ledger:
        ledger.job("web01", "t").disk("sda", path="p", size=5).failed("xen1 does not answer")
    lines = asked(tmp_path).stdout.splitlines()
    assert lines[1:] == [
        "  sda  5 B  no pass yet",
        "      last error       xen1 does not answer",
        "      cutover          no: there is no pass yet",
    ]


def complete(disk: DiskLedger, *bad: Extent) -> None:
    disk.set_unreadable(bad)
    counters = Counters(scanned=2 * GIB, sent=GIB, wire=MIB)
    disk.finish_pass(state(1), counters, wire_digest="")


def test_a_complete_pass(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, print) as ledger:
        complete(begun(ledger))
    lines = asked(tmp_path).stdout.splitlines()
    assert lines[1:] == [
        "  sda  2.0 GiB  pass 1 (initial): complete",
        "      done             2.0 GiB, 100.0 %",
        "      sent             1.0 GiB",
        "      next pass        about 0.0 s",
        "      cutover          possible",
    ]


def test_p12_unreadable_parts_are_said(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, print) as ledger:
        complete(begun(ledger), Extent(0, 512))
        complete(begun(ledger, disk="sdb"), Extent(0, 512), Extent(4096, 1024))
    output = asked(tmp_path).stdout
    assert "complete, but 1 part (512 B) could not be read" in output
    assert "complete, but 2 parts (1.5 KiB) could not be read" in output


def test_json_is_one_object_a_line_for_each_disk(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, print) as ledger:
        complete(begun(ledger), Extent(0, 512))
        begun(ledger, "db01", "sdb")
        ledger.job("db01", "root@xen1:/vm").disk("sdc", path="/dev/sdc", size=0)
    found = [json.loads(line) for line in asked(tmp_path, "--json").stdout.splitlines()]
    assert [(one["job"], one["disk"]) for one in found] == [
        ("db01", "sdb"),
        ("db01", "sdc"),
        ("web01", "sda"),
    ]
    assert found[2] == {
        "job": "web01",
        "target": "root@xen1:/vm",
        "running": False,
        "disk": "sda",
        "path": "/dev/sda",
        "size": 2 * GIB,
        "pass": 1,
        "kind": "initial",
        "state": "complete",
        "done": 2 * GIB,
        "percent": 100.0,
        "sent": GIB,
        "wire": MIB,
        "unreadable": 512,
        "used_only": False,
        "last_checkpoint": None,
        "last_error": None,
        "delta": None,
        "cutover_allowed": True,
        "cutover_refusal": None,
        "next_pass_s": 0.0,
    }
    assert (found[1]["pass"], found[1]["kind"], found[1]["state"]) == (None, None, "none")
    only = asked(tmp_path, "--json", "web01").stdout.splitlines()
    assert [json.loads(line) for line in only] == found[2:]


def test_the_default_directory_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2V_STATE", str(tmp_path / "named"))
    assert str(tmp_path / "named") in CliRunner().invoke(status, []).stdout


def test_a_damaged_ledger_is_explained_and_left(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"nonsense" * 1000)
    with pytest.raises(StateCorrupt):
        asked(tmp_path)
    assert path.read_bytes() == b"nonsense" * 1000
