"""What runs inside the lab kernel: overlays over real disks, and all that can stand on them.

    overlay_guest.py DIRECTORY

Each function ``check_…`` is one test; ``results.json`` in DIRECTORY says of each "" or why it
failed.  The disks are those of test_overlay_lab.py.  After each check nothing may be left: no map,
no loop device, no flag, no mount.
"""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

from p2v_sync.cli import main
from p2v_sync.device import ioctl
from p2v_sync.device.attributes import SYS
from p2v_sync.device.readonly import read_only
from p2v_sync.device.storage import Volume
from p2v_sync.device.topology import read_topology
from p2v_sync.errors import DeviceBusy, FixupError, OverlayBusy, OverlayError, OverlayFull
from p2v_sync.overlay import cow, mapper, snapshot
from p2v_sync.overlay.delta import open_delta
from p2v_sync.overlay.luks import Keys
from p2v_sync.overlay.mounting import OverlayMounter
from p2v_sync.overlay.snapshot import (
    MOUNTS,
    Overlay,
    check_untouched,
    check_usable,
    create_overlays,
    list_overlays,
    remove_overlays,
    usage_of,
)
from p2v_sync.overlay.stack import Assembly, assembled
from p2v_sync.units import KIB, MIB

GPT, XFS, PV1, PV2, MD1, MD2, BTRFS1, BTRFS2, LUKS = (
    Path("/dev", f"ubd{letter}") for letter in "abcdefghi"
)
ALL = (GPT, XFS, PV1, PV2, MD1, MD2, BTRFS1, BTRFS2, LUKS)
COW = 16 * MIB
COMPARED = 32 * MIB  # a multiple of the chunks
KEY = Path("key")
_NO_UDEV = ("--config", "activation { udev_sync=0 udev_rules=0 } backup { backup=0 archive=0 }")


def run(*argv: object) -> str:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def digest(disk: Path) -> str:
    with disk.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def writes(disk: Path) -> int:
    return int(Path("/sys/class/block", disk.name, "stat").read_text().split()[6])


def is_read_only(path: Path) -> bool:
    with path.open("rb") as file:
        return ioctl.is_read_only(file.fileno())


def prepare() -> None:
    """What can only be made with this kernel: a volume group and an array."""
    parts = [f"{disk}1" for disk in (PV1, PV2)]
    run("vgcreate", *_NO_UDEV, "vg-old", *parts)
    for name, place in (("ro-ot", parts[0]), ("data", parts[1])):
        size = ("--extents", "5", "--wipesignatures", "n", "--zero", "n")
        run("lvcreate", *_NO_UDEV, *size, "--name", name, "vg-old", place)
    run("mkfs.ext4", "-q", "/dev/mapper/vg--old-ro--ot")
    run("vgchange", *_NO_UDEV, "-an", "vg-old")
    array = ("--level=1", "--raid-devices=2", "--name=root", "--homehost=old", "--assume-clean")
    run("mdadm", "--create", "/dev/md0", "--run", *array, f"{MD1}1", f"{MD2}1")
    run("mkfs.ext4", "-q", "/dev/md0")
    run("mdadm", "--stop", "/dev/md0")


@contextlib.contextmanager
def overlaid(*disks: Path, cow_size: int = COW) -> Iterator[list[Overlay]]:
    made = create_overlays(disks, cow_size=cow_size)
    try:
        yield made
        for each in made:
            check_untouched(each)
    finally:
        remove_overlays()


def assert_nothing_left() -> None:
    topology = read_topology(SYS)
    assert not [node.dm_name for node in topology.disks() if node.dm_name], "maps"
    assert not [node.name for node in topology.disks() if node.backing_file], "loop devices"
    assert not [node.name for node in topology.disks() if node.name.startswith("md1")], "arrays"
    assert not os.path.ismount(cow.OWN_SPACE)
    assert not list(snapshot.RECORDS.glob("*"))
    assert not [disk for disk in [*ALL, Path(f"{GPT}1")] if is_read_only(disk)], "flags"


def volume(assembly: Assembly, **wanted: object) -> Volume:
    (found,) = [
        each
        for each in assembly.storage
        if all(getattr(each, key) == value for key, value in wanted.items())
    ]
    return found


@contextlib.contextmanager
def mounted(assembly: Assembly, one: Volume, *, writable: bool = True) -> Iterator[Path]:
    mounter = OverlayMounter(assembly.storage)
    point = MOUNTS / "root"
    mounter.mount(one, point, writable=writable)
    try:
        yield point
    finally:
        mounter.unmount_all()


