"""A server becomes a virtual machine, by the commands that its administrator types."""

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from p2v_sync.units import KIB, MIB
from tests.conftest import Tell
from tests.contract.lab_kernel import ubd
from tests.vm.conftest import NEEDS_GUESTS
from tests.vm.guests import Guest
from tests.vm.lab import Nic, Said, run_in_lab
from tests.vm.lab_commands import IMAGES
from tests.vm.machines import VIRTIO, boot
from tests.vm.recipes import NAMES
from tests.vm.test_boot import assert_runs, on_virtio, told

pytestmark = NEEDS_GUESTS

JOB = "server"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def are_equal(one: Path, other: Path) -> bool:
    return subprocess.run(["cmp", "--silent", one, other], check=False).returncode == 0


class Server(NamedTuple):
    """A guest on its old machine: a copy of its images, and a directory to work in."""

    guest: Guest
    disks: list[Path]
    directory: Path

    @property
    def images(self) -> Path:
        return self.directory / "images" / JOB

    @property
    def names(self) -> list[str]:
        """What the lab kernel calls the disks."""
        return [Path(ubd(number)).name for number in range(len(self.disks))]

    @property
    def replicas(self) -> list[Path]:
        return [self.images / f"{name}.img" for name in self.names]

    def is_replicated(self) -> bool:
        return all(map(are_equal, self.replicas, self.disks))

    def convert(self, *options: str) -> list[str]:
        sources = [f"/dev/{name}" for name in self.names]
        keys = ["--key-file", str(self.directory / "key")] if self.guest.recipe.passphrase else []
        return ["convert", *sources, str(IMAGES), "--job", JOB, *keys, *options]

    def run(self, *commands: list[str]) -> list[Said]:
        """P1: nothing is written to the disk, whatever is run."""
        before = [*map(digest, self.disks)]
        nics = [Nic(self.guest.recipe.link, self.guest.recipe.mac)]
        said = run_in_lab(self.disks, commands, self.directory, nics=nics)
        assert [each.code for each in said] == [0] * len(commands), said[-1].err
        assert all(each.written == dict.fromkeys(self.names, 0) for each in said)
        assert [*map(digest, self.disks)] == before
        return said


@pytest.fixture
def server(guest: Guest, tmp_path: Path) -> Iterator[Server]:
    disks = [tmp_path / image.name for image in guest.images]
    for image, disk in zip(guest.images, disks, strict=True):
        subprocess.run(["cp", "--sparse=always", image, disk], check=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "key").write_text(guest.recipe.passphrase)
    yield Server(guest, disks, tmp_path)
    shutil.rmtree(tmp_path)


def test_p1_p8_a_converted_guest_runs_on_virtio(server: Server, tell: Tell) -> None:
    recipe = server.guest.recipe
    (said,) = server.run(server.convert())
    assert "downgrade" not in said.err, said.err
    done = boot(server.guest.on(VIRTIO), server.replicas, recipe.mac)
    tell(told(done))
    assert_runs(done, server.guest, called=on_virtio)

    # Taken back, the images are the disks again; and only what changed there is sent after that.
    server.run(["rollback", JOB])
    assert server.is_replicated()
    changed = change_one_percent(server.disks[0])
    server.run(server.convert("--apply", "qcow2"))
    assert server.is_replicated(), "an overlay leaves the replica as it is"
    (status,) = server.run(["status", JOB, "--json"])
    sent = sum(json.loads(line)["sent"] for line in status.out.splitlines())
    tell(f"{changed // KIB} KiB changed, {sent // KIB} KiB sent again")
    assert sent <= 1.5 * changed + MIB


def change_one_percent(disk: Path) -> int:
    """Pages that nobody uses, behind all partitions, so that the guest stays whole."""
    chance = random.Random(1)
    size = disk.stat().st_size
    with disk.open("r+b") as file:
        start = file.seek(size - 32 * MIB)
        file.write(chance.randbytes(24 * MIB))
        return file.tell() - start


# What virt-v2v does, as far as it matters here: it writes into the images that it is told of.
CONVERTER = """#!/bin/sh
for last; do :; done
sed -n 's/.*<source file="\\([^"]*\\)".*/\\1/p' "$last" | while read -r image; do
    echo converted >>"$image"
done
"""


@pytest.mark.parametrize("guest", [NAMES], indirect=True, ids=["names"])
def test_p8_virt_v2v_works_above_the_replica(server: Server) -> None:
    program = server.directory / "programs" / "virt-v2v-in-place"
    program.parent.mkdir()
    program.write_text(CONVERTER)
    program.chmod(0o755)
    first, second = server.run(server.convert("--fixups", "virt-v2v"), server.convert())
    assert "ubda: converted by virt-v2v in ubda.qcow2, above the replica" in first.err
    assert "fixed up" not in first.err
    assert "the qcow2 overlay is moved aside" in second.err
    (aside,) = server.images.glob("ubda.qcow2.aside-*")
    assert aside.read_bytes().endswith(b"converted\n")
    server.run(["rollback", JOB])
    assert server.is_replicated()
