"""F21 with a guest whose dracut is a script: what it sees, and what becomes of what it makes."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from p2v_sync.errors import FixupError
from p2v_sync.fixup.guest import Generator, Guest, Kernel
from p2v_sync.fixup.initramfs.regenerate import regenerate
from p2v_sync.fixup.plan import Hypervisor, Target
from tests.contract import initramfs
from tests.contract.initramfs import IMAGE, MODULES, VERSION

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
    for name in ("sh", "env", "ls", "cat", "sleep", "id", "touch"):
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
