"""The ledger on a real file system that the live system had set read-only."""

import contextlib
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2v_sync.device.readonly import writable_nodes
from p2v_sync.errors import PreseedError, StateError
from p2v_sync.state.ledger import Ledger
from p2v_sync.units import MIB
from p2v_sync.wizard import stick
from tests.integration.loop import Attach, tool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")

LABEL = f"P2V{os.getpid()}"  # of this run alone


@pytest.fixture
def device(tmp_path: Path, attach: Attach) -> Path:
    """A stick as udev's rule leaves it: read-only."""
    image = tmp_path / "stick"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    tool("mkfs.ext4", "-q", "-L", LABEL, image)
    loop = attach(image)
    tool("blockdev", "--setro", loop)
    return loop


@pytest.fixture
def point(tmp_path: Path, cleanup: ExitStack) -> Path:
    path = tmp_path / "state"
    cleanup.callback(subprocess.run, ["umount", "--quiet", str(path)], check=False)
    return path


def options_of(point: Path) -> set[str]:
    return set(tool("findmnt", "--noheadings", "--output", "VFS-OPTIONS", point).strip().split(","))


def test_a_ledger_is_kept_on_it(device: Path, point: Path) -> None:
    assert writable_nodes(device) == []
    with stick.mounted(device, point) as there:
        assert {"rw", "nosuid", "nodev", "noexec"} <= options_of(there)
        assert writable_nodes(device) == [device]
        with Ledger.open(there / "p2v-sync", print) as ledger:
            ledger.job("box", "/d")
    assert not os.path.ismount(point)
    assert writable_nodes(device) == [], "it is as read-only as it was before"
    with stick.mounted(device, point) as there, Ledger.open(there / "p2v-sync", print) as ledger:
        assert ledger.find_job("box").target == "/d"


def test_what_a_killed_run_left_mounted(device: Path, point: Path) -> None:
    tool("blockdev", "--setrw", device)
    point.mkdir()
    tool("mount", device, point)
    with stick.mounted(device, point) as there:
        (there / "file").write_text("x")
    assert not os.path.ismount(point)


def test_it_ends_after_a_failure_too(device: Path, point: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), stick.mounted(device, point):
        raise ZeroDivisionError
    assert not os.path.ismount(point)
    assert writable_nodes(device) == []


def test_p1_a_disk_that_is_copied_stays_read_only(device: Path) -> None:
    with (
        pytest.raises(PreseedError, match="which is to be copied"),
        stick.state_dir(str(device), [device.name]),
    ):
        pytest.fail("it was mounted")
    assert writable_nodes(device) == []


def test_what_is_no_file_system(tmp_path: Path, attach: Attach, point: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(MIB))
    loop = attach(tmp_path / "noise")
    with pytest.raises(StateError, match="can't be mounted") as caught, stick.mounted(loop, point):
        pytest.fail("it was mounted")
    assert "\n" not in str(caught.value)


def test_it_is_found_by_its_label(device: Path) -> None:
    assert stick.find(f"LABEL={LABEL}") == device
    asked = ("blkid", "--cache-file", "/dev/null", "--match-tag", "UUID", "--output", "value")
    (uuid,) = tool(*asked, device).split()
    assert stick.find(f"UUID={uuid}") == device
