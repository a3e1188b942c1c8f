"""The wizard on a machine with partitions and flags of its own: the lab kernel, booted once."""

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from p2v_sync.units import MIB
from tests.contract.lab_kernel import NEEDS_LAB_KERNEL, run_in_lab_kernel
from tests.integration.loop import tool

pytestmark = [
    *NEEDS_LAB_KERNEL,
    *(
        pytest.mark.skipif(shutil.which(each) is None, reason=f"needs {each}")
        for each in ("mkfs.vfat", "mkfs.ext4", "sfdisk", "blkid")
    ),
    pytest.mark.slow,
    pytest.mark.timeout(1000),
]

READ_ONLY = {"/dev/ubda": 1, "/dev/ubda1": 1, "/dev/ubdb": 1, "/dev/ubdb1": 1}


def make_disk(image: Path, *maker: str) -> Path:
    """One partition with a file system, and noise behind it."""
    part = image.with_suffix(".part")
    part.write_bytes(b"")
    with part.open("r+b") as file:
        file.truncate(40 * MIB)
    tool(*maker, part)
    image.write_bytes(bytes(MIB) + part.read_bytes() + random.Random(1).randbytes(7 * MIB))
    tool("sfdisk", "--quiet", image, stdin="label: dos\nstart=1MiB, size=40MiB\n")
    return image


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("wizard")
    disk = make_disk(directory / "disk.img", "mkfs.ext4", "-q", "-L", "ROOT")
    stick = make_disk(directory / "stick.img", "mkfs.vfat", "-n", "P2VSTICK")
    before = digest(disk)
    argv = ["tests.integration.wizard_guest", str(directory)]
    modules = ("vfat", "nls_cp437", "nls_iso8859-1", "dm-snapshot", "loop", "bonding", "8021q")
    nics = ("52:54:00:00:00:01", "52:54:00:00:00:02")
    done = run_in_lab_kernel(
        argv, directory, images=[disk, stick], modules=modules, nics=nics, timeout_s=900
    )
    assert done.status == 0, done.log + done.kernel
    assert digest(disk) == before == digest(directory / "target" / "box" / "ubda.img")
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


def test_p1_the_ledger_is_on_a_stick_and_nothing_else_was_let_be_written_to(
    results: dict[str, Any],
) -> None:
    for name in ("kept", "again"):
        ended = results[name]
        assert ended["status"] == 0, ended["said"]
        assert ended["flags"] == READ_ONLY
        assert not ended["is_mounted"]
    assert "pass 2" in results["again"]["said"]
    assert "ledger.sqlite" in results["on the stick"]


@pytest.mark.parametrize("name", ["all", "on the disk"])
def test_p1_a_disk_that_is_copied_is_no_stick(name: str, results: dict[str, Any]) -> None:
    ended = results[name]
    assert ended["status"] == 6, ended["said"]
    assert "which is to be copied" in ended["said"]
    assert ended["flags"] == READ_ONLY


def test_too_little_memory_for_the_overlay(results: dict[str, Any]) -> None:
    ended = results["no memory"]
    assert ended["status"] == 79, ended["said"]
    assert "of free memory" in ended["said"]
    assert ended["flags"] == READ_ONLY


def test_a_vlan_of_a_bond(results: dict[str, Any]) -> None:
    assert results["bond"] == {
        "masters": ["p2vbond", "p2vbond"],
        "link": "p2vbond",
        "address": "192.0.2.7",
        "default": "p2vbond.7",
    }
