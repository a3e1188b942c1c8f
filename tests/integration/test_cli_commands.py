"""Every form of the command line, as a new user types it, against a directory."""

import json
import os
import re
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from p2v_sync.units import MIB
from tests.integration.cli import Lab, assert_equal, change, counters_add_up, flip

SIZE = 8 * MIB


def test_the_second_run_sends_nothing_and_the_third_what_changed(lab: Lab) -> None:
    image = lab.image()
    first = lab.p2v("sync", image, lab.out)
    assert first.out == ""
    lines = first.err.splitlines()
    assert lines[0] == "web: initial pass 1 begins: 8.0 MiB"
    assert re.fullmatch(r"web: initial pass 1 complete in \S+ s: zero .* sent .*", lines[1])
    assert re.fullmatch(r"web: verified \(auto\): .* read back, all equal", lines[2])
    assert len(lines) == 3
    assert_equal(image, lab.replica("web"))
    assert lab.replica("web").stat().st_blocks * 512 < SIZE * 3 / 4
    assert "sent 0 B" in lab.p2v("sync", image, lab.out).err
    change(image, 5 * MIB + 123, b"changed")
    (finished,) = lab.sync(image).named("pass_finished")
    assert (finished["kind"], finished["number"]) == ("incremental", 3)
    assert 0 < finished["counters"]["sent"] <= 256 * 1024
    assert_equal(image, lab.replica("web"))


def test_p1_an_image_is_left_as_it_is(lab: Lab) -> None:
    image = lab.image()
    content = image.read_bytes()
    image.chmod(0o444)
    before = image.stat()
    lab.sync(image, "--verify", "full")
    lab.sync(image)
    after = image.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert image.read_bytes() == content


def test_p6_a_block_that_becomes_zero_becomes_a_hole(lab: Lab) -> None:
    image = lab.noise()
    lab.sync(image)
    full = lab.replica("noise").stat().st_blocks
    change(image, MIB, bytes(4 * MIB))
    (finished,) = lab.sync(image).named("pass_finished")
    assert finished["counters"]["sent"] == 0
    assert lab.replica("noise").stat().st_blocks <= full - 4 * MIB // 512
    assert_equal(image, lab.replica("noise"))


def test_names_of_job_and_disks(lab: Lab) -> None:
    odd, plain = lab.image("my disk (1).img", MIB), lab.image("data.raw", MIB, seed=2)
    lab.sync(odd)
    assert_equal(odd, lab.out / "my_disk_1_" / "my_disk_1_.img")
    # The job takes the first one's name; the source is found again from another directory.
    done = lab.p2v("sync", "data.raw", "my disk (1).img", "out", "--json")
    assert {event["disk"] for event in done.events} == {"data", "my_disk_1_"}
    assert_equal(plain, lab.out / "data" / "data.img")
    assert_equal(odd, lab.out / "data" / "my_disk_1_.img")
    lab.sync(plain, "--job", "web01.example+x@y")
    assert_equal(plain, lab.out / "web01.example+x@y" / "data.img")


def test_one_failing_or_unchanged_disk_does_not_stop_the_others(lab: Lab) -> None:
    same, empty, fresh = lab.image("same.img"), lab.root / "empty.img", lab.image("new.img", seed=3)
    empty.touch()
    lab.sync(same, "--job", "all")
    done = lab.p2v("sync", same, empty, fresh, lab.out, "--job", "all", "--json", code=10)
    assert {each["disk"] for each in done.named("pass_finished")} == {"same", "new"}
    (failed,) = done.named("disk_failed")
    assert (failed["disk"], failed["error"], failed["exit_code"]) == ("empty", "DeviceError", 10)
    assert failed["hint"]
    assert done.complaints == [f"empty: failed: {empty} is empty: nothing to copy"]
    for path in (same, fresh):
        assert_equal(path, lab.out / "all" / f"{path.stem}.img")
    disks = map(json.loads, lab.p2v("status", "all", "--json").out.splitlines())
    assert {disk["disk"]: disk["state"] for disk in disks if disk["disk"] != "empty"} == {
        "same": "complete",
        "new": "complete",
    }


