"""What must be refused, and how: one clear line, an exit status of its own, nothing lost."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from p2v_sync.units import MIB
from tests.integration.cli import (
    Lab,
    assert_equal,
    change,
    checked,
    counters_add_up,
    flip,
    stop_when,
)

# Sources.


@pytest.mark.parametrize("size", [1, 511, 512, 4095, 4097, MIB + 1])
def test_tiny_and_odd_sizes(lab: Lab, size: int) -> None:
    image = lab.noise(size=size)
    (finished,) = lab.sync(image, "--verify", "full").named("pass_finished")
    assert counters_add_up(finished, size)
    assert_equal(image, lab.replica("noise"))
    flip(image, size - 1)
    lab.sync(image)
    assert_equal(image, lab.replica("noise"))


def test_sources_that_are_none(lab: Lab) -> None:
    empty, pipe = lab.root / "empty.img", lab.root / "pipe"
    empty.touch()
    os.mkfifo(pipe)
    lab.fails(10, "sync", empty, lab.out, say="is empty: nothing to copy")
    lab.fails(14, "sync", lab.root / "none.img", lab.out, say=r"there is no .*none\.img\n  ")
    lab.fails(10, "sync", lab.root, lab.out, say="is a directory, not a disk or image")
    lab.fails(10, "sync", pipe, lab.out, say="is a named pipe")
    lab.fails(10, "sync", "/dev/zero", lab.out, say="is a character device")
    assert list(lab.out.iterdir()) == []


def test_one_disk_twice_and_one_name_twice(lab: Lab) -> None:
    image = lab.image()
    link, hard = lab.root / "link.img", lab.root / "hard.img"
    link.symlink_to(image)
    os.link(image, hard)
    for other in (image, link, hard):
        lab.fails(4, "sync", image, other, lab.out, say="are the same disk")
    lab.fails(4, "sync", image, lab.image("sub/web.img"), lab.out, say=r"both become web\.img")
    assert list(lab.out.iterdir()) == []


def test_a_source_that_grows_or_shrinks_between_passes(lab: Lab) -> None:
    image = lab.image()
    lab.sync(image)
    content = image.read_bytes()
    for size in (12 * MIB, 4 * MIB):
        os.truncate(image, size)
        lab.fails(11, "sync", image, lab.out, say=rf"its size was {8 * MIB}, is {size}\n  name ")
        assert lab.replica("web").read_bytes() == content
    image.write_bytes(content)
    lab.sync(image)
    # Without the ledger it is the receiver that knows.
    os.truncate(image, 12 * MIB)
    lab.fails(47, "sync", image, lab.out, "--state", lab.root / "other", say=f"{8 * MIB} bytes")
    lab.sync(image, "--job", "bigger")
    assert_equal(image, lab.out / "bigger" / "web.img")


@pytest.mark.parametrize("size", [12 * MIB, 4 * MIB])
def test_a_source_that_grows_or_shrinks_during_a_pass(lab: Lab, size: int) -> None:
    image = lab.noise()
    content = image.read_bytes()
    running = lab.start("sync", image, lab.out, "--json", "--rate", "4M")
    stop_when(running, 0.3)
    os.truncate(image, size)
    done = running.wait(11)
    assert len(done.complaints) == 1, done.err
    assert "grew" in done.err if size > len(content) else "shrank" in done.err or "ends" in done.err
    assert not lab.status()["cutover_allowed"]
    image.write_bytes(content)
    lab.sync(image)
    assert_equal(image, lab.replica("noise"))
    assert lab.status()["cutover_allowed"]


def test_p11_a_source_that_changes_during_a_pass(lab: Lab) -> None:
    image = lab.noise()
    running = lab.start("sync", image, lab.out, "--json", "--rate", "4M")
    stop_when(running, 0.5)
    change(image, 100, b"written meanwhile")
    done = running.wait(11)
    assert "changed while it was read" in done.err
    assert "run the same command again" in done.err
    disk = lab.status()
    assert not disk["cutover_allowed"]
    assert "changed" in str(disk["last_error"])
    lab.sync(image)
    assert_equal(image, lab.replica("noise"))
    assert lab.status()["cutover_allowed"]


# Options and targets.


def test_usage(lab: Lab) -> None:
    image = lab.image(size=MIB)
    sync = ("sync", image, lab.out)
    lab.fails(2, *sync, "--nonsense", say="No such option")
    lab.fails(2, "sync", image, say="is one place, and two are needed")
    lab.fails(2, *sync, "--compress", "lzma", say="lzma")
    lab.fails(2, *sync, "--rate", "fast", say="write it like 256K, 50M or 1G")
    lab.fails(2, *sync, "--retry-for", "ever", say="write it like 30s, 10m or 24h")
    lab.fails(3, *sync, "--rate", "0", say="lets nothing through")
    lab.fails(3, *sync, "--block-size", "5K", say="a power of two from 4K to 4M")
    lab.fails(3, *sync, "--block-size", "8M", say="a power of two from 4K to 4M")
    for name in ("../x", "", ".hidden", "a/b", "a b"):
        lab.fails(3, *sync, "--job", name, say="can't be the name of a job")
    assert list(lab.out.iterdir()) == []


def test_targets_that_are_none(lab: Lab) -> None:
    image = lab.image(size=MIB)
    file = lab.root / "file"
    file.write_text("mine")
    lab.fails(3, "sync", image, file, say="is a file, not a directory")
    lab.fails(3, "sync", image, "ftp://host/dir", say="no transport called 'ftp'\n  write it as")
    lab.fails(3, "sync", image, "", say="target is empty")
    lab.fails(3, "sync", image, "tcp://host:99999", say="not a port")
    lab.fails(3, "sync", image, "tcp://host:1/dir", say="receiver chooses the directory")
    lab.fails(44, "sync", image, lab.root / "no" / "where", say="whether its disk is mounted")
    assert file.read_text() == "mine"
    # The last part of a path is made, as mkdir(1) does.
    lab.sync(image, target=lab.root / "new")


def test_p10_links_do_not_lead_out_of_the_directory(lab: Lab) -> None:
    image, victim = lab.image(size=MIB), lab.root / "victim"
    victim.write_bytes(b"precious")
    (lab.out / "web").mkdir()
    lab.replica("web").symlink_to(victim)
    lab.fails(44, "sync", image, lab.out, say="neither a regular file nor a block device")
    elsewhere = lab.root / "elsewhere"
    elsewhere.mkdir()
    (lab.out / "other").symlink_to(elsewhere)
    lab.fails(44, "sync", image, lab.out, "--job", "other", say="is not a directory")
    assert (victim.read_bytes(), list(elsewhere.iterdir())) == (b"precious", [])


def test_source_is_target(lab: Lab) -> None:
    image = lab.image(size=MIB)
    lab.sync(image)
    before = lab.replica("web").read_bytes()
    lab.fails(5, "sync", lab.replica("web"), lab.out, "--job", "web", say="source and target")
    link = lab.root / "web.lnk"
    link.symlink_to(lab.replica("web"))
    lab.fails(5, "sync", link, lab.out, "--job", "web", say="source and target")
    assert lab.replica("web").read_bytes() == before


def test_the_state_directory_can_not_be_used(lab: Lab) -> None:
    image = lab.image(size=MIB)
    lab.fails(60, "sync", image, lab.out, "--state", "/proc/nope", say="--state DIR")
    lab.fails(60, "sync", image, lab.out, "--state", image, say="--state DIR")
    lab.fails(60, "status", "--state", image / "x", say="--state DIR")


# Others.


def test_two_runs_on_one_job(lab: Lab) -> None:
    image = lab.noise()
    running = lab.start("sync", image, lab.out, "--json", "--rate", "1M")
    running.until_it_says("progress")
    lab.fails(62, "sync", image, lab.out, say=rf"process {running.pid}\) works on job noise\n  ")
    lab.fails(62, "verify", "noise", say="works on job noise")
    other = ("--state", lab.root / "other")
    lab.fails(46, "sync", image, lab.out, *other, say="held by another run.*\n  wait for it")
    running.wait()
    assert_equal(image, lab.replica("noise"))
    lab.sync(image, *other)


def test_p10_the_image_of_another_disk_has_that_name(lab: Lab) -> None:
    image = lab.image()
    lab.sync(image)
    before = lab.replica("web").read_bytes()
    other = lab.image("sub/web.img", seed=99)
    lab.fails(11, "sync", other, lab.out, say="not the disk that this job copies.*\n  name another")
    state = ("--state", lab.root / "other")
    lab.fails(47, "sync", other, lab.out, *state, say="the copy of another disk.*\n  name another")
    assert lab.replica("web").read_bytes() == before
    # A stranger's image without a manifest is compared, not believed, and not deleted.
    lab.replica("web").with_suffix(".manifest").unlink()
    done = lab.sync(image, *state)
    assert done.named("pass_finished")[0]["counters"]["sent"] == 0
    assert "manifest was missing" in done.named("notice")[0]["text"]


# The records.


def test_a_corrupt_ledger_is_set_aside(lab: Lab) -> None:
    image = lab.image()
    lab.sync(image)
    state = Path(os.environ["P2V_STATE"])
    ledger = state / "ledger.sqlite"
    for damage in (b"no database at all" * 1000, b"SQLite format 3\0" + bytes(100)):
        ledger.write_bytes(damage)
        for name in ("-wal", "-shm"):
            ledger.with_name(ledger.name + name).unlink(missing_ok=True)
        lab.fails(63, "status", say="ledger")
        done = lab.sync(image)
        assert "ledger" in done.named("notice")[0]["text"]
        assert done.named("pass_finished")[0]["counters"]["sent"] == 0
        assert_equal(image, lab.replica("web"))
        assert lab.status()["state"] == "complete"
    kept = [path for path in state.iterdir() if path.name.startswith("ledger.sqlite.")]
    assert len([path for path in kept if path.suffix not in ("-wal", "-shm")]) >= 2
    ledger.unlink()
    assert lab.sync(image).named("pass_finished")[0]["counters"]["sent"] == 0


@pytest.mark.parametrize("damage", ["gone", "garbage", "cut", "other"])
def test_p5_a_damaged_manifest_is_not_believed(lab: Lab, damage: str) -> None:
    image = lab.image()
    lab.sync(image)
    manifest = lab.replica("web").with_suffix(".manifest")
    flip(lab.replica("web"), MIB + 1)  # what only a real look finds
    if damage == "gone":
        manifest.unlink()
    elif damage == "garbage":
        manifest.write_bytes(b"garbage" * 1000)
    elif damage == "cut":
        os.truncate(manifest, manifest.stat().st_size // 2)
    else:
        manifest.unlink()
        with sqlite3.connect(manifest) as database:
            database.execute("create table mine (x)")
        database.close()
    done = lab.sync(image)
    assert "compared block by block" in done.named("notice")[0]["text"]
    (finished,) = done.named("pass_finished")
    assert finished["counters"]["sent"] == 256 * 1024
    assert_equal(image, lab.replica("web"))
    kept = list(manifest.parent.glob("web.manifest.aside-*"))
    assert len(kept) == (0 if damage == "gone" else 1)


# The image.


def test_p5_an_image_that_was_touched_is_read_again(lab: Lab) -> None:
    image = lab.image()
    lab.sync(image)
    replica = lab.replica("web")

    def again(reason: str, *options: str | Path) -> dict[str, int]:
        done = lab.sync(image, *options)
        assert reason in done.named("notice")[0]["text"]
        assert_equal(image, replica)
        counters: dict[str, int] = done.named("pass_finished")[0]["counters"]
        return counters

    # Changed.
    change(replica, 5 * MIB, b"test boot")
    assert again("was changed", "--state", lab.root / "fresh")["sent"] == 4096
    # Changed and given its old time.
    times = replica.stat()
    flip(replica, 1000)
    os.utime(replica, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert again("was changed")["sent"] == 4096
    # Swapped for another, which was given its old time.
    other = lab.noise("other.img", size=8 * MIB)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    kept = lab.root / "kept.img"
    shutil.copy2(replica, kept)
    os.replace(other, replica)
    assert again("was changed")["sent"] >= 5 * MIB
    # The old one restored.
    os.replace(kept, replica)
    assert again("was changed")["sent"] == 0
    # Deleted.
    replica.unlink()
    assert again("was gone")["sent"] >= 4 * MIB
    # Shorter, longer.
    os.truncate(replica, 3 * MIB)
    assert again("shorter than the disk")["sent"] >= MIB
    with replica.open("ab") as file:
        file.write(b"x")
    again("longer than the disk")
    assert len(list(replica.parent.glob("web.img.aside-*"))) == 1


def test_a_target_that_vanishes_and_comes_back(lab: Lab) -> None:
    image = lab.noise()
    running = lab.start("sync", image, lab.out, "--rate", "3M", "--json")
    stop_when(running, 0.3)
    lab.out.rename(lab.root / "away")
    done = checked(running.wait(42), 42)
    assert len(done.complaints) == 1, done.err
    (lab.root / "away").rename(lab.out)
    lab.sync(image)
    assert_equal(image, lab.replica("noise"))
    shutil.rmtree(lab.out)
    lab.out.mkdir()
    lab.sync(image)
    assert_equal(image, lab.replica("noise"))


def test_verify_of_what_is_gone(lab: Lab) -> None:
    image = lab.image()
    lab.sync(image)
    replica = lab.replica("web")
    away = lab.root / "away.img"
    replica.rename(away)
    lab.fails(42, "verify", "web", say="is not there\n  run p2v-sync sync first")
    assert not replica.exists()
    away.rename(replica)
    lab.p2v("verify", "web")
    image.unlink()
    lab.fails(14, "verify", "web", say="there is no")
