"""A real guest makes its initramfs anew, because nothing can be appended to the one it has.

On a copy of its disk, mounted here: what runs is the guest's own mkinitramfs.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine, Nic
from p2v_sync.device.storage import Storage, Volume
from p2v_sync.fixup.guest import Driver
from p2v_sync.fixup.plan import Bus, Target
from p2v_sync.fixup.profile import profile
from p2v_sync.fixup.tree import Tree
from p2v_sync.guest_disks import fix_up, look_at_directory
from p2v_sync.units import GIB
from tests.conftest import Tell
from tests.vm.conftest import NEEDS_GUESTS
from tests.vm.guests import Workshop
from tests.vm.machines import VIRTIO, boot
from tests.vm.recipes import NAMES
from tests.vm.test_boot import assert_runs, on_virtio, told

pytestmark = NEEDS_GUESTS


def volumes(disk: Path) -> list[tuple[int, Volume]]:
    """Of /dev/sda as its partitions have them, each with where it starts."""
    table = json.loads(subprocess.check_output(["sfdisk", "--json", disk]))["partitiontable"]
    found = []
    for number, partition in enumerate(table["partitions"], 1):
        start = partition["start"] * 512
        argv = ["blkid", "-p", "-o", "export", "-O", str(start), "-S", str(partition["size"] * 512)]
        said = subprocess.check_output([*argv, disk], text=True)
        tags = dict(line.split("=", 1) for line in said.splitlines())
        found.append((start, Volume("", "sda", number, tags["TYPE"], tags["UUID"])))
    return found


@contextmanager
def mounted(disk: Path, start: int, point: Path) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", "-o", f"loop,offset={start}", disk, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def test_the_guests_own_tool_gives_it_drivers(
    workshop: Workshop, tmp_path: Path, tell: Tell, request: pytest.FixtureRequest
) -> None:
    guest, disk = workshop.guest(NAMES), tmp_path / "disk.img"
    request.addfinalizer(lambda: disk.unlink(missing_ok=True))
    subprocess.run(["cp", "--sparse=always", *guest.images, disk], check=True)
    parts = volumes(disk)
    storage = Storage(tuple(volume for _, volume in parts), ("sda",))
    machine = Machine(nics=(Nic(NAMES.link, NAMES.mac, "e1000e"),))
    with mounted(disk, parts[0][0], tmp_path / "root") as root, Tree(root) as tree:
        (image,) = (root / "boot").glob("initrd.img-*")
        with image.open("ab") as file:
            file.write(b"what is this?" * 100)
        look = look_at_directory(tree, storage, machine)
        assert profile(look.guest, Target(), None).recommended.bus is Bus.SATA
        look, plan = fix_up(tree, look, Target(), "test", lambda: GIB)
    said = [finding.text for finding in plan.findings if finding.fixup == "F21-regenerate"]
    assert said == [f"/boot/{image.name} was made anew by the guest's own mkinitramfs"]
    assert not plan.is_downgraded, plan.findings
    kernel = look.guest.default_kernel
    assert kernel is not None
    assert kernel.drivers["virtio_blk"] is Driver.INITRAMFS
    assert profile(look.guest, Target(), plan).recommended.bus is Bus.VIRTIO

    done = boot(guest.on(VIRTIO), [disk], NAMES.mac)
    tell(told(done))
    assert_runs(done, guest, called=on_virtio)