def refused(kind: type[Exception], call: Callable[[], object]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


# The life of an overlay.


def check_life_cycle() -> None:
    nodes = [GPT, Path(f"{GPT}1"), Path(f"{GPT}2")]
    (one,) = create_overlays([GPT], cow_size=COW)
    assert all(map(is_read_only, nodes))
    assert one.device == Path("/dev/mapper/p2v-ubda")
    assert [each.to_json() for each in list_overlays()] == [one.to_json()]
    assert usage_of(one).state == "active"
    with one.device.open("r+b") as file:
        file.seek(MIB)
        file.write(b"x" * MIB)
        os.fsync(file.fileno())
    usage = check_usable(one)
    assert MIB < usage.used < 2 * MIB, usage
    assert usage.total == COW
    check_untouched(one)
    with read_only(GPT, left_by_us=True):
        pass
    assert all(map(is_read_only, nodes)), "a sync leaves an overlay's flags alone"
    assert "already" in refused(OverlayBusy, lambda: create_overlays([GPT]))
    assert "no overlay" in refused(OverlayError, lambda: remove_overlays(["ubdz"]))
    assert remove_overlays(["/dev/ubda"]) == ["ubda"]


def check_a_disk_that_was_read_only_stays_so() -> None:
    run("blockdev", "--setro", f"{GPT}1")
    with overlaid(GPT) as (one,):
        assert f"{GPT}1" not in one.made_read_only
    was = is_read_only(Path(f"{GPT}1"))
    run("blockdev", "--setrw", f"{GPT}1")
    assert was


def check_a_cow_directory_on_disk() -> None:
    directory = Path("space")
    directory.mkdir()
    (one,) = create_overlays([GPT], cow_size=COW, cow_dir=directory)
    assert one.cow == directory.resolve() / "p2v-ubda.cow"
    assert one.cow.exists()
    remove_overlays()
    assert not list(directory.iterdir())


def check_overflow_is_noticed_and_ships_nothing() -> None:
    with overlaid(GPT, cow_size=MIB) as (one,):
        with contextlib.suppress(OSError), one.device.open("r+b") as file:
            file.write(os.urandom(4 * MIB))
            os.fsync(file.fileno())
        assert usage_of(one).state == "invalid"
        assert "ran full" in refused(OverlayFull, lambda: check_usable(one))

        def read() -> None:
            with open_delta(one) as delta:
                list(delta)

        refused(OverlayFull, read)
        said, code = command("overlay", "status")
        assert code == 0
        assert "INVALID" in said


# Runs that were killed.


def in_a_run_that_is_killed(body: Callable[[], object]) -> None:
    pid = os.fork()
    if not pid:
        try:
            body()
        except Exception:  # noqa: BLE001 - the other process sees that something is missing
            traceback.print_exc()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def killed_before(place: str) -> None:
    """A run that makes an overlay and gets as far as this function, which it does not run."""

    def die(*_arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch(place, die):
        in_a_run_that_is_killed(lambda: create_overlays([GPT], cow_size=COW))


def check_leftovers_of_killed_runs_are_removed() -> None:
    package = "p2v_sync.overlay"
    for place in ("cow.make_file", "mapper.create", "cow.let_go"):
        killed_before(f"{package}.{place}")
        assert remove_overlays() == ["ubda"], place
        assert_nothing_left()


def check_a_killed_run_is_no_obstacle() -> None:
    killed_before("p2v_sync.overlay.mapper.create")
    assert is_read_only(GPT)
    with overlaid(GPT) as (one,):
        assert str(GPT) in one.made_read_only


def check_all_that_a_killed_conversion_left_is_removed() -> None:
    def convert() -> None:
        made = create_overlays([GPT, PV1, PV2, MD1, MD2], cow_size=COW)
        with assembled(made) as assembly:
            mounter = OverlayMounter(assembly.storage)
            mounter.mount(volume(assembly, disk="ubda", partition=1), MOUNTS / "a", writable=True)
            os.kill(os.getpid(), signal.SIGKILL)

    in_a_run_that_is_killed(convert)
    assert os.path.ismount(MOUNTS / "a")
    assert len(remove_overlays()) == 5


def check_a_map_without_a_record_is_removed() -> None:
    create_overlays([GPT], cow_size=COW)
    for record in snapshot.RECORDS.iterdir():
        record.unlink()
    assert remove_overlays() == []
    run("blockdev", "--setrw", GPT)
    for number in (1, 2, 3):
        run("blockdev", "--setrw", f"{GPT}{number}")


def check_the_maps_of_others_are_left_alone() -> None:
    run("dmsetup", "--noudevsync", "create", "p2v-ubda", "--table", "0 8 error")
    try:
        refused(OverlayBusy, lambda: create_overlays([GPT]))
        assert remove_overlays() == []
        assert "p2v-ubda" in run("dmsetup", "ls")
    finally:
        run("dmsetup", "--noudevsync", "remove", "p2v-ubda")


def check_what_is_in_use_is_refused() -> None:
    run("mount", "-o", "ro", f"{GPT}1", "mnt")
    assert "in use by" in refused(DeviceBusy, lambda: create_overlays([GPT]))
    run("umount", "mnt")
    run("vgchange", *_NO_UDEV, "-ay", "vg-old")
    said = refused(DeviceBusy, lambda: create_overlays([PV2]))
    assert "/dev/mapper/vg--old-data" in said, said
    run("vgchange", *_NO_UDEV, "-an", "vg-old")
    (one,) = create_overlays([XFS], cow_size=COW)
    run("mount", "-o", "nouuid", one.device, "mnt")
    assert "in use by" in refused(OverlayBusy, remove_overlays)
    run("umount", "mnt")
    remove_overlays()


# What stands on them, beside origins with the same UUIDs.


def assert_delta_is_the_difference(one: Overlay) -> tuple[int, int]:
    """origin + delta = what the overlay shows; only chunks that differ are in it.

    Of larger disks the start and the chunks of the delta: a snapshot is slow to read.
    """
    with one.origin.open("rb") as file:
        shown = bytearray(file.read(COMPARED))
    beyond = {}
    with open_delta(one) as delta:
        starts = []
        for start, content in delta:
            assert read_at(one.origin, start, len(content)) != content
            if start < COMPARED:
                shown[start : start + len(content)] = content
            else:
                beyond[start] = content
            starts.append(start)
        counts = delta.counts
    assert starts == sorted(set(starts))
    with one.device.open("rb") as file:
        assert file.read(COMPARED) == bytes(shown)
    for start, content in beyond.items():
        assert read_at(one.device, start, len(content)) == content
    return counts.changed, counts.unchanged


def read_at(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), length, start)


def check_an_edited_ext4_and_its_delta() -> None:
    with overlaid(GPT) as (one,):
        with assembled([one], ids={"ubda": ("disk/by-id/ata-OLD_1",)}) as assembly:
            assert not assembly.problems
            root = volume(assembly, partition=1)
            assert (root.device, root.kind, root.label) == (
                "/dev/mapper/p2v-ubda-part1",
                "ext4",
                "root",
            )
            assert root.part_label == "my root, 1"
            assert root.aliases == ("disk/by-id/ata-OLD_1-part1",)
            assert root.size == 24 * MIB
            assert volume(assembly, partition=3).kind == "swap"
            with mounted(assembly, root) as point:
                (point / "fstab").write_text("new\n" * 100)
                busy = refused(OverlayBusy, lambda: open_delta(one).__enter__())
                assert "not final" in busy
        with one.device.open("r+b") as file:  # the disk ends within this chunk
            file.seek(-10, os.SEEK_END)
            file.write(b"0123456789")
            file.seek(512 * 1024)  # the same as before: copied, but no difference
            same = file.read(8 * KIB)
            file.seek(512 * 1024)
            file.write(same)
        changed, unchanged = assert_delta_is_the_difference(one)
        assert 2 <= changed < 200, changed
        assert unchanged >= 2
        assert one.device.read_bytes()[-10:] == b"0123456789"


def check_looking_changes_nothing() -> None:
    disks = (GPT, XFS, PV1, PV2, MD1, MD2, BTRFS1, BTRFS2)
    with overlaid(*disks) as made:
        with assembled(made) as assembly:
            mountable = [each for each in assembly.storage if each.kind in ("ext4", "xfs", "btrfs")]
            assert len(mountable) == 7, mountable
            for each in mountable:
                with mounted(assembly, each, writable=False) as point:
                    refused(OSError, partial(Path.touch, point / "x"))
        for one in made:
            with open_delta(one) as delta:
                assert not list(delta), one.disk


def check_a_whole_disk_xfs() -> None:
    with overlaid(XFS) as (one,):
        with assembled([one]) as assembly:
            only = volume(assembly, disk="ubdb")
            assert (only.kind, only.partition, only.device) == ("xfs", 0, "/dev/mapper/p2v-ubdb")
            with mounted(assembly, only) as point:
                (point / "new").write_text("x")
        changed, _ = assert_delta_is_the_difference(one)
        assert changed


def check_lvm_on_partitions() -> None:
    with overlaid(PV1, PV2) as made:
        with assembled(made) as assembly:
            assert not assembly.problems
            names = {each.device: each.aliases for each in assembly.storage if not each.disk}
            assert set(names) == {"/dev/mapper/vg--old-ro--ot", "/dev/mapper/vg--old-data"}
            aliases = names["/dev/mapper/vg--old-ro--ot"]
            assert aliases[:2] == ("vg-old/ro-ot", "mapper/vg--old-ro--ot")
            uuid = read_dm_uuid("vg--old-ro--ot")
            assert aliases[3] == f"disk/by-id/dm-uuid-{uuid}"
            with mounted(assembly, volume(assembly, kind="ext4")) as point:
                (point / "new").write_text("x")
        assert [assert_delta_is_the_difference(one)[0] > 0 for one in made] == [True, False]


def read_dm_uuid(name: str) -> str:
    found = mapper.find(read_topology(SYS), name)
    return found.dm_uuid if found else ""


def check_half_of_a_volume_group() -> None:
    with overlaid(PV1) as made, assembled(made) as assembly:
        (problem,) = assembly.problems
        assert "vg-old is incomplete: 1 of its 2" in problem
        assert [each.aliases[0] for each in assembly.storage if not each.disk] == ["vg-old/ro-ot"]


def check_an_array_and_half_of_it() -> None:
    with overlaid(MD1, MD2) as made:
        with assembled(made) as assembly:
            assert not assembly.problems
            array = volume(assembly, kind="ext4")
            assert array.aliases[1:] == ("md/root", "disk/by-id/md-name-old:root")
            state = Path("/sys/class/block", Path(array.device).name, "md")
            assert (state / "array_state").read_text() == "read-auto\n"
            with mounted(assembly, array) as point:
                assert (state / "sync_action").read_text() == "frozen\n"
                (point / "new").write_text("x")
        assert all(assert_delta_is_the_difference(one)[0] for one in made)
    with overlaid(MD2) as made, assembled(made) as assembly:
        (problem,) = assembly.problems
        assert "need all 2 to start it" in problem, problem


def check_btrfs_on_two_devices() -> None:
    with overlaid(BTRFS1, BTRFS2) as made:
        # The kernel is told of the origins, as udev does at boot.
        run("btrfs", "device", "scan", BTRFS1, BTRFS2)
        with assembled(made) as assembly:
            assert not assembly.problems
            first = volume(assembly, disk="ubdg")
            with mounted(assembly, first) as point:
                (point / "new").write_bytes(os.urandom(MIB))
                shown = run("btrfs", "filesystem", "show", point)
                assert shown.count("/dev/mapper/p2v-ubd") == 2
        assert all(assert_delta_is_the_difference(one)[0] for one in made)
    with overlaid(BTRFS1) as made, assembled(made) as assembly:
        assert "lacks 1 of its devices" in assembly.problems[0]
        run("btrfs", "device", "scan", BTRFS2)
        mounter, before = OverlayMounter(assembly.storage), writes(BTRFS2)
        half = volume(assembly, disk="ubdg")
        refused(FixupError, lambda: mounter.mount(half, MOUNTS / "no", writable=True))
        assert writes(BTRFS2) == before, "P1: the other half is not under an overlay"


def check_an_encrypted_disk_locked_and_opened() -> None:
    with overlaid(LUKS) as made:
        for none in (Keys(), Keys([b"wrong", b"secre"])):
            with assembled(made, keys=none) as assembly:
                assert [each.kind for each in assembly.storage] == ["crypto_LUKS"]
                (problem,) = assembly.problems
                assert "/dev/ubdi is encrypted and stays locked" in problem
        ask = mock.Mock(return_value="secret")
        keys = Keys([b"wrong"], ask)
        with assembled(made, keys=keys) as assembly:
            locked, opened = volume(assembly, disk="ubdi"), volume(assembly, disk="")
            assert opened.device == f"/dev/mapper/p2v-luks-{locked.uuid}"
            run("mkfs.ext4", "-q", opened.device)
        with assembled(made, keys=keys) as assembly:
            assert volume(assembly, disk="").kind == "ext4"
        assert "/dev/ubdi" in ask.call_args[0][0]
        assert ask.call_count == 1


def check_a_locked_system_is_refused_and_the_key_file_is_for_it() -> None:
    said, code = command("inspect", str(LUKS))
    assert "no operating system was found" in said
    assert "stays locked" in said
    assert "--key-file" in said
    assert code != 0
    # With its newline it fits as well as without; there is no system in it, but it is open.
    KEY.with_name("line").write_text("secret\n")
    said, code = command("inspect", str(LUKS), "--key-file", str(KEY.with_name("line")))
    assert "no operating system was found" in said
    assert "locked" not in said
    assert "--no-fixups" in said
    said, code = command("inspect", str(LUKS), "--key-file", "/nowhere")
    assert said.startswith("p2v-sync: --key-file /nowhere: ")


def check_p1_only_overlays_are_mounted() -> None:
    point = MOUNTS / "no"
    with overlaid(GPT) as made, assembled(made) as assembly:
        mounter = OverlayMounter(assembly.storage)
        origin = Volume(f"{GPT}1", "ubda", 1, kind="ext4")
        assert "no overlay" in refused(
            FixupError, lambda: mounter.mount(origin, point, writable=True)
        )
        root = volume(assembly, partition=1)
        assert "option" in refused(
            FixupError, lambda: mounter.mount(root, point, writable=True, options="discard")
        )
    assert not os.path.ismount(point)


# The command.


def command(*arguments: str) -> tuple[str, int]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments])
    return out.getvalue() + err.getvalue(), code


