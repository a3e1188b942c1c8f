"""Applying a plan and taking it back: all or nothing, in place, and by the manifest alone."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2v_sync.errors import FixupError, GuestFileError
from p2v_sync.fixup.apply import apply, read_manifest, revert
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.tree import Tree

MANIFEST = "var/lib/p2v-sync/manifest.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "guest"
    (root / "etc").mkdir(parents=True)
    (root / "var/lib").mkdir(parents=True)
    (root / "etc/text").write_bytes(b"old text")
    (root / "etc/text").chmod(0o640)
    (root / "etc/gone").write_bytes(b"gone soon")
    (root / "etc/gone").chmod(0o4711)
    (root / "etc/moved").write_bytes(b"moved")
    (root / "etc/long").write_bytes(b"initramfs")
    (root / "etc/link").symlink_to("text")
    (root / "etc/other").symlink_to("/no/where")
    return root


def picture(root: Path) -> dict[str, tuple[int, bytes | str]]:
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "",
        )
        for path in root.rglob("*")
    }


def everything(draft: Draft) -> None:
    """One of each kind."""
    draft.write("/etc/link", "new text, which is longer")
    draft.remove("/etc/gone")
    draft.rename("/etc/moved", "/etc/here")
    draft.append("/etc/long", b" and drivers")
    draft.symlink("/etc/other", "text")
    draft.symlink("/etc/new/link", "../text")
    draft.write("/etc/new/file", b"made", mode=0o755)


def carry_out(root: Path, edit: Callable[[Draft], None] = everything) -> None:
    with Tree(root) as tree:
        draft = Draft(tree)
        with draft.of("F00-test"):
            edit(draft)
        apply(tree, draft.edits(), "run 1")


def take_back(root: Path) -> list[str]:
    with Tree(root) as tree:
        return revert(tree)


def test_everything_is_done_and_taken_back(root: Path) -> None:
    before = picture(root)
    carry_out(root)
    assert (root / "etc/text").read_text() == "new text, which is longer"
    assert not (root / "etc/gone").exists()
    assert (root / "etc/here").read_text() == "moved"
    assert (root / "etc/long").read_text() == "initramfs and drivers"
    assert os.readlink(root / "etc/other") == "text"
    assert os.readlink(root / "etc/new/link") == "../text"
    assert (root / "etc/new/file").stat().st_mode & 0o777 == 0o755
    assert (root / MANIFEST).stat().st_mode & 0o777 == 0o600
    assert "/etc/text" in take_back(root)
    assert picture(root) == before


def test_rewriting_keeps_inode_mode_labels_and_hard_links(root: Path) -> None:
    os.link(root / "etc/text", root / "etc/same")
    before = (root / "etc/text").stat()
    os.setxattr(root / "etc/text", "user.test", b"kept")
    carry_out(root, lambda draft: draft.write("/etc/text", "x"))
    after = (root / "etc/text").stat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (
        before.st_ino,
        before.st_mode,
        before.st_uid,
    )
    assert os.getxattr(root / "etc/text", "user.test") == b"kept"
    assert (root / "etc/same").read_text() == "x"


def test_renaming_keeps_the_inode(root: Path) -> None:
    inode = (root / "etc/moved").stat().st_ino
    carry_out(root)
    assert (root / "etc/here").stat().st_ino == inode
    take_back(root)
    assert (root / "etc/moved").stat().st_ino == inode


def test_new_files_have_the_label_of_a_sibling(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = b"system_u:object_r:etc_t:s0\0"
    monkeypatch.setattr(Tree, "label", lambda _, path: label if path == "/etc/gone" else None)
    said = []
    monkeypatch.setattr(os, "setxattr", lambda _, name, value: said.append((name, value)))
    carry_out(root, lambda draft: draft.write("/etc/a-new-one", "x"))
    assert said == [("security.selinux", label)]


@pytest.mark.parametrize("call", ["fchmod", "fchown"])
def test_an_efi_system_partition_has_no_owners_or_permissions(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refusing(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, call, refusing)
    carry_out(root, lambda draft: draft.write("/etc/BOOTX64.EFI", b"x", mode=0o644))
    carry_out(root, lambda draft: draft.write("/etc/text", b"x", mode=0o600))
    assert (root / "etc/BOOTX64.EFI").read_bytes() == (root / "etc/text").read_bytes() == b"x"


def test_nothing_is_written_when_a_file_was_changed_since(root: Path) -> None:
    with Tree(root) as tree:
        draft = Draft(tree)
        with draft.of("F00-test"):
            everything(draft)
        (root / "etc/long").write_bytes(b"another one")
        before = picture(root)
        with pytest.raises(FixupError, match="/etc/long in the guest was changed since the plan"):
            apply(tree, draft.edits())
    assert picture(root) == before


@pytest.mark.parametrize("number", range(1, 12))
@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate", "rename", "unlink", "symlink"])
def test_a_failure_on_the_way_undoes_all(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    before = picture(root)
    real, calls = getattr(os, call), 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            if call == "pwrite":  # half of it is there
                real(arguments[0], bytes(arguments[1])[:3], arguments[2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **named)

    monkeypatch.setattr(os, call, failing)
    said = ""
    try:
        carry_out(root)
    except FixupError as error:
        said = str(error)
    if calls < number:  # so many there were not
        monkeypatch.undo()
        take_back(root)
    else:
        assert "No space left on device; all is as before" in said
    assert picture(root) == before


def test_what_can_not_be_undone_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    real = os.unlink

    def unlink(name: str, *, dir_fd: int) -> None:
        monkeypatch.setattr(os, "pwrite", failing)
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(FixupError, match=r"these could not be restored: .*/etc/gone"):
        carry_out(root)


@pytest.mark.parametrize("number", range(1, 12))
def test_a_run_that_was_killed_is_taken_back(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = picture(root)
    real, calls = os.fsync, 0

    def killing(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise KeyboardInterrupt
        real(fd)

    monkeypatch.setattr(os, "fsync", killing)
    with pytest.raises(KeyboardInterrupt):
        carry_out(root)
    monkeypatch.undo()
    with Tree(root) as tree:
        if read_manifest(tree) is not None:
            revert(tree)
    left = {"var/lib/p2v-sync"} & {*picture(root)}  # killed before there was a manifest
    assert {path: what for path, what in picture(root).items() if path not in left} == before


def test_what_was_interrupted_is_undone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = picture(root), os.unlink

    def once(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(os, "unlink", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "unlink", once)
    with pytest.raises(KeyboardInterrupt):
        carry_out(root)
    assert picture(root) == before


def test_nothing_is_built_on_what_was_killed(root: Path) -> None:
    before = picture(root)
    carry_out(root)
    edited(lambda record: record["runs"][0].update(is_complete=False), root)
    (root / "etc/text").write_bytes(b"half")
    with pytest.raises(FixupError, match="were interrupted"):
        carry_out(root, lambda draft: draft.write("/etc/long", "x"))
    take_back(root)
    assert picture(root) == before


def test_several_runs_are_taken_back_together(root: Path) -> None:
    before = picture(root)
    carry_out(root)
    carry_out(root, lambda draft: draft.write("/etc/text", "third"))
    carry_out(root, lambda draft: draft.write("/etc/new/file", "other"))
    take_back(root)
    assert picture(root) == before


def test_nothing_is_reverted_when_a_file_was_changed_since(root: Path) -> None:
    carry_out(root)
    (root / "etc/new/file").write_text("by the administrator")
    before = picture(root)
    with pytest.raises(FixupError, match="/etc/new/file in the guest was changed since"):
        take_back(root)
    assert picture(root) == before


def test_a_directory_with_something_else_in_it_stays(root: Path) -> None:
    carry_out(root)
    (root / "etc/new/mine").touch()
    (root / "var/lib/p2v-sync/ledger.sqlite").touch()
    take_back(root)
    assert [path.name for path in (root / "etc/new").iterdir()] == ["mine"]
    assert [path.name for path in (root / "var/lib/p2v-sync").iterdir()] == ["ledger.sqlite"]


def test_permissions_changed_since_stay(root: Path) -> None:
    carry_out(root, lambda draft: draft.write("/etc/text", "x"))
    (root / "etc/text").chmod(0o600)
    take_back(root)
    assert (root / "etc/text").stat().st_mode & 0o777 == 0o600


def test_without_a_manifest(root: Path) -> None:
    with pytest.raises(FixupError, match=r"has no /var/lib/p2v-sync/manifest\.json"):
        take_back(root)
    carry_out(root, lambda _: None)
    assert not (root / MANIFEST).exists(), "nothing done, nothing recorded"


def edited(change: Callable[[dict[str, Any]], None], root: Path) -> None:
    record = json.loads((root / MANIFEST).read_text())
    change(record)
    (root / MANIFEST).write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(format=2),
        lambda record: record.pop("runs"),
        lambda record: record["runs"][0]["edits"][0].update(path="/../../etc/fstab"),
        lambda record: record["runs"][0]["edits"][0].update(path="etc/fstab"),
        lambda record: record["runs"][0]["edits"][0].update(path="/etc//fstab"),
        lambda record: record["runs"][0]["edits"][0].update(path="/a\0b"),
        lambda record: record["runs"][0]["edits"][0].update(path=7),
        lambda record: record["runs"][0]["edits"][0]["before"].update(data="!"),
        lambda record: record["runs"][0]["edits"][0]["before"].update(data="AAAA"),
        lambda record: record["runs"][0]["edits"][0]["before"].update(mode=-1),
        lambda record: record["runs"][0]["edits"][0]["before"].update(type="device"),
        lambda record: record["runs"][0]["edits"][4]["before"].update(length="x"),
        lambda record: record.update(directories=["/.."]),
        lambda record: record.update(runs=[None]),
    ],
)
def test_a_hostile_manifest_is_refused(
    root: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    carry_out(root)
    edited(change, root)
    before = picture(root)
    with pytest.raises(GuestFileError, match="no record of ours"):
        take_back(root)
    assert picture(root) == before


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"{}", b"3" * 9999])
def test_a_manifest_that_is_none(root: Path, data: bytes) -> None:
    carry_out(root)
    (root / MANIFEST).write_bytes(data)
    with pytest.raises(GuestFileError, match="no record of ours"):
        take_back(root)


def test_no_link_in_the_guest_leads_a_reversion_out_of_it(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "text").write_text("of the live system")
    carry_out(root, lambda draft: draft.write("/etc/text", "x"))
    (root / "etc").rename(root / "old")
    (root / "etc").symlink_to(outside)
    with pytest.raises(FixupError):
        take_back(root)
    (root / "etc").unlink()
    (root / "etc").symlink_to("../../../outside")
    with pytest.raises(FixupError):
        take_back(root)
    assert (outside / "text").read_text() == "of the live system"
