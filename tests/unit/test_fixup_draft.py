"""Drafts: what is planned is seen by those that come later, and by nobody else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_sync.errors import GuestFileError
from p2v_sync.fixup.draft import Appended, Content, Directory, Draft, Edit, Link
from p2v_sync.fixup.tree import TEXT_MOST, Tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a").write_bytes(b"old")
    (tmp_path / "link").symlink_to("/etc/a")
    return tmp_path


@pytest.fixture
def draft(root: Path) -> Iterator[Draft]:
    with Tree(root) as tree:
        yield Draft(tree)


def test_what_was_written_is_read_and_the_guest_stays(root: Path, draft: Draft) -> None:
    with draft.of("F1"):
        draft.write("/link", "new")
        draft.write("/etc/d/b", b"made")
        draft.symlink("/etc/l", "a")
    assert draft.text("/etc/a") == draft.text("/link") == "new"
    assert draft.names("/etc") == ["a", "d", "l"]
    assert draft.glob("/etc/*/b") == ["/etc/d/b"]
    assert draft.readlink("/etc/l") == "a"
    assert draft.status("/etc/a").size == 3
    assert [edit.path for edit in draft.edits()] == ["/etc/a", "/etc/d", "/etc/d/b", "/etc/l"]
    assert (root / "etc/a").read_bytes() == b"old"
    assert sorted(path.name for path in (root / "etc").iterdir()) == ["a"]


def test_a_fixup_that_fails_leaves_nothing(draft: Draft) -> None:
    with draft.of("F1"):
        draft.write("/etc/a", "one")
        draft.want_in_initramfs("/x", b"1")
    with pytest.raises(GuestFileError), draft.of("F2"):
        write_and_fail(draft)
    assert draft.text("/etc/a") == "one"
    assert not draft.exists("/etc/b")
    assert draft.for_initramfs == {"/x": b"1"}
    assert [edit.fixups for edit in draft.edits()] == [("F1",)]


def write_and_fail(draft: Draft) -> None:
    draft.write("/etc/a", "two")
    draft.write("/etc/b", "two")
    draft.want_in_initramfs("/x", b"2")
    draft.write("/etc", "no directory takes that")


def test_edits_say_who_made_them_and_only_they(draft: Draft) -> None:
    for key, text in (("F1", "one"), ("F2", "two"), ("F3", "two")):
        with draft.of(key):
            draft.write("/etc/a", text)
    (edit,) = draft.edits()
    assert edit.fixups == ("F1", "F2"), "F3 changed nothing"


def test_writing_what_is_there_is_no_edit(draft: Draft) -> None:
    with draft.of("F1"):
        draft.write("/etc/a", "old")
        draft.write("/etc/b", "x")
        draft.remove("/etc/b")
    assert draft.edits() == []


def test_removing_renaming_and_appending(root: Path, draft: Draft) -> None:
    (root / "long").write_bytes(b"x" * 9)
    with draft.of("F1"):
        draft.rename("/etc/a", "/etc/b")
        draft.append("/long", b"yz")
        draft.append("/long", b"!")
        draft.remove("/link")
    owner = (root / "etc").stat()
    old = Content(b"old", 0o644, owner.st_uid, owner.st_gid)
    assert draft.edits() == [
        Edit("/etc/a", old, None, ("F1",)),
        Edit("/etc/b", None, old, ("F1",)),
        Edit("/long", Appended(9), Appended(9, b"yz!"), ("F1",)),
        Edit("/link", Link("/etc/a"), None, ("F1",)),
    ]
    assert draft.read("/long") == b"x" * 9 + b"yz!"
    with pytest.raises(FileNotFoundError):
        draft.read("/etc/a")


def test_new_directories(draft: Draft) -> None:
    with draft.of("F1"):
        draft.make_directory("/x/y")
    assert [(edit.path, edit.after) for edit in draft.edits()] == [
        ("/x", Directory()),
        ("/x/y", Directory()),
    ]
    assert draft.is_directory("/x/y")


def test_what_is_refused(root: Path, draft: Draft) -> None:
    with (root / "etc/huge").open("wb") as file:
        file.truncate(TEXT_MOST + 1)
    (root / "etc/taken").touch()
    with draft.of("F1"):
        with pytest.raises(GuestFileError):
            draft.write("/etc", "x")
        with pytest.raises(GuestFileError):
            draft.write("/etc/huge", "x")
        with pytest.raises(GuestFileError):
            draft.remove("/etc")
        with pytest.raises(GuestFileError):
            draft.rename("/etc/a", "/etc/taken")
        with pytest.raises(GuestFileError):
            draft.symlink("/etc/a", "x")
    assert draft.edits() == []
