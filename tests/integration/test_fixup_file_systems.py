"""Fix-ups on real file systems: full, read-only, and with labels."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2v_sync.errors import FixupError
from p2v_sync.fixup.apply import apply, revert
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.tree import Tree
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
