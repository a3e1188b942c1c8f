"""``--used-only`` with real file systems: what they use arrives, and nothing else does."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path

import pytest

from p2v_sync.device import used
from p2v_sync.units import KIB, MIB
from tests.integration.cli import Done, Lab, assert_equal, change
from tests.integration.loop import Attach, tool
from tests.integration.test_e2e_devices import serve

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices and mounts"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs /dev/loop-control"),
    pytest.mark.skipif(shutil.which("partclone.extfs") is None, reason="needs partclone"),
]

# How each is made, how large, and what looks for damage without repairing it.
MAKE = {
    "ext2": ("mkfs.ext2", "-q", "-F", "-b", "1024"),
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "ntfs": ("mkntfs", "-q", "-Q", "-F"),
    "fat16": ("mkfs.fat", "-F", "16"),
    "fat32": ("mkfs.fat", "-F", "32", "-s", "1"),
}
SIZES = {"xfs": 320 * MIB, "btrfs": 160 * MIB}
CHECK = {
    "ext2": ("e2fsck", "-f", "-n"),
    "ext4": ("e2fsck", "-f", "-n"),
    "xfs": ("xfs_repair", "-n", "-f"),
    "btrfs": ("btrfs", "check", "--readonly", "--check-data-csum"),
    "ntfs": ("ntfsfix", "--no-action"),
    "fat16": ("fsck.fat", "-n"),
    "fat32": ("fsck.fat", "-n"),
}
KINDS = list(MAKE)
DELETED = b"this file was deleted before the copy was made, and nobody should see it again. "


def make(kind: str, path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(SIZES.get(kind, 64 * MIB))
    tool(*MAKE[kind], path)
    return path


@contextmanager
def mounted(kind: str, image: Path, at: Path, options: str = "rw") -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    if kind == "ntfs":
        tool("ntfs-3g", "-o", options, image, at)
    else:
        # What xfs and btrfs know by UUID may be there twice: the disk and its replica.
        more = ",nouuid" if kind == "xfs" else ""
        tool("mount", "-o", f"loop,{options}{more}", image, at)
    try:
        yield at
    finally:
        tool("umount", at)


def is_fat(kind: str) -> bool:
    return kind.startswith("fat")


def put(kind: str, image: Path, files: dict[str, bytes], scratch: Path) -> None:
    """Write files, and flush them."""
    if is_fat(kind):
        for name, content in files.items():
            scratch.write_bytes(content)
            tool("mcopy", "-o", "-i", image, scratch, f"::{name}")
        return
    with mounted(kind, image, scratch.with_suffix(".mnt")) as point:
        for name, content in files.items():
            (point / name).write_bytes(content)
        os.sync()


def delete(kind: str, image: Path, name: str, scratch: Path) -> None:
    if is_fat(kind):
        tool("mdel", "-i", image, f"::{name}")
        return
    with mounted(kind, image, scratch.with_suffix(".mnt")) as point:
        (point / name).unlink()
        os.sync()


def get(kind: str, image: Path, names: list[str], scratch: Path) -> dict[str, bytes]:
    if is_fat(kind):
        for name in names:
            tool("mcopy", "-n", "-o", "-i", image, f"::{name}", scratch.with_name(name))
        return {name: scratch.with_name(name).read_bytes() for name in names}
    with mounted(kind, image, scratch.with_suffix(".mnt"), "ro") as point:
        return {name: (point / name).read_bytes() for name in names}


def lived_in(kind: str, image: Path) -> dict[str, bytes]:
    """A file system with some history; returns the files that are in it."""
    scratch = image.with_suffix(".scratch")
    make(kind, image)
    files = {f"kept{number}": os.urandom(700 * KIB) for number in range(4)}
    doomed = (DELETED * (16 * MIB // len(DELETED)))[: 16 * MIB]
    put(kind, image, {"kept0": files["kept0"], "doomed": doomed, **files}, scratch)
    delete(kind, image, "doomed", scratch)
    return files


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def deleted_in(path: Path) -> int:
    """Bytes of the deleted file; what is left may be in the first MiB and in short gaps."""
    return path.read_bytes().count(DELETED) * len(DELETED)


def assert_equal_or_zero(source: Path, replica: Path, sector: int = 512) -> int:
    """Each sector is as in the source, or zeros; returns how many bytes differ from the source."""
    assert source.stat().st_size == replica.stat().st_size
    left_out = 0
    with source.open("rb") as one, replica.open("rb") as other:
        while there := one.read(MIB):
            here = other.read(MIB)
            for at in range(0, len(there) if there != here else 0, sector):
                if there[at : at + sector] != here[at : at + sector]:
                    assert here[at : at + sector] == bytes(sector)
                    left_out += sector
    return left_out


def notices(done: Done) -> str:
    return "\n".join(event["text"] for event in done.named("notice"))


def sent(done: Done) -> int:
    (finished,) = done.named("pass_finished")
    return int(finished["counters"]["sent"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_system_arrives_without_what_was_deleted(lab: Lab, kind: str) -> None:
    image = lab.root / "web.img"
    files = lived_in(kind, image)
    before = blake2b(image.read_bytes()).digest()
    assert deleted_in(image) > 15 * MIB
    done = lab.sync(image, "--used-only", "--verify", "full")
    replica = lab.replica("web")
    assert deleted_in(replica) < 2 * MIB
    assert allocated(image) - allocated(replica) > 11 * MIB
    assert assert_equal_or_zero(image, replica) > 11 * MIB
    assert "copied whole" not in notices(done)
    # The replica is a whole file system, with all that is in it.
    looked_at = lab.root / "looked_at.img"
    shutil.copy(replica, looked_at)
    tool(*CHECK[kind], looked_at)
    assert get(kind, looked_at, list(files), lab.root / "scratch") == files
    assert blake2b(image.read_bytes()).digest() == before
    # The same view in later passes and verifications.
    assert sent(lab.sync(image, "--used-only")) == 0
    done = lab.p2v("verify", "web", "--json")
    assert "made with --used-only" in notices(done)
    assert "other places" not in notices(done)
    assert lab.status("web")["used_only"]
    assert not tool("losetup", "--associated", image)


def test_a_later_pass_without_it_sends_the_rest(lab: Lab) -> None:
    image = lab.root / "web.img"
    lived_in("ext4", image)
    lab.sync(image, "--used-only")
    assert sent(lab.sync(image, "--verify", "full")) > 11 * MIB
    assert_equal(image, lab.replica("web"))
    assert not lab.status("web")["used_only"]
    assert "--used-only" not in notices(lab.p2v("verify", "web", "--json"))
    # And back: what the target has too much of becomes a hole (P6).
    whole = allocated(lab.replica("web"))
    lab.sync(image, "--used-only", "--verify", "full")
    assert whole - allocated(lab.replica("web")) > 11 * MIB


def test_a_second_pass_sends_what_changed(lab: Lab) -> None:
    image = lab.root / "web.img"
    files = lived_in("ext4", image)
    lab.sync(image, "--used-only")
    scratch = lab.root / "scratch"
    more = {"new": os.urandom(3 * MIB)}
    put("ext4", image, more, scratch)
    delete("ext4", image, "kept0", scratch)
    done = lab.sync(image, "--used-only", "--verify", "full")
    assert 3 * MIB <= sent(done) < 6 * MIB
    looked_at = lab.root / "looked_at.img"
    shutil.copy(lab.replica("web"), looked_at)
    tool(*CHECK["ext4"], looked_at)
    files = {**files, **more}
    del files["kept0"]
    assert get("ext4", looked_at, list(files), scratch) == files


def test_verify_says_that_the_map_is_another_one(lab: Lab) -> None:
    image = lab.root / "web.img"
    lived_in("ext4", image)
    lab.sync(image, "--used-only")
    put("ext4", image, {"new": os.urandom(3 * MIB)}, lab.root / "scratch")
    done = lab.p2v("verify", "web", "--json", code=51)
    assert "the file systems use other places now than in that pass" in notices(done)


# Where a map must not be believed.


def copy_of_running(kind: str, image: Path, lab: Lab) -> Path:
    """An image as a power cut leaves it: written to, synced, never unmounted."""
    source = lab.root / "web.img"
    with mounted(kind, image, lab.root / "mnt") as point:
        (point / "old").write_bytes(os.urandom(2 * MIB))
        os.sync()
        with (point / "new").open("wb") as file:
            file.write(os.urandom(4 * MIB))
            file.flush()
            os.fsync(file.fileno())
        shutil.copy(image, source)
    return source


@pytest.mark.parametrize("kind", ["ext2", "ext4", "xfs", "btrfs"])
def test_after_a_crash_all_is_copied(lab: Lab, kind: str) -> None:
    image = lab.root / "behind.img"
    lived_in(kind, image)
    source = copy_of_running(kind, image, lab)
    done = lab.sync(source, "--used-only", "--verify", "full")
    assert "copied whole" in notices(done)
    assert "not cleanly unmounted" in notices(done)
    assert_equal(source, lab.replica("web"))


def ntfs_journal_in_use(image: Path) -> None:
    # The only long run of 0xFF of an empty volume is its empty journal.
    at = image.read_bytes().index(b"\xff" * MIB)
    page = bytearray(4096)
    page[:4], page[16:20], page[24:26] = b"RSTR", (4096).to_bytes(4, "little"), b"\x30\x00"
    change(image, at, bytes(page))


def ntfs_hibernated(image: Path) -> None:
    start = image.with_name("hiberfil.sys")
    start.write_bytes(b"hibr" + bytes(8188))
    tool("ntfscp", image, start, "hiberfil.sys")


def ntfs_damaged(image: Path) -> None:
    """Without the record of its $Bitmap, the sixth."""
    boot = image.read_bytes()[:512]
    table = int.from_bytes(boot[48:56], "little") * boot[13] * 512
    change(image, table + 6 * 1024, bytes(1024))


def fat_dirty(image: Path) -> None:
    change(image, 37, b"\x01")


def ext_errors(image: Path) -> None:
    change(image, 1024 + 58, b"\x03\x00")


def ext_free_counts(image: Path) -> None:
    change(image, 1024 + 12, b"\x01\x00\x00\x00")


def btrfs_extent_tree(image: Path) -> None:
    """All metadata but the super blocks and the chunk tree is wrong, in both copies."""
    text = tool("btrfs", "inspect-internal", "dump-tree", "-t", "extent", image)
    logical = next(line.split()[1] for line in text.splitlines() if line.startswith("leaf"))
    text = tool("btrfs-map-logical", "-l", logical, image)
    for line in text.splitlines():
        at = int(line.split("physical ")[1].split()[0])
        change(image, at + 200, os.urandom(4000))


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("ntfs", ntfs_journal_in_use, "not cleanly unmounted, or Windows is hibernated"),
    ("ntfs", ntfs_hibernated, "Windows is hibernated"),
    ("ntfs", ntfs_damaged, "ntfscat"),
    ("fat16", fat_dirty, "not cleanly unmounted"),
    ("ext4", ext_errors, "it has errors"),
    ("ext4", ext_free_counts, "partclone.extfs"),
    ("btrfs", btrfs_extent_tree, "partclone.btrfs"),
]


@pytest.mark.parametrize(
    ("kind", "damage", "reason"), DAMAGE, ids=[damage.__name__ for _, damage, _ in DAMAGE]
)
def test_what_is_doubtful_is_copied_whole(
    lab: Lab, kind: str, damage: Callable[[Path], None], reason: str
) -> None:
    image = make(kind, lab.root / "web.img")
    with image.open("r+b") as file:  # what would be left out
        file.seek(image.stat().st_size * 3 // 4)
        if not any(file.read(4 * MIB)):
            file.seek(image.stat().st_size * 3 // 4)
            file.write(os.urandom(4 * MIB))
    damage(image)
    done = lab.sync(image, "--used-only", "--verify", "full")
    assert "copied whole" in notices(done)
    assert reason in notices(done)
    assert_equal(image, lab.replica("web"))


# Disks with partitions.


def write_whole(disk: Path, start: int, content: Path) -> None:
    change(disk, start, content.read_bytes())


@pytest.fixture
def partitioned(lab: Lab) -> tuple[Path, dict[str, tuple[int, int]], dict[str, bytes]]:
    """(GPT disk, all else noise; start and length of its parts; the files in its ext4)."""
    disk = lab.root / "server.img"
    parts = {"ext4": (4, 64), "swap": (72, 8), "fat16": (80, 64), "unknown": (144, 8)}
    parts["lvm"] = (152, 16)
    size = 172 * MIB
    disk.write_bytes(os.urandom(4 * MIB) * 43)
    rows = [f"start={start * 2048}, size={length * 2048}" for start, length in parts.values()]
    tool("sfdisk", "-q", disk, stdin="\n".join(["label: gpt", *rows]))
    files = lived_in("ext4", lab.root / "part.img")
    write_whole(disk, parts["ext4"][0] * MIB, lab.root / "part.img")
    lived_in("fat16", lab.root / "part2.img")
    write_whole(disk, parts["fat16"][0] * MIB, lab.root / "part2.img")
    for name, command in (("swap", ("mkswap",)), ("lvm", ())):
        start, length = parts[name]
        area = lab.root / name
        area.write_bytes(disk.read_bytes()[start * MIB : (start + length) * MIB])
        if command:
            tool(*command, area)
        else:
            label = b"LABELONE" + (1).to_bytes(8, "little") + bytes(8) + b"LVM2 001"
            change(area, 512, label)
        write_whole(disk, start * MIB, area)
    assert disk.stat().st_size == size
    in_bytes = {name: (start * MIB, length * MIB) for name, (start, length) in parts.items()}
    return disk, in_bytes, files


@pytest.mark.parametrize("as_device", [False, True], ids=["image", "device"])
def test_p1_a_disk_with_partitions(
    lab: Lab,
    attach: Attach,
    partitioned: tuple[Path, dict[str, tuple[int, int]], dict[str, bytes]],
    as_device: bool,
) -> None:
    disk, parts, files = partitioned
    before = disk.read_bytes()
    source = attach(disk) if as_device else disk
    done = lab.sync(source, "--used-only", "--verify", "full", "--job", "j")
    replica = lab.out / "j" / f"{source.stem}.img"
    after = replica.read_bytes()
    mapped = [parts["ext4"], parts["fat16"]]
    position = 0
    for start, length in [*mapped, (len(before), 0)]:
        # Tables, gaps, swap, LVM, unknown content, the backup GPT: byte for byte.
        is_equal = after[position:start] == before[position:start]
        assert is_equal, f"{position} to {start}"
        position = start + length
    for number in (2, 4, 5):
        assert f"partition {number} (" in notices(done)
    assert "partition 1 (" not in notices(done)
    assert deleted_in(replica) < 4 * MIB
    for (start, length), kind in zip(mapped, ("ext4", "fat16"), strict=True):
        one = lab.root / "one.img"
        one.write_bytes(after[start : start + length])
        tool(*CHECK[kind], one)
        if kind == "ext4":
            assert get(kind, one, list(files), lab.root / "scratch") == files
    is_untouched = disk.read_bytes() == before
    assert is_untouched
    lab.p2v("verify", "j")


def test_partitions_that_overlap_are_copied_whole(lab: Lab) -> None:
    disk = lab.root / "web.img"
    lived_in("ext4", lab.root / "part.img")
    with disk.open("wb") as file:
        file.truncate(80 * MIB)
    write_whole(disk, 4 * MIB, lab.root / "part.img")
    table = bytearray(512)
    table[440:444], table[510:512] = b"abcd", b"\x55\xaa"
    for number, (start, length) in enumerate([(8192, 131072), (100000, 20000)]):
        entry = bytes(4) + b"\x83" + bytes(3) + start.to_bytes(4, "little")
        table[446 + 16 * number : 462 + 16 * number] = entry + length.to_bytes(4, "little")
    change(disk, 0, bytes(table))
    done = lab.sync(disk, "--used-only")
    assert notices(done).count("copied whole") == 2
    assert_equal(disk, lab.replica("web"))


# Refusals.


def test_a_mounted_source_must_be_mounted_read_only(lab: Lab, attach: Attach) -> None:
    image = lab.root / "behind.img"
    files = lived_in("ext4", image)
    loop = attach(image)
    point = lab.root / "mnt"
    point.mkdir()
    arguments = ("sync", loop, lab.out, "--job", "j", "--seed", "--used-only")
    tool("mount", loop, point)
    try:
        lab.fails(12, *arguments, say="in use: .*mnt.*\n.*leave out --used-only")
        tool("mount", "-o", "remount,ro", point)
        lab.p2v(*arguments)
    finally:
        tool("umount", point)
    replica = lab.out / "j" / f"{loop.name}.img"
    assert deleted_in(replica) < 2 * MIB
    assert get("ext4", replica, list(files), lab.root / "scratch") == files


def test_without_partclone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    image = lab.image()
    monkeypatch.setattr(used, "which", lambda name: None if "partclone" in name else name)
    lab.fails(80, "sync", image, lab.out, "--used-only", say="partclone.*\n.*apt install partclone")
    assert not lab.replica("web").exists()


def test_without_the_right_to_make_a_loop_device(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make("ext4", lab.root / "web.img")
    fake = lab.root / "bin" / "losetup"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\necho 'losetup: failed to set up loop device: Permission denied' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    pattern = "Permission denied\n.*run as root, or leave out --used-only"
    lab.fails(10, "sync", image, lab.out, "--used-only", say=pattern)
    assert not lab.replica("web").exists()


def test_p12_bad_sectors_that_nobody_uses_do_not_matter(
    lab: Lab, attach: Attach, cleanup: ExitStack
) -> None:
    for program in ("nbdkit", "nbdfuse"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")
    image = lab.root / "behind.img"
    files = lived_in("ext4", image)
    content = image.read_bytes()
    deleted = content.index(DELETED * 2000)
    bad = (deleted // 4096 + 16) * 4096
    (lab.root / "bad.map").write_text(bad_places(len(content), bad))
    loop = serve(lab, image, attach, cleanup, f"ddrescue-mapfile={lab.root / 'bad.map'}")
    lab.p2v("sync", loop, lab.out, "--job", "j", code=13)
    lab.p2v("sync", loop, lab.out, "--job", "j", "--used-only")
    replica = lab.out / "j" / f"{loop.name}.img"
    assert get("ext4", replica, list(files), lab.root / "scratch") == files


def bad_places(size: int, *starts: int) -> str:
    """A map for nbdkit: 4 KiB at each place can't be read."""
    lines, position = ["0x0 + 1"], 0
    for start in sorted(starts):
        lines += [f"{position:#x} {start - position:#x} +", f"{start:#x} 0x1000 -"]
        position = start + 4096
    return "\n".join([*lines, f"{position:#x} {size - position:#x} +"]) + "\n"


def test_p12_the_rest_of_a_disk_with_bad_sectors_is_sent_by_a_run_without_it(
    lab: Lab, attach: Attach, cleanup: ExitStack
) -> None:
    for program in ("nbdkit", "nbdfuse"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")
    image = lab.root / "behind.img"
    files = lived_in("ext4", image)
    content = image.read_bytes()
    bad = content.index(files["kept1"][:1024]) // 4096 * 4096 + 8192
    (lab.root / "bad.map").write_text(bad_places(len(content), bad))
    loop = serve(lab, image, attach, cleanup, f"ddrescue-mapfile={lab.root / 'bad.map'}")
    lab.p2v("sync", loop, lab.out, "--job", "j", "--used-only", code=13)
    # Not the short way that tries just these places again: that pass was of another view.
    done = lab.p2v("sync", loop, lab.out, "--job", "j", "--json", code=13)
    assert "only what could not be read" not in notices(done)
    wanted = content[:bad] + bytes(4096) + content[bad + 4096 :]
    is_equal = (lab.out / "j" / f"{loop.name}.img").read_bytes() == wanted
    assert is_equal