@pytest.mark.parametrize("compress", ["auto", "zstd", "zlib", "none"])
def test_compression(lab: Lab, compress: str) -> None:
    image = lab.image()
    (finished,) = lab.sync(image, "--compress", compress, "--verify", "full").named("pass_finished")
    counters = finished["counters"]
    assert (counters["wire"] < counters["sent"]) is (compress in ("zstd", "zlib"))
    assert_equal(image, lab.replica("web"))


def test_digests_block_sizes_and_streams_may_change_between_passes(lab: Lab) -> None:
    image = lab.image()
    for step, options in enumerate(
        (
            ("--digest", "blake2b", "--block-size", "4K", "--streams", "1"),
            ("--block-size", "4M", "--streams", "4"),
            ("--digest", "xxh3"),
            ("--block-size", "64k", "--digest", "auto"),
        )
    ):
        change(image, step * MIB + 5, b"step %d" % step)
        done = lab.sync(image, *options)
        (finished,) = done.named("pass_finished")
        assert counters_add_up(finished, SIZE)
        assert finished["number"] == step + 1
        assert_equal(image, lab.replica("web"))
        if step:
            # Read again at the receiver, not sent again.
            assert finished["counters"]["sent"] <= 4 * MIB
            (notice,) = done.named("notice")
            assert "another one than before" in notice["text"]
    assert lab.sync(image).named("notice") == []


@pytest.mark.parametrize("scope", ["full", "sample", "none", "auto"])
def test_verification_after_a_pass(lab: Lab, scope: str) -> None:
    image = lab.image()
    verified = lab.sync(image, "--verify", scope).named("verified")
    if scope == "none":
        assert verified == []
        return
    assert [each["scope"] for each in verified] == [scope]
    assert verified[0]["mismatches"] == []
    if scope == "full":
        assert verified[0]["checked"] == SIZE


def test_verify_names_what_differs_and_the_next_sync_repairs_it(lab: Lab) -> None:
    image = lab.image()
    lab.sync(image)
    replica = lab.replica("web")
    assert "all equal" in lab.p2v("verify", "web").err
    flip(replica, 5 * MIB + 1000)
    done = lab.fails(51, "verify", "web", say=r"differs from .* at 5242880\+262144")
    assert "run the same sync again" in done.err
    disk = lab.status("web")
    assert "differs" in disk["last_error"]
    assert not disk["cutover_allowed"]
    # A change that leaves no trace in the file's times is noticed all the same, by the comparison.
    lab.sync(image)
    assert_equal(image, replica)
    assert lab.p2v("verify", "web", "--json").named("verified")[0]["checked"] == SIZE
    assert lab.status("web")["cutover_allowed"]


@pytest.mark.alone
def test_the_rate_is_kept_within_5_percent(lab: Lab) -> None:
    image = lab.noise(size=40 * MIB)
    done = lab.sync(image, "--rate", "8M", "--verify", "none", "--compress", "none")
    started, finished = done.named("pass_started")[0], done.named("pass_finished")[0]
    seconds = finished["time"] - started["time"]
    rate = finished["counters"]["wire"] / seconds
    assert 0.95 < rate / (8 * MIB) < 1.05


def test_status_during_a_run_and_after_it(lab: Lab) -> None:
    assert "No jobs in" in lab.p2v("status").out
    assert lab.p2v("status", "--json").out == ""
    image = lab.noise(size=12 * MIB)
    running = lab.start("sync", image, lab.out, "--rate", "1500K", "--json")
    running.until(lambda: "checkpoint_done" in running.out)
    disk = lab.status("noise")
    assert disk["running"]
    assert (disk["state"], disk["pass"], disk["kind"]) == ("running", 1, "initial")
    assert 0 < disk["done"] < disk["size"] == 12 * MIB
    assert 0 < disk["sent"] <= disk["done"]
    assert time.time() - _seconds(disk["last_checkpoint"]) < 30
    assert not disk["cutover_allowed"]
    text = lab.p2v("status").out
    for word in ("noise", "(running)", "12.0 MiB", "pass 1 (initial): running", "last checkpoint"):
        assert word in text
    running.signal(signal.SIGINT)
    running.wait(130)
    lab.sync(image)
    lab.sync(image)
    disk = lab.status("noise")
    assert (disk["state"], disk["percent"], disk["sent"]) == ("complete", 100.0, 0)
    assert (disk["pass"], disk["running"], disk["last_error"]) == (2, False, None)
    assert disk["next_pass_s"] < 10
    assert disk["cutover_allowed"]
    assert disk["target"] == str(lab.out)
    text = lab.p2v("status", "noise").out
    for word in ("not running", "pass 2 (incremental): complete", "100.0 %", "next pass"):
        assert word in text


