"""The guest's files: nothing in a guest leads out of it, and nothing but files is ever opened."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_sync.errors import FixupError, GuestFileError
from p2v_sync.fixup.tree import TEXT_MOST, Tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "guest"
    (root / "etc").mkdir(parents=True)
    (root / "etc/fstab").write_text("in the guest")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/fstab").write_text("of the live system")
    return root


@pytest.fixture
def tree(root: Path) -> Iterator[Tree]:
    with Tree(root) as tree:
        yield tree


@pytest.mark.parametrize(
    "target",
    ["/etc/fstab", "../etc/fstab", "../../../../../etc/fstab", "/../../etc/fstab", "fstab"],
)
def test_links_end_in_the_guest(root: Path, tree: Tree, target: str) -> None:
    (root / "etc/link").symlink_to(target)
    assert tree.read("/etc/link") == b"in the guest"
    assert tree.resolve("/etc/link") == "/etc/fstab"
    assert tree.read("/../../etc/fstab") == b"in the guest"


def test_links_of_directories_end_in_the_guest(root: Path, tree: Tree) -> None:
    (root / "sys").symlink_to("/etc")
    (root / "up").symlink_to("../../..")
    assert tree.read("/sys/fstab") == b"in the guest"
    assert tree.names("/up") == ["etc", "sys", "up"]
    assert tree.resolve("/sys/new") == "/etc/new"
    with tree.directory("/up") as fd:
        assert sorted(os.listdir(fd)) == ["etc", "sys", "up"]


def test_loops_and_links_to_nothing_are_errors(root: Path, tree: Tree) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    (root / "nothing").symlink_to("/no/such")
    with pytest.raises(GuestFileError):
        tree.read("/a")
    with pytest.raises(FileNotFoundError):
        tree.read("/nothing")
    with pytest.raises(GuestFileError, match="link to nothing"):
        tree.resolve("/nothing")


def test_links_through_the_live_systems_proc_lead_nowhere(root: Path, tree: Tree) -> None:
    (root / "live").symlink_to("/proc/self/root/etc/fstab")
    with pytest.raises(FileNotFoundError):
        tree.read("/live")


def test_fifos_are_not_opened(root: Path, tree: Tree) -> None:
    os.mkfifo(root / "etc/fifo")
    with pytest.raises(GuestFileError, match="no regular file"):
        tree.read("/etc/fifo")  # else it would wait for a writer
    with pytest.raises(GuestFileError), tree.writable("/etc/fifo"):
        pass


def test_devices_are_not_opened(root: Path, tree: Tree) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: a device node")
    os.mknod(root / "etc/disk", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    os.mknod(root / "etc/zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    for name in ("/etc/disk", "/etc/zero"):
        with pytest.raises(GuestFileError, match="no regular file"):
            tree.read(name)


def test_a_huge_file_is_none_of_configuration(root: Path, tree: Tree) -> None:
    with (root / "etc/huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(GuestFileError, match="too long"):
        tree.read("/etc/huge")
    assert tree.read_part("/etc/huge", 1 << 39, 3) == bytes(3)
    with (root / "etc/most").open("wb") as file:
        file.truncate(TEXT_MOST)
    assert len(tree.read("/etc/most")) == TEXT_MOST


def test_what_is_not_there(root: Path, tree: Tree) -> None:
    for name in ("/no", "/no/such", "/etc/fstab/below"):
        with pytest.raises(FileNotFoundError):
            tree.read(name)
    with pytest.raises(FileNotFoundError), tree.directory("/no"):
        pass
    with pytest.raises(GuestFileError):
        tree.read("/etc")
    with pytest.raises(FixupError, match="can't be opened"):
        Tree(root / "etc/fstab")
