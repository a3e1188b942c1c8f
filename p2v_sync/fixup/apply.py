"""Carrying a plan out on a guest, and taking it back: the only writer.

Files are rewritten in place, so that inode, owner, permissions, labels and hard links stay; nobody
runs on the guest, and what a crash leaves is taken back by the manifest, which is written first.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from p2v_sync.errors import FixupError, GuestFileError
from p2v_sync.fixup.draft import Appended, Content, Directory, Edit, Link, State, renames_in
from p2v_sync.fixup.manifest import MANIFEST, Done, Manifest, Run, Witness, digest, witness
from p2v_sync.fixup.tree import TEXT_MOST, Status, Tree, split
from p2v_sync.units import MIB

Labels = Mapping[str, bytes]  # SELinux's, of files that are made again

_MANIFEST_MOST = 256 * MIB
_LABEL = "security.selinux"
_NOT_KNOWN_HERE = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def apply(tree: Tree, edits: Sequence[Edit], run: str = "") -> None:
    """Carry out ``edits``; ``run`` names this one in the manifest.

    Raises FixupError: before the first write when a file is not as the plan found it; later on,
    when one can't be written, after what was done was undone.
    """
    if not edits:
        return
    old = read_manifest(tree)
    if old is not None and not old.is_complete:
        raise FixupError(
            "earlier fix-ups of this guest were interrupted, so some may be half done",
            hint="take them back first: p2v-sync fixup revert",
        )
    for edit in edits:
        if _witness_of(tree, edit.path, edit.before) != witness(edit.before):
            raise FixupError(
                f"{edit.path} in the guest was changed since the plan",
                hint="nothing was written; make the plan again",
            )
    done = tuple(Done.of(edit, _label_of(tree, edit)) for edit in edits)
    # First of all the manifest: it takes the most room, and is wanted if we are killed.
    *before, last = _manifest_edits(tree, old, Run(run, done))
    _carry_out(tree, [*before, *edits, last], _labels(done))


def revert(tree: Tree) -> list[str]:
    """Take back all that the manifest says; it goes too.  Returns the paths, as they were done.

    Raises FixupError, before the first write, when there is no manifest or a file is not as we left
    it; later on as ``apply``.
    """
    manifest = read_manifest(tree)
    if manifest is None:
        raise FixupError(
            f"the guest has no {MANIFEST}", hint="no fix-ups were applied here, or were reverted"
        )
    steps = [*_backwards(tree, manifest), *_without_manifest(tree, manifest)]
    edits = manifest.edits()
    _carry_out(tree, steps, _labels(edits))
    return [edit.path for edit in edits]


def read_manifest(tree: Tree) -> Manifest | None:
    """None when there is none.  Raises GuestFileError for one that is not ours."""
    try:
        return Manifest.from_bytes(tree.read(MANIFEST, _MANIFEST_MOST))
    except FileNotFoundError:
        return None


# The manifest


def _manifest_edits(tree: Tree, old: Manifest | None, run: Run) -> Iterator[Edit]:
    directories = list(old.directories) if old else []
    if old is None:
        for path in _missing_above(tree, MANIFEST):
            directories.append(path)
            yield Edit(path, None, Directory(0o755), ())
    runs = old.runs if old else ()
    begun = Manifest((*runs, replace(run, is_complete=False)), tuple(directories)).to_bytes()
    ended = Manifest((*runs, run), tuple(directories)).to_bytes()
    # Not for everyone's eyes: what was in the guest's files before may be secret.
    before = Content(old.to_bytes(), 0o600) if old else None
    yield Edit(MANIFEST, before, Content(begun, 0o600), ())
    yield Edit(MANIFEST, Content(begun, 0o600), Content(ended, 0o600), ())


def _missing_above(tree: Tree, path: str) -> Iterator[str]:
    parent = split(path)[0]
    try:
        tree.status(parent)
    except FileNotFoundError:
        yield from _missing_above(tree, parent)
        yield parent


def _without_manifest(tree: Tree, manifest: Manifest) -> Iterator[Edit]:
    yield Edit(MANIFEST, Content(tree.read(MANIFEST, _MANIFEST_MOST), 0o600), None, ())
    for path in reversed(manifest.directories):
        yield Edit(path, Directory(), None, ())


def _backwards(tree: Tree, manifest: Manifest) -> list[Edit]:
    """The edits that take all back; what was never done is passed over."""
    steps: list[Edit] = []
    expected: dict[str, Witness] = {}
    for run in reversed(manifest.runs):
        for done in reversed(run.edits):
            before = witness(done.before)
            now = expected.get(done.path) or _witness_now(tree, done)
            expected[done.path] = before
            # A run that was killed may have left anything of a file that it was writing.
            if run.is_complete and now not in (before, done.after):
                raise FixupError(
                    f"{done.path} in the guest was changed since the fix-ups",
                    hint=f"nothing was reverted; what was there before is in {MANIFEST}",
                )
            if now != before:
                steps.append(_backward(tree, done))
    return steps


def _backward(tree: Tree, done: Done) -> Edit:
    now, wanted = _state_now(tree, done), done.before
    if isinstance(now, Content) and isinstance(wanted, Content) and not done.changes_mode:
        wanted = replace(wanted, mode=now.mode, uid=now.uid, gid=now.gid)
    return Edit(done.path, now, wanted, done.fixups)


def _witness_now(tree: Tree, done: Done) -> Witness:
    if isinstance(done.before, Appended) and done.after.kind == "start":
        with suppress(FileNotFoundError):
            status = tree.status(done.path)
            start = done.before.length
            length = min(max(status.size - start, 0), _MANIFEST_MOST)
            if status.size >= start:
                return Witness("start", digest(tree.read_part(done.path, start, length)), start)
    return _witness_of(tree, done.path, None)


def _state_now(tree: Tree, done: Done) -> State:
    if isinstance(done.before, Appended):
        start = done.before.length
        size = tree.status(done.path).size
        return Appended(start, tree.read_part(done.path, start, size - start))
    return _state_of(tree, done.path)


# Looking


def _status(tree: Tree, path: str) -> Status | None:
    try:
        return tree.status(path, follow=False)
    except FileNotFoundError:
        return None


def _state_of(tree: Tree, path: str) -> State:
    status = _status(tree, path)
    if status is None:
        return None
    if status.is_link:
        return Link(tree.readlink(path))
    if status.is_directory:
        return Directory(status.permissions)
    data = tree.read(path, _MANIFEST_MOST if path == MANIFEST else TEXT_MOST)
    return Content(data, status.permissions, status.uid, status.gid)


def _witness_of(tree: Tree, path: str, expected: State) -> Witness:
    """What is there now; of a long file the length alone."""
    if isinstance(expected, Appended):
        status = _status(tree, path)
        return Witness("start", digest(b""), status.size) if status else Witness()
    try:
        return witness(_state_of(tree, path))
    except GuestFileError:
        return Witness("unreadable")


def _label_of(tree: Tree, edit: Edit) -> bytes | None:
    return tree.label(edit.path) if isinstance(edit.before, Content) else None


def _labels(edits: Iterable[Done]) -> Labels:
    return {edit.path: edit.label for edit in edits if edit.label is not None}


# Writing


def _carry_out(tree: Tree, steps: Sequence[Edit], labels: Labels) -> None:
    renames = renames_in(steps)
    begun: list[Edit] = []
    try:
        for edit in steps:
            begun.append(edit)
            if edit.path in renames:
                _rename(tree, edit.path, renames[edit.path])
            elif edit.path not in renames.values():
                _put(tree, edit.path, edit.after, labels)
    except KeyboardInterrupt:
        _undo(tree, begun, renames, labels)
        raise
    except (OSError, FixupError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        left = _undo(tree, begun, renames, labels)
        undone = f"these could not be restored: {', '.join(left)}" if left else "all is as before"
        raise FixupError(
            f"{begun[-1].path} in the guest can't be written: {what}; {undone}"
        ) from error


def _undo(tree: Tree, begun: list[Edit], renames: Mapping[str, str], labels: Labels) -> list[str]:
    """Returns the paths that could not be restored."""
    left = []
    for edit in reversed(begun):
        try:
            if edit.path in renames:
                with suppress(FileNotFoundError):
                    _rename(tree, renames[edit.path], edit.path)
            elif edit.path not in renames.values():
                _put(tree, edit.path, edit.before, labels)
        except (OSError, FixupError):
            left.append(edit.path)
    return left


def _rename(tree: Tree, path: str, to: str) -> None:
    parent, name = split(path)
    with tree.directory(parent) as directory:
        os.rename(name, split(to)[1], src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)


def _put(tree: Tree, path: str, wanted: State, labels: Labels) -> None:
    """Let ``path`` be in that state, whatever was made of it.  Raises OSError, GuestFileError."""
    now = _status(tree, path)
    match wanted:
        case Content() if now is not None and now.is_file:
            _rewrite(tree, path, wanted, now)
        case Appended(length, data):
            with tree.writable(path) as fd:
                _write(fd, data, length)
        case Directory() if now is not None and now.is_directory:
            return
        case _:
            if now is not None:
                _remove(tree, path, now)
            _create(tree, path, wanted, labels.get(path))


def _rewrite(tree: Tree, path: str, wanted: Content, now: Status) -> None:
    with tree.writable(path) as fd:
        if (wanted.mode, wanted.uid, wanted.gid) != (now.permissions, now.uid, now.gid):
            own(fd, wanted.mode, wanted.uid, wanted.gid)
        _write(fd, wanted.data, 0)


def _write(fd: int, data: bytes, start: int) -> None:
    """``data`` from ``start`` to the new end of the file."""
    view, at = memoryview(data), start
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written
    os.ftruncate(fd, at)
    os.fsync(fd)


def _remove(tree: Tree, path: str, now: Status) -> None:
    parent, name = split(path)
    with tree.directory(parent) as directory:
        if not now.is_directory:
            os.unlink(name, dir_fd=directory)
        else:
            try:
                os.rmdir(name, dir_fd=directory)
            except OSError as error:
                # It was ours, but has something in it that is not.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        os.fsync(directory)


def _create(tree: Tree, path: str, wanted: State, label: bytes | None) -> None:
    parent, name = split(path)
    with tree.directory(parent) as directory:
        match wanted:
            case Link(target):
                os.symlink(target, name, dir_fd=directory)
            case Directory(mode):
                os.mkdir(name, mode, dir_fd=directory)
                with tree.directory(path) as fd:
                    own(fd, mode, 0, 0)
                    set_label(fd, tree.label(parent))
            case Content():
                label = label or _label_beside(tree, parent)
                with _new_file(directory, name) as fd:
                    own(fd, wanted.mode, wanted.uid, wanted.gid)
                    set_label(fd, label)
                    _write(fd, wanted.data, 0)
        os.fsync(directory)


@contextmanager
def _new_file(directory: int, name: str) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def own(fd: int, mode: int, uid: int, gid: int) -> None:
    try:
        if os.geteuid() == 0:
            os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    except OSError as error:
        # FAT, where an EFI system partition is, has neither owners nor permissions.
        if error.errno not in _NOT_KNOWN_HERE:
            raise


def _label_beside(tree: Tree, parent: str) -> bytes | None:
    """The SELinux label for a new file: that of a sibling, or of the directory."""
    for name in tree.names(parent):
        path = f"{parent.rstrip('/')}/{name}"
        status = _status(tree, path)
        if status is not None and status.is_file and (label := tree.label(path)) is not None:
            return label
    return tree.label(parent)


def set_label(fd: int, label: bytes | None) -> None:
    if label is None:
        return
    try:
        os.setxattr(fd, _LABEL, label)
    except OSError as error:
        # Without the right to do that, or on a file system without labels: as cp(1) would.
        if error.errno not in _NOT_KNOWN_HERE:
            raise