def _seconds(stamp: str) -> float:
    return time.mktime(time.strptime(stamp.split(".")[0], "%Y-%m-%dT%H:%M:%S")) - time.timezone


def test_a_plain_sqlite3_says_what_happened(lab: Lab) -> None:
    lab.sync(lab.image())
    with sqlite3.connect(Path(os.environ["P2V_STATE"]) / "ledger.sqlite") as ledger:
        rows = ledger.execute("select * from history").fetchall()
    ledger.close()
    assert any("web" in map(str, row) for row in rows)


def test_status_and_verify_of_a_job_that_is_not_there(lab: Lab) -> None:
    for command in ("status", "verify"):
        lab.fails(61, command, "nope", say="there is no job nope")
    lab.sync(lab.image())
    for command in ("status", "verify"):
        lab.fails(61, command, "nope", say="known are: web")


def test_disks(lab: Lab) -> None:
    done = lab.p2v("disks")
    rows = done.out.splitlines()
    assert rows[0].split()[:2] == ["name", "size"] or "No disk found" in rows[0]
    found = [json.loads(line) for line in lab.p2v("disks", "--json").out.splitlines()]
    assert all(disk["path"].startswith("/dev/") for disk in found)
    assert all(disk["excluded"] == "loop device" for disk in found if disk["name"][:4] == "loop")
    lab.p2v("disks", "--sys-root", lab.root / "none", code=2)


def test_disks_of_another_machine(lab: Lab) -> None:
    sys_root = lab.root / "there" / "sys"
    device = sys_root / "devices" / "pci0000:00" / "host0" / "block" / "sda"
    (device / "queue").mkdir(parents=True)
    for name, text in (("size", "2097152"), ("dev", "8:0"), ("ro", "0"), ("removable", "0")):
        (device / name).write_text(f"{text}\n")
    (device / "queue" / "logical_block_size").write_text("512\n")
    (sys_root / "block").mkdir()
    (sys_root / "block" / "sda").symlink_to(device)
    (sys_root / "class" / "block").mkdir(parents=True)
    (sys_root / "class" / "block" / "sda").symlink_to(device)
    (disk,) = map(json.loads, lab.p2v("disks", "--json", "--sys-root", sys_root).out.splitlines())
    assert (disk["path"], disk["size"], disk["excluded"]) == ("/dev/sda", 1024 * MIB, None)
    assert "1.0 GiB" in lab.p2v("disks", "--sys-root", sys_root).out


def test_the_demo(lab: Lab) -> None:
    done = lab.p2v("demo", "--keep", lab.root / "kept")
    assert "1 reconnect(s)" in done.out
    assert "0 mismatches" in done.out
    assert "initial pass 1 resumes" in done.err
    assert_equal(
        lab.root / "kept" / "server.img", lab.root / "kept" / "replicas" / "demo" / "server.img"
    )
    lab.fails(3, "demo", "--keep", lab.root / "kept", say="is there already")
    lab.fails(3, "demo", "--keep", "/proc/nope", say="can't be made")


def test_help_is_there_for_everything(lab: Lab) -> None:
    overview = lab.p2v("--help").out
    for command in ("sync", "status", "verify", "disks", "demo"):
        assert re.search(rf"^  {command} ", overview, re.MULTILINE)
        text = lab.p2v(command, "--help").out
        options = re.findall(r"^  (?:-h, )?(--[a-z-]+)( [^ ].*?)?(?:  +(\S.*))?$", text, re.M)
        assert options
        # An option is explained on its line, or on the next one when the line is full.
        for name, _, explanation in options:
            assert explanation or re.search(rf"{name}.*\n {{20,}}\S", text), f"{command} {name}"
    assert lab.p2v("-h").out == overview
    assert re.fullmatch(r"p2v-sync, version \S+\n", lab.p2v("--version").out)
    assert "Usage:" in lab.p2v(code=2).err
