"""Where images live, and when what is recorded of them is believed (P5, P9, P10)."""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2v_receiver import store, target, wire
from p2v_receiver.manifest import Manifest
from p2v_receiver.place import Place, check_name
from p2v_receiver.store import Lock
from p2v_receiver.target import Image, TargetError, boot_id
from p2v_receiver.wire import ErrorCode
from tests.contract.bench import BLOCK, SEGMENT, Bench, cut
from tests.contract.channel_suite import ROOT
from tests.contract.lab import ram_directory


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ram_directory() as root:
        yield Bench(root)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE_S", 0.1)


@pytest.fixture
def filled(bench: Bench) -> Bench:
    bench.fill("A")
    return bench


def refused(bench: Bench, code: ErrorCode, text: str, **changes: Any) -> None:
    """An OPEN that fails, keeps no descriptor and no lock."""
    before = open_files()
    with pytest.raises(TargetError, match=text) as caught, bench.work(**changes):
        pass
    assert caught.value.code is code, caught.value.message
    assert caught.value.hint
    del caught
    assert open_files() == before


def open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(link))
    return sorted(name for name in found if name.startswith("/") and "/proc/" not in name)


def held(bench: Bench) -> dict[Path, bytes]:
    """Every byte below the root, with links as what they are."""
    return {
        path: os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in bench.root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


# P5: a record is believed only while it provably is about this image.


def test_p5_an_image_as_it_was_left_is_believed(filled: Bench) -> None:
    with filled.work() as worker:
        assert worker.reasons == []
        assert not worker.target.created
        assert worker.target.manifest.is_certain(filled.layout)


def change_a_byte(bench: Bench) -> None:
    with bench.image.open("r+b") as file:
        file.seek(SEGMENT + 99)
        file.write(b"!")


def change_a_byte_and_put_the_time_back(bench: Bench) -> None:
    status = bench.image.stat()
    change_a_byte(bench)
    os.utime(bench.image, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(bench: Bench) -> None:
    status = bench.image.stat()
    other = bench.image.with_suffix(".other")
    other.write_bytes(bench.image.read_bytes()[::-1])
    other.replace(bench.image)
    os.utime(bench.image, ns=(status.st_atime_ns, status.st_mtime_ns))


def shorten(bench: Bench) -> None:
    os.truncate(bench.image, SEGMENT)


def lengthen(bench: Bench) -> None:
    os.truncate(bench.image, bench.size + 1)


def cut_manifest(bench: Bench) -> None:
    os.truncate(bench.manifest, 5000)


def empty_manifest(bench: Bench) -> None:
    bench.manifest.write_bytes(b"")


HARM: dict[str, tuple[Callable[[Bench], None], str]] = {
    "changed": (change_a_byte, "changed since the last checkpoint"),
    "old-time": (change_a_byte_and_put_the_time_back, "changed since the last checkpoint"),
    "swapped": (swap, "changed since the last checkpoint"),
    "shortened": (shorten, "shorter than the disk"),
    "lengthened": (lengthen, "longer than the disk"),
    "deleted": (lambda bench: bench.image.unlink(), "has been made anew"),
    "no-manifest": (lambda bench: bench.manifest.unlink(), "manifest was missing"),
    "cut-manifest": (cut_manifest, "manifest was damaged"),
    "empty-manifest": (empty_manifest, "manifest was damaged"),
    "nothing": (lambda bench: shutil.rmtree(bench.image.parent), ""),
}


@pytest.mark.parametrize("harm", HARM)
def test_p5_what_happened_to_the_image_is_noticed_and_healed(filled: Bench, harm: str) -> None:
    act, reason = HARM[harm]
    act(filled)
    with filled.work(finish=True) as worker:
        assert [text for text in worker.reasons if reason in text] or not reason
        content = worker.content("A", 0, filled.layout.blocks)
        wanted = cut(worker.message(content, 0).entries)
        worker.begin()
        for number, entries in worker.fetch().items():
            for at, entry in enumerate(cut(entries)):
                block = number * wire.SEGMENT_BLOCKS + at
                if entry != wanted[block]:
                    worker.write("A", block)
        worker.end()
    assert filled.image.read_bytes() == content
    assert filled.certain() == {0, 1, 2}


def test_p5_the_sample_sees_what_left_no_trace(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "identity", lambda _: [1])
    with filled.work(finish=True) as worker:
        worker.begin()
        worker.write("A", 0)
    with filled.image.open("r+b") as file:
        file.write(b"another boot sector")
    with filled.work() as worker:
        assert worker.reasons == ["a sample of the image does not match the manifest"]
        assert not worker.target.manifest.is_certain(filled.layout)


def test_p5_the_sample_passes_over_what_nothing_is_known_of(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "identity", lambda _: [1])
    with filled.work() as worker:
        worker.begin()
        worker.write("A", 0)
        worker.session.checkpoint(quiet=True)
        worker.target.manifest.mark_uncertain([0])
        worker.target.manifest.lose([2])
    with filled.image.open("r+b") as file:
        file.write(b"another boot sector")
        file.seek(-5, os.SEEK_END)
        file.write(b"other")
    with filled.work() as worker:
        assert worker.reasons == []


@pytest.mark.parametrize(
    "changes", [{"block_size": 2 * BLOCK}, {"digest": "blake2b"}], ids=["blocks", "digest"]
)
def test_p5_other_parameters_are_another_record(filled: Bench, changes: dict[str, Any]) -> None:
    with filled.work(**changes) as worker:
        assert "another one than before" in worker.reasons[0]
        assert not worker.target.manifest.is_certain(worker.layout)
        assert not worker.target.created


def test_parameters_that_are_not_asked_for_stay(filled: Bench) -> None:
    with filled.work(block_size=None) as worker:
        assert worker.reasons == []
        assert worker.layout.block_size == BLOCK


def test_a_digest_that_one_end_does_not_have(bench: Bench) -> None:
    refused(bench, ErrorCode.VERSION, "no common digest", digest="md5")
    refused(bench, ErrorCode.VERSION, "no common digest", digests=("sha1",))
    with bench.work(digests=("blake2b",)) as worker:
        assert worker.target.manifest.header()["digest"] == "blake2b"


def test_p5_a_power_cut_between_image_and_manifest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(BaseException):
        pass

    def cut_off(*_: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "create", cut_off)
        with pytest.raises(PowerCut), bench.work():
            pass
    with bench.image.open("r+b") as file:
        file.write(b"who knows what")
    with bench.work() as worker:
        assert worker.reasons == ["the manifest was missing"]
        assert not worker.target.created
        assert cut(worker.fetch()[0])[0] != wire.ZERO


def test_p5_a_power_cut_before_the_manifest_has_its_name(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", raising(errno.EIO))
        refused(bench, ErrorCode.IO, "making")
    assert not bench.manifest.exists()
    with bench.work(finish=True) as worker:
        assert worker.reasons == ["the manifest was missing"]
    assert not Path(f"{bench.manifest}.new").exists()


def test_p5_a_power_cut_after_an_image_was_made_anew(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.image.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "reset", raising(errno.EIO))
        refused(filled, ErrorCode.IO, "opening")
    with filled.work() as worker:
        assert worker.reasons
        assert set(cut(worker.fetch()[0])) == {wire.ZERO}


def test_p5_the_journal_of_a_lost_manifest_is_not_rolled_back_into_a_new_one(
    filled: Bench,
) -> None:
    """A crash in a transaction, then somebody deletes the manifest but not its journal."""
    journal = Path(f"{filled.manifest}-journal")
    kept = filled.root / "kept"
    with filled.work() as worker:
        manifest = worker.target.manifest
        manifest._db.execute("PRAGMA cache_size = 1")
        with contextlib.suppress(ZeroDivisionError), manifest._change():
            for number in range(3):
                manifest._store(number, filled.layout.zero_entries(number), False)
            manifest._db.execute("UPDATE segments SET seal = x''")
            shutil.copy(journal, kept)
            raise ZeroDivisionError
    assert kept.stat().st_size > 4096
    filled.manifest.unlink()
    shutil.copy(kept, journal)
    with filled.work() as worker:
        assert worker.reasons == ["the manifest was missing"]
        assert not worker.target.manifest.is_certain(filled.layout)
        assert worker.target.manifest.header()["generation"] == 1
    aside = [path for path in filled.image.parent.iterdir() if "journal.aside" in path.name]
    assert [path.read_bytes() for path in aside] == [kept.read_bytes()]


# P9: failure deletes nothing.


@pytest.mark.parametrize("harm", HARM)
def test_p9_nothing_is_removed_cut_or_overwritten(
    filled: Bench, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """Opening may set aside, but every byte that was there is there afterwards."""
    HARM[harm][0](filled)
    before = held(filled)
    real = os.ftruncate

    def ftruncate(fd: int, length: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        assert path.endswith(".lock") or os.fstat(fd).st_size <= length, path
        real(fd, length)

    with monkeypatch.context() as patch:
        for name in ("unlink", "remove", "rmdir", "truncate", "replace"):
            patch.setattr(os, name, watched(name, getattr(os, name)))
        patch.setattr(os, "ftruncate", ftruncate)
        with filled.work(finish=True) as worker:
            worker.fetch()
    after = list(held(filled).values())
    for path, content in before.items():
        if path.suffix == ".lock" or path == filled.manifest:
            continue  # the record is ours to change; set aside it is whole
        assert any(each[: len(content)] == content for each in after), path
    if harm == "cut-manifest":
        assert before[filled.manifest] in after


def watched(name: str, real: Callable[..., None]) -> Callable[..., None]:
    def call(path: Any, *arguments: Any, **named: Any) -> None:
        assert str(path).endswith(".manifest.new"), f"{name} {path}"
        real(path, *arguments, **named)

    return call


def test_p9_what_is_set_aside_gets_names_of_its_own(filled: Bench) -> None:
    for _ in range(3):
        filled.image.write_bytes(b"x" * (filled.size + 1))
        with filled.work() as worker:
            assert "was longer" in worker.reasons[0]
            assert worker.target.created
    aside = [path for path in filled.image.parent.iterdir() if ".img.aside-" in path.name]
    assert [path.stat().st_size for path in aside] == [filled.size + 1] * 3


def test_p9_an_image_that_can_not_be_set_aside_stays(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengthen(filled)
    monkeypatch.setattr(os, "rename", raising(errno.EACCES))
    refused(filled, ErrorCode.READ_ONLY, "moving aside")


def raising(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# P10: the right place.


NO_NAMES = [
    *["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-x"],
    *["a b", "a\n", "a\0b", "a\\b", "x\x1b[2J", "é", "٣", "\ud800", "a" * 101],
]


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_p10_names_that_are_no_names(bench: Bench, name: str) -> None:
    refused(bench, ErrorCode.REFUSED, "can't be the name of a job", job=name)
    refused(bench, ErrorCode.REFUSED, "can't be the name of a disk", disk=name)
    assert not [*bench.root.iterdir()]


@pytest.mark.parametrize("name", ["a", "0", "sda1", "web-1.example.org", "a" * 100, "a+b@c_d"])
def test_p10_names_that_are(name: str) -> None:
    check_name(name, "job")


def test_p10_a_job_that_leads_elsewhere(bench: Bench) -> None:
    elsewhere = bench.root / "elsewhere"
    elsewhere.mkdir()
    bench.image.parent.symlink_to(elsewhere)
    refused(bench, ErrorCode.REFUSED, "not a directory")
    refused(bench, ErrorCode.REFUSED, "not a directory", create=False)
    bench.image.parent.unlink()
    bench.image.parent.write_text("a file")
    refused(bench, ErrorCode.REFUSED, "not a directory")
    assert not [*elsewhere.iterdir()]


@pytest.mark.parametrize("kind", ["link", "dangling", "directory", "fifo"])
@pytest.mark.parametrize("name", ["image", "manifest", "lock"])
def test_p10_files_that_are_none(bench: Bench, name: str, kind: str) -> None:
    precious = bench.root / "precious"
    precious.write_bytes(b"precious" * 1000)
    place = Path(getattr(bench.place, name))
    place.parent.mkdir()
    if kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to(precious if kind == "link" else bench.root / "nowhere")
    if (name, kind) == ("image", "dangling"):
        refused(bench, ErrorCode.IO, "No such file")
    else:
        refused(bench, ErrorCode.REFUSED, "neither a|not a regular file")
    assert precious.read_bytes() == b"precious" * 1000
    assert not (bench.root / "nowhere").exists()


def test_p10_a_socket_is_no_image(bench: Bench) -> None:
    bench.image.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(bench.image))
        refused(bench, ErrorCode.REFUSED, "neither a regular file nor")


def test_p10_a_directory_that_is_not_there(bench: Bench) -> None:
    lost = Bench(bench.root / "not" / "mounted")
    refused(lost, ErrorCode.REFUSED, "there is no directory")
    with Bench(bench.root / "new").work() as worker:
        assert worker.target.created


def test_p10_an_image_of_another_size_is_somebody_elses(filled: Bench) -> None:
    before = held(filled)
    refused(filled, ErrorCode.TAKEN, "is the copy of a disk of", size=filled.size + 1)
    del before[Path(filled.place.lock)]
    assert before.items() <= held(filled).items()


def test_p10_source_and_target_are_one(filled: Bench) -> None:
    status = filled.image.stat()
    place = {"boot_id": boot_id(), "dev": status.st_dev, "ino": status.st_ino}
    refused(filled, ErrorCode.SAME_FILE, "is the source itself", source_file=place)
    with filled.work(source_file={**place, "boot_id": "another machine"}) as worker:
        assert worker.reasons == []
    with filled.work(source_file={**place, "ino": [1]}):
        pass


def test_an_image_that_must_be_there(bench: Bench) -> None:
    refused(bench, ErrorCode.CHANGED, "is not there", create=False)
    bench.image.parent.mkdir()
    refused(bench, ErrorCode.CHANGED, "is not there", create=False)
    assert not bench.image.exists()


def test_more_blocks_than_anybody_can_remember(bench: Bench) -> None:
    size = wire.MAX_SEGMENTS * SEGMENT + 1
    refused(bench, ErrorCode.REFUSED, "too many blocks of 4096", size=size)
    assert not bench.image.exists()


# Locks.


def test_p10_a_second_run_is_refused(bench: Bench) -> None:
    with bench.work(run="one"):
        started = time.monotonic()
        refused(bench, ErrorCode.LOCKED, f"process {os.getpid()}", run="two")
        assert time.monotonic() - started < 10
    with bench.work(run="two"):
        pass


_HOLD = """
import signal, sys, time
sys.path.insert(0, sys.argv[1])
from p2v_receiver.store import Lock
lock = Lock(sys.argv[2], "one")
print("held", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    argv = [sys.executable, "-c", _HOLD, str(ROOT / "receiver"), str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_p10_a_lock_that_is_let_go_in_time_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PATIENCE_S", 20.0)
    with holder(tmp_path / "lock") as process:
        timer = threading.Timer(0.3, process.kill)
        timer.start()
        Lock(str(tmp_path / "lock"), "two").release()
        timer.join()


def test_p10_the_same_run_takes_the_lock_over(tmp_path: Path) -> None:
    with holder(tmp_path / "lock") as process:
        with pytest.raises(TargetError, match=f"process {process.pid}"):
            Lock(str(tmp_path / "lock"), "two")
        assert process.poll() is None
        Lock(str(tmp_path / "lock"), "one").release()
        assert process.wait() == -signal.SIGTERM


@pytest.mark.parametrize(
    "text",
    [
        '{"pid": -1, "run": "two"}',
        '{"pid": 0, "run": "two"}',
        '{"pid": 1, "run": "two"}',
        '{"pid": true, "run": "two"}',
        '{"pid": "1", "run": "two"}',
        '{"pid": 99999999999999999999, "run": "two"}',
        '{"pid": null, "run": "two"}',
        '{"run": "two"}',
        "[5]",
        "5",
        "",
        "\xff",
        "[" * 4096,
    ],
)
def test_p10_a_lock_file_that_lies_kills_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "lock"
    monkeypatch.setattr(store, "_TAKEOVER_S", 0.2)
    with holder(path):
        path.write_text(text, encoding="latin-1")

        def kill(*_: object) -> None:
            pytest.fail("somebody is killed")

        monkeypatch.setattr(os, "kill", kill)
        with pytest.raises(TargetError, match="held by another run"):
            Lock(str(path), "two")
        monkeypatch.undo()


def test_a_lock_says_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("something longer that was there before, from another run" * 3)
    lock = Lock(str(path), "one")
    assert json.loads(path.read_text()) == {"pid": os.getpid(), "run": "one"}
    lock.release()


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, ErrorCode.FULL), (errno.EIO, ErrorCode.IO)]
)
def test_a_lock_that_can_not_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int, code: ErrorCode
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", raising(number))
        refused(bench, code, "locking")
    with bench.work():
        pass


# What goes wrong while opening is said, and lets everything go again.


@pytest.mark.parametrize(
    ("owner", "name", "text"),
    [
        (store, "sync_directory", "making"),
        (target, "sync_directory", "creating"),
        (os, "mkdir", "making"),
    ],
    ids=["directory", "image", "mkdir"],
)
def test_directories_that_can_not_be_flushed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, text: str
) -> None:
    monkeypatch.setattr(owner, name, raising(errno.EROFS))
    refused(bench, ErrorCode.READ_ONLY, text)


def test_a_short_image_that_can_not_be_made_longer(
    filled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(filled)
    real = os.ftruncate

    def full(fd: int, length: int) -> None:
        if length:
            raise OSError(errno.EFBIG, "File too large")
        real(fd, length)

    monkeypatch.setattr(os, "ftruncate", full)
    refused(filled, ErrorCode.FULL, "extending")
    assert filled.image.stat().st_size == SEGMENT


def test_a_manifest_that_can_not_be_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TargetError(ErrorCode.FULL, "the manifest: full", "make room")

    monkeypatch.setattr(Manifest, "_set", fail)
    monkeypatch.setattr(Manifest, "create", fail)
    refused(bench, ErrorCode.FULL, "the manifest: full")


def test_places_do_not_meet(tmp_path: Path) -> None:
    """No name of a disk makes one of its files that of another disk."""
    names = ["a", "a.img", "a.manifest", "a.lock", "a.map", "a.manifest.new", "a.img.aside-1"]
    files = [
        getattr(Place(str(tmp_path), "job", name), part)
        for name in names
        for part in ("image", "manifest", "lock", "map")
    ]
    assert len({*files}) == len(files)
