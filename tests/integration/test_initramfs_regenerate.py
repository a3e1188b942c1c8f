"""F21 with a guest whose dracut is a script: what it sees, and what becomes of what it makes."""

import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from p2v_sync.errors import FixupError
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import BootLoader, Generator, Guest, Kernel, LoaderKind
from p2v_sync.fixup.initramfs.drivers import InitramfsDrivers
from p2v_sync.fixup.initramfs.regenerate import (
    announced,
    candidates,
    regenerate,
    regenerate_all,
    replanned,
)
from p2v_sync.fixup.plan import Context, Finding, Hypervisor, Plan, Severity, Target
from p2v_sync.fixup.runner import make_plan
from p2v_sync.fixup.tree import Tree
from p2v_sync.units import GIB
from tests.contract import initramfs
from tests.contract.initramfs import IMAGE, MODULES, VERSION, context

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and chroot need root")

ALL = ("virtio", "virtio_ring", "virtio_pci", "virtio_blk", *initramfs.DISKS)
KERNEL = Kernel(VERSION, initramfs=IMAGE, modules=MODULES, is_default=True)
GUEST = Guest(architecture=os.uname().machine, generator=Generator.DRACUT, kernels=(KERNEL,))
OLD = initramfs.image(Generator.DRACUT) + bytes(4096)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a shell and little more."""
    for name in ("proc", "sys", "dev", "run", "tmp", "var/tmp", "boot", "etc", "usr/lib/dracut"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "usr/bin").mkdir()
    for name in ("sh", "env", "ls", "cat", "sleep", "id", "touch", "mv"):
        program = Path(shutil.which(name) or "").resolve()
        shutil.copy(program, tmp_path / "usr/bin" / name)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
        for library in re.findall(r"(/\S+)", listed.stdout):
            copy = tmp_path / library[1:]
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
    (tmp_path / "bin").symlink_to("usr/bin")
    initramfs.install(tmp_path)
    (tmp_path / IMAGE[1:]).write_bytes(OLD)
    (tmp_path / "new").write_bytes(initramfs.image(Generator.DRACUT, ALL))
    return tmp_path


def dracut(root: Path, script: str) -> None:
    file = root / "usr/bin/dracut"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_the_tool_makes_a_new_image_and_sees_no_disk(root: Path) -> None:
    dracut(
        root,
        'for last; do before=$image; image=$last; done; cat /new >"$before"\n'
        "ls /dev >/seen; ls /proc/sys/net/ipv4/conf >>/seen; echo $$ $# $1 $HOME >>/seen\n"
        "touch /sys/x || echo sys is kept >>/seen; touch /tmp/x\n",
    )
    regenerate(root, GUEST, KERNEL, Target())
    assert (root / IMAGE[1:]).read_bytes() == (root / "new").read_bytes()
    seen = (root / "seen").read_text().split()
    names = [
        "fd",
        "full",
        "null",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    ]
    assert seen == [
        *names,
        "all",
        "default",
        "lo",
        "1",
        "8",
        "--force",
        "/root",
        *["sys", "is", "kept"],
    ]
    assert not [*(root / "tmp").iterdir()]
    assert not [*(root / "dev").iterdir()]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no space left >&2; exit 3", "no space left"),
        (f"echo junk >{IMAGE}", "can't be read"),
        (f"cat /old >{IMAGE}", "has no virtio_pci"),
        ("", "has no virtio_pci"),
        (f"cat /huge >{IMAGE}", "bytes"),
    ],
)
def test_what_is_not_usable_is_taken_back(root: Path, script: str, said: str) -> None:
    (root / "old").write_bytes(initramfs.image(Generator.DRACUT))
    (root / "huge").write_bytes((root / "new").read_bytes() + bytes(100_000))
    dracut(root, script)
    with pytest.raises(FixupError, match=said):
        regenerate(root, GUEST, KERNEL, Target())
    assert (root / IMAGE[1:]).read_bytes() == OLD


def test_a_tool_that_hangs_is_ended_with_all_it_started(root: Path) -> None:
    dracut(root, "sleep 987 & sleep 987")
    with pytest.raises(FixupError, match="did not end within"):
        regenerate(root, GUEST, KERNEL, Target(), patience_s=2)
    until = time.monotonic() + 10
    while _sleepers() and time.monotonic() < until:
        time.sleep(0.1)
    assert not _sleepers()
    assert (root / IMAGE[1:]).read_bytes() == OLD


def _sleepers() -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_bytes() == b"sleep\x00987\x00":
                found.append(file.parent.name)
        except OSError:
            continue
    return found


def test_links_in_the_place_of_directories_are_not_mounted_over(root: Path) -> None:
    (root / "dev").rmdir()
    (root / "dev").symlink_to("/etc")
    dracut(root, "touch /seen")
    with pytest.raises(FixupError, match="no directory"):
        regenerate(root, GUEST, KERNEL, Target())
    assert not (root / "seen").exists()


@pytest.mark.parametrize(
    ("guest", "kernel"),
    [
        (Guest(architecture="s390x", generator=Generator.DRACUT), KERNEL),
        (Guest(architecture=GUEST.architecture), KERNEL),
        (GUEST, Kernel("-x", initramfs=IMAGE, modules=MODULES)),
        (GUEST, Kernel(VERSION, modules=MODULES)),
    ],
)
def test_what_is_not_even_tried(root: Path, guest: Guest, kernel: Kernel) -> None:
    dracut(root, "touch /seen")
    with pytest.raises(FixupError):
        regenerate(root, guest, kernel, Target(Hypervisor.KVM))
    assert not (root / "seen").exists()


# As the second way, where nothing can be appended.

MAKES = 'for last; do before=$image; image=$last; done; cat /new >/boot/x; mv /boot/x "$before"'
CUT = OLD + b"what is this?"


def of(guest: Guest) -> Context:
    return replace(context(), guest=guest)


def planned(root: Path) -> Plan:
    with Tree(root) as tree:
        return make_plan(tree, of(GUEST), [InitramfsDrivers()])


def made_anew(root: Path, room: int = GIB) -> list[Finding]:
    with Tree(root) as tree:
        return regenerate_all(tree, of(GUEST), lambda: room)


def test_it_comes_before_the_downgrade(root: Path) -> None:
    image = root / IMAGE[1:]
    image.write_bytes(CUT)
    image.chmod(0o640)
    os.chown(image, 3, 4)
    dracut(root, MAKES)
    before = planned(root)
    with Tree(root) as tree:
        (said,) = announced(Draft(tree), of(GUEST), before).findings
    assert said.severity is Severity.DOWNGRADE
    assert said.hint.startswith("the guest's own dracut is tried; if it fails: ")

    (note,) = made_anew(root)
    assert (note.severity, note.text) == (
        Severity.NOTE,
        f"{IMAGE} was made anew by the guest's own dracut",
    )
    assert image.read_bytes() == (root / "new").read_bytes()
    status = image.stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, 3, 4)
    after = replanned(before, planned(root), [note])
    assert not after.is_downgraded
    assert made_anew(root) == []


def test_when_it_fails_too_the_downgrade_stays(root: Path) -> None:
    (root / IMAGE[1:]).write_bytes(CUT)
    dracut(root, "echo no space left >&2; exit 3")
    before = planned(root)
    (warning,) = made_anew(root)
    assert warning.severity is Severity.WARNING
    assert "dracut made no usable initramfs" in warning.text
    assert "no space left" in warning.text
    assert (root / IMAGE[1:]).read_bytes() == CUT
    assert replanned(before, planned(root), [warning]).is_downgraded


def test_what_the_overlay_has_no_room_for_is_not_made(root: Path) -> None:
    (root / IMAGE[1:]).write_bytes(CUT)
    dracut(root, "touch /seen")
    (warning,) = made_anew(root, room=len(CUT))
    assert "too little room" in warning.text
    assert not (root / "seen").exists()


def test_a_file_that_outgrows_the_room_is_taken_back(root: Path) -> None:
    (root / IMAGE[1:]).write_bytes(CUT)
    dracut(root, f"cat /dev/zero >{IMAGE}")
    (warning,) = made_anew(root, room=1 << 20)
    assert "made no usable initramfs" in warning.text
    assert (root / IMAGE[1:]).read_bytes() == CUT


@pytest.mark.parametrize(
    ("image", "guest"),
    [
        (initramfs.image(Generator.DRACUT, ALL), GUEST),
        (b"MZ" + bytes(4096), GUEST),
        (CUT, replace(GUEST, boot_loaders=(BootLoader(LoaderKind.LILO),))),
        (CUT, replace(GUEST, architecture="s390x")),
        (CUT, replace(GUEST, generator=Generator.OTHER)),
        (CUT, replace(GUEST, generator=Generator.MKINITCPIO)),
        (CUT, replace(GUEST, kernels=(replace(KERNEL, initramfs=""),))),
        (CUT, replace(GUEST, kernels=(replace(KERNEL, version="-x"),))),
    ],
    ids=["ready", "unified", "lilo", "s390x", "unknown", "no-tool", "no-image", "version"],
)
def test_where_there_is_nothing_to_try(root: Path, image: bytes, guest: Guest) -> None:
    (root / IMAGE[1:]).write_bytes(image)
    dracut(root, MAKES)
    with Tree(root) as tree:
        assert [*candidates(Draft(tree), of(guest))] == []