def check_the_command() -> None:
    transcript = []

    def say(*arguments: str, code: int = 0) -> str:
        said, ended = command("overlay", *arguments)
        transcript.append(f"# p2v-sync overlay {' '.join(arguments)}\n{said}")
        assert ended == code, said
        return said

    said = say("create", str(GPT), str(XFS), "--cow-size", "16M")
    assert "/dev/ubda is read-only; /dev/mapper/p2v-ubda is its overlay" in said
    with Path("/dev/mapper/p2v-ubda").open("r+b") as file:
        file.write(os.urandom(15 * MIB))
    assert "NEARLY FULL" in say("status")
    (first, _) = [json.loads(line) for line in say("status", "--json").splitlines()]
    assert first["overlay"] == "/dev/mapper/p2v-ubda"
    assert first["percent"] > 80
    say("create", str(GPT), code=77)
    assert say("remove") == "removed: ubda, ubdb\n"
    assert say("status") == "No overlays.\n"
    say("create", f"{GPT}1", code=10)
    say("create", "/dev/nothing", code=14)
    say("create", "/dev/null", code=10)
    say("create", str(KEY.resolve()), code=10)
    say("create", str(GPT), str(GPT), code=4)
    say("create", str(GPT), "--cow-size", "900G", code=0)
    say("remove")
    say("create", str(XFS), "--cow-size", "100K", code=79)
    say("remove", "sdz", code=75)
    Path("transcript.txt").write_text("\n".join(transcript))


def checks() -> list[str]:
    """The names of the tests, in their order."""
    own = (
        name for name, thing in globals().items() if getattr(thing, "__module__", "") == __name__
    )
    return [name for name in own if name.startswith("check_")]


def run_all(directory: Path, only: list[str]) -> None:
    os.chdir(directory)
    Path("mnt").mkdir(exist_ok=True)
    prepare()
    results = {"prepare": ""}
    before = {disk: (digest(disk), writes(disk)) for disk in ALL}
    for name in [name for name in checks() if name in only or not only]:
        body = globals()[name]
        began = time.monotonic()
        try:
            body()
            assert_nothing_left()
            results[name] = ""
        except BaseException:  # noqa: BLE001 - reported by the test outside
            results[name] = traceback.format_exc()
            with contextlib.suppress(Exception):
                remove_overlays()
        Path("results.json").write_text(json.dumps(results))
        seconds = time.monotonic() - began
        sys.stderr.write(f"{seconds:.0f} s {name}: {results[name] or 'ok'}\n")
    changed = [disk for disk in ALL if before[disk] != (digest(disk), writes(disk))]
    results["p1"] = f"written to: {changed}" if changed else ""
    Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), sys.argv[2:])
