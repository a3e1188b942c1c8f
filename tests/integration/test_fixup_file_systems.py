"""Fix-ups on real file systems: full, read-only, and with labels."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.errors import FixupError
from p2v_sync.fixup.apply import apply, revert
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Generator, Guest
from p2v_sync.fixup.initramfs.drivers import InitramfsDrivers
from p2v_sync.fixup.plan import Context, Finding, Fixup, Plan, Severity
from p2v_sync.fixup.runner import make_plan
from p2v_sync.fixup.tree import Tree
from p2v_sync.units import MIB
from tests.contract import initramfs
from tests.integration.loop import tool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")

LABEL = b"system_u:object_r:etc_t:s0\0"


def mounted(cleanup: ExitStack, point: Path, *options: str) -> Path:
    point.mkdir(parents=True, exist_ok=True)
    tool("mount", *options, point)
    cleanup.callback(tool, "umount", point)
    return point


@pytest.fixture
def root(tmp_path: Path, cleanup: ExitStack) -> Path:
    """1 MiB of tmpfs with one file in it."""
    root = mounted(cleanup, tmp_path / "guest", "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    (root / "etc").mkdir()
    (root / "etc/text").write_text("old")
    return root


def carry_out(root: Path, edit: Callable[[Draft], None]) -> None:
    with Tree(root) as tree:
        draft = Draft(tree)
        with draft.of("F00-test"):
            edit(draft)
        apply(tree, draft.edits())


def test_no_space_for_an_appended_initramfs_leaves_all_as_it_was(root: Path) -> None:
    (root / "initrd.img").write_bytes(b"x" * 300_000)
    before = sorted(str(path) for path in root.rglob("*"))

    def edit(draft: Draft) -> None:
        draft.write("/etc/text", "new")
        draft.append("/initrd.img", bytes(800_000))

    with pytest.raises(FixupError, match="No space left on device; all is as before"):
        carry_out(root, edit)
    assert (root / "etc/text").read_text() == "old"
    assert (root / "initrd.img").stat().st_size == 300_000
    assert sorted(str(path) for path in root.rglob("*")) == before


class Writes:
    """Wants a file of so many bytes."""

    def __init__(self, path: str, length: int) -> None:
        self.key = f"F00-{length}"
        self._path, self._length = path, length

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context
        draft.write(self._path, bytes(self._length))
        yield from ()


def planned(root: Path, *fixups: Fixup) -> Plan:
    with Tree(root) as tree:
        return make_plan(tree, Context(Guest(), NOTHING_KNOWN, Machine()), fixups)


@pytest.fixture
def small_boot(tmp_path: Path, cleanup: ExitStack) -> Path:
    """A guest with 3 MiB of /boot."""
    (tmp_path / "guest/etc").mkdir(parents=True)
    mounted(cleanup, tmp_path / "guest/boot", "-t", "tmpfs", "-o", "size=3m", "tmpfs")
    return tmp_path / "guest"


def test_what_does_not_fit_is_said_by_the_plan_and_dropped(small_boot: Path) -> None:
    plan = planned(small_boot, Writes("/boot/a", MIB), Writes("/boot/b", MIB), Writes("/etc/c", 9))
    assert [edit.path for edit in plan.edits] == ["/boot/a", "/etc/c"]
    (finding,) = plan.findings
    assert finding.severity is Severity.DOWNGRADE
    assert "the file system of /boot/b in the guest is too full" in finding.text
    with Tree(small_boot) as tree:
        apply(tree, plan.edits)
    assert not (small_boot / "boot/b").exists()


def test_what_takes_no_more_room_fits_a_full_file_system(small_boot: Path) -> None:
    (small_boot / "boot/a").write_bytes(b"x" * (2 * MIB + 500_000))
    plan = planned(small_boot, Writes("/boot/a", 2 * MIB))
    assert [edit.path for edit in plan.edits] == ["/boot/a"]


def test_without_room_for_the_record_nothing_is_changed(root: Path) -> None:
    (root / "var").mkdir()
    plan = planned(root, Writes("/etc/text", 3))
    assert plan.edits == ()
    (finding,) = plan.findings
    assert finding.severity is Severity.DOWNGRADE
    assert "too little room for /var/lib/p2v-sync/manifest.json" in finding.text


def test_a_full_boot_costs_the_faster_bus_and_nothing_else(small_boot: Path) -> None:
    initramfs.install(small_boot)
    image = small_boot / initramfs.IMAGE[1:]
    image.write_bytes(initramfs.image(Generator.DRACUT))
    fill = small_boot / "boot/full"
    fill.write_bytes(bytes(2 * MIB))
    with Tree(small_boot) as tree:
        plan = make_plan(tree, initramfs.context(), [InitramfsDrivers()])
    assert plan.edits == []
    (finding,) = plan.findings
    assert finding.severity is Severity.DOWNGRADE
    assert f"the file system of {initramfs.IMAGE} is too full: " in finding.text
    fill.unlink()
    with Tree(small_boot) as tree:
        assert len(make_plan(tree, initramfs.context(), [InitramfsDrivers()]).edits) == 1


def test_a_read_only_file_system_is_said(root: Path) -> None:
    tool("mount", "-o", "remount,ro", root)
    with pytest.raises(FixupError, match="Read-only file system; all is as before"):
        carry_out(root, lambda draft: draft.write("/etc/text", "new"))


def test_labels_stay_and_new_files_get_one(root: Path) -> None:
    os.setxattr(root / "etc/text", "security.selinux", LABEL)

    def edit(draft: Draft) -> None:
        draft.write("/etc/new", "x")
        draft.write("/etc/text", "y")

    carry_out(root, edit)
    assert os.getxattr(root / "etc/new", "security.selinux") == LABEL
    assert os.getxattr(root / "etc/text", "security.selinux") == LABEL


def test_a_removed_file_comes_back_with_its_label(root: Path) -> None:
    os.setxattr(root / "etc/text", "security.selinux", LABEL)
    os.chown(root / "etc/text", 12, 34)
    (root / "etc/text").chmod(0o604)
    carry_out(root, lambda draft: draft.remove("/etc/text"))
    with Tree(root) as tree:
        revert(tree)
    found = (root / "etc/text").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12, 34, 0o604)
    assert os.getxattr(root / "etc/text", "security.selinux") == LABEL
