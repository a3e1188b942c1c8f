"""Changes to a guest that exist in memory only: what a plan is made of.

A fix-up reads and writes a Draft.  It sees what the fix-ups before it have written; the guest sees
nothing.  Only ``apply`` carries a finished draft out.
"""

import fnmatch
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from p2v_sync.errors import GuestFileError
from p2v_sync.fixup.tree import TEXT_MOST, Status, Tree, split
from p2v_sync.units import KIB, MIB

_BLOCK = 4 * KIB
_SPARE = MIB  # is left free, also for what file systems need besides


@dataclass(frozen=True)
class Content:
    """A regular file as it was or will be.  ``mode``: permissions only."""

    data: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Appended:
    """A regular file that keeps its first ``length`` bytes and has ``data`` behind them.

    As the state before a change: ``data`` is empty.  For files too long to be kept in memory.
    """

    length: int
    data: bytes = b""


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Directory:
    """A directory."""

    mode: int = 0o755


State = Content | Appended | Link | Directory | None  # None: not there


class Edit(NamedTuple):
    """One path's change: ``path`` has no links in it but perhaps its last part."""

    path: str
    before: State
    after: State
    fixups: tuple[str, ...]  # the ids of those that made it


def renames_in(edits: Sequence[Edit]) -> dict[str, str]:
    """From → to, of what goes here and comes there in the same directory: it keeps its inode."""
    gone: dict[tuple[str, State], str] = {}
    found: dict[str, str] = {}
    for edit in edits:
        if isinstance(edit.before, Content | Link) and edit.after is None:
            gone[split(edit.path)[0], edit.before] = edit.path
    for edit in edits:
        if edit.before is None and isinstance(edit.after, Content | Link):
            old = gone.pop((split(edit.path)[0], edit.after), None)
            if old is not None:
                found[old] = edit.path
    return found


def _growth(edit: Edit) -> int:
    """Bytes that it takes on its file system; those of a name are taken for a block."""
    return _space(edit.after) - _space(edit.before)


def _space(state: State) -> int:
    match state:
        case Content(data) | Appended(_, data):
            return (1 + -(-len(data) // _BLOCK)) * _BLOCK
        case None:
            return 0
    return _BLOCK


class Draft:
    """A guest's files as they are, and above them what was planned.

    Reading raises what Tree's methods raise.  All paths are the guest's, absolute.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._edits: dict[str, Edit] = {}
        self._for_initramfs: dict[str, bytes] = {}
        self._free: dict[str, tuple[int, int]] = {}  # directory → device number, bytes
        self._fixup = ""

    @contextmanager
    def of(self, fixup: str) -> Iterator[None]:
        """All that is written inside belongs to ``fixup``; none of it stays if it fails."""
        kept = dict(self._edits), dict(self._for_initramfs)
        self._fixup = fixup
        try:
            yield
        except BaseException:
            self._edits, self._for_initramfs = kept
            raise
        finally:
            self._fixup = ""

    def edits(self) -> list[Edit]:
        """What is to be changed, in the order in which it was first planned."""
        return [edit for edit in self._edits.values() if edit.before != edit.after]

    @property
    def for_initramfs(self) -> Mapping[str, bytes]:
        """Files that must also be in each initramfs, by path."""
        return self._for_initramfs

    def want_in_initramfs(self, path: str, data: bytes) -> None:
        """Also on every later plan: what is inside already is not added again."""
        self._for_initramfs[path] = data

    # Reading

    def _where(self, path: str) -> str:
        if path in self._edits:
            return path
        resolved = self.tree.resolve(path)
        return resolved if resolved in self._edits else self._through_drafts(path, resolved)

    def _through_drafts(self, path: str, resolved: str) -> str:
        # The parent may exist in the draft only.
        parent, name = split(path)
        joined = f"{parent.rstrip('/')}/{name}"
        return joined if joined in self._edits else resolved

    def _planned(self, path: str) -> Edit | None:
        try:
            return self._edits.get(self._where(path))
        except (FileNotFoundError, GuestFileError):
            return self._edits.get(path)

    def status(self, path: str, *, follow: bool = True) -> Status:
        edit = self._edits.get(path) or (self._planned(path) if follow else None)
        if edit is None:
            return self.tree.status(path, follow=follow)
        match edit.after:
            case Content(data, mode, uid, gid):
                return Status(stat.S_IFREG | mode, uid, gid, len(data))
            case Appended(length, data):
                return replace(self.tree.status(edit.path), size=length + len(data))
            case Link(target):
                return Status(stat.S_IFLNK | 0o777, size=len(target))
            case Directory(mode):
                return Status(stat.S_IFDIR | mode)
            case None:
                raise FileNotFoundError(2, "not in the guest", path)

    def exists(self, path: str) -> bool:
        return self._is(path, bool)

    def is_file(self, path: str) -> bool:
        return self._is(path, lambda status: status.is_file)

    def is_directory(self, path: str) -> bool:
        return self._is(path, lambda status: status.is_directory)

    def is_link(self, path: str) -> bool:
        try:
            return self.status(path, follow=False).is_link
        except (FileNotFoundError, GuestFileError):
            return False

    def _is(self, path: str, test: Callable[[Status], bool]) -> bool:
        try:
            return test(self.status(path))
        except (FileNotFoundError, GuestFileError):
            return False

    def readlink(self, path: str) -> str:
        edit = self._edits.get(path)
        if edit is None:
            return self.tree.readlink(path)
        if not isinstance(edit.after, Link):
            raise GuestFileError(f"{path} in the guest is no link")
        return edit.after.target

    def read(self, path: str, most: int = TEXT_MOST) -> bytes:
        edit = self._planned(path)
        if edit is None:
            return self.tree.read(path, most)
        match edit.after:
            case Content(data):
                return data
            case Appended(length, data):
                return self.tree.read_part(edit.path, 0, length) + data
            case None:
                raise FileNotFoundError(2, "not in the guest", path)
        raise GuestFileError(f"{path} in the guest is no regular file")

    def text(self, path: str) -> str:
        """A file's text, byte for byte: one character each (latin-1)."""
        return self.read(path).decode("latin-1")

    def text_or_empty(self, path: str) -> str:
        """The same; '' for a file that is not there or can't be read."""
        try:
            return self.text(path)
        except (FileNotFoundError, GuestFileError):
            return ""

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; none when there is no such directory."""
        try:
            where = self.tree.resolve(path)
            found = set(self.tree.names(path))
        except (FileNotFoundError, GuestFileError):
            where, found = path.rstrip("/"), set()
        for edit in self._edits.values():
            parent, name = split(edit.path)
            if parent == (where or "/"):
                (found.discard if edit.after is None else found.add)(name)
        return sorted(found)

    def glob(self, pattern: str) -> list[str]:
        """Paths that match; ``*``, ``?`` and ``[]`` within parts.  Sorted; links are followed."""
        found = [""]
        for part in pattern.strip("/").split("/"):
            if not any(each in part for each in "*?["):
                found = [f"{base}/{part}" for base in found]
                continue
            found = [
                f"{base}/{name}"
                for base in found
                for name in self.names(base or "/")
                if fnmatch.fnmatchcase(name, part)
            ]
        return [path for path in found if self.exists(path) or self.is_link(path)]

    # Room

    def room(self, path: str) -> int:
        """Bytes that a file may grow by, besides what is drafted for its file system."""
        device, free = self._free_at(path)
        return free - self._drafted().get(device, 0) - _SPARE

    def overfilled(self) -> str:
        """A path that is to grow where there is too little room; '' when all fits."""
        drafted = self._drafted()
        for edit in reversed(self._edits.values()):  # what came last is too much
            device, free = self._free_at(edit.path)
            if _growth(edit) > 0 and drafted[device] > free - _SPARE:
                return edit.path
        return ""

    def _drafted(self) -> dict[int, int]:
        """Device number → bytes by which all that is drafted grows."""
        found: dict[int, int] = {}
        for edit in self._edits.values():
            device, _ = self._free_at(edit.path)
            found[device] = found.get(device, 0) + _growth(edit)
        return found

    def _free_at(self, path: str) -> tuple[int, int]:
        parent = split(path)[0]
        if parent not in self._free:
            try:
                self._free[parent] = self.tree.free_space(parent)
            except FileNotFoundError:  # it exists in the draft only
                self._free[parent] = self._free_at(parent)
        return self._free[parent]

    # Writing

    def write(self, path: str, data: bytes | str, *, mode: int | None = None) -> None:
        """Let ``path`` have ``data``; a file that is there keeps owner and permissions."""
        content = data.encode("latin-1") if isinstance(data, str) else data
        where = self._where(path)
        now = self._state(where)
        if now is None:
            self._make_parents(where)
            self._plan(where, Content(content, 0o644 if mode is None else mode))
        elif isinstance(now, Content):
            self._plan(where, replace(now, data=content, mode=now.mode if mode is None else mode))
        else:
            raise GuestFileError(f"{path} in the guest is no regular file that can be rewritten")

    def append(self, path: str, data: bytes) -> None:
        """Let a file, however long, have ``data`` behind what it has."""
        where = self._where(path)
        planned = self._edits.get(where)
        if planned is not None and isinstance(planned.after, Content):
            self.write(path, planned.after.data + data)
            return
        if planned is not None and isinstance(planned.after, Appended):
            self._plan(where, replace(planned.after, data=planned.after.data + data))
            return
        status = self.tree.status(where)
        if not status.is_file:
            raise GuestFileError(f"{path} in the guest is no regular file")
        before = Appended(status.size)
        self._edits[where] = Edit(where, before, replace(before, data=data), (self._fixup,))

    def remove(self, path: str) -> None:
        """A file or a link, the link itself."""
        where = self._itself(path)
        if isinstance(self._state(where), Directory):
            raise GuestFileError(f"{path} in the guest is a directory")
        self._plan(where, None)

    def rename(self, path: str, to: str) -> None:
        """A file or a link of at most TEXT_MOST bytes, to a name that is not taken."""
        state = self._state(self._itself(path))
        if not isinstance(state, Content | Link):
            raise GuestFileError(f"{path} in the guest can't be renamed")
        if self.exists(to) or self.is_link(to):
            raise GuestFileError(f"{to} is in the guest already")
        self._plan(self._itself(path), None)
        self._plan(self._itself(to), state)

    def symlink(self, path: str, target: str) -> None:
        """A link where there is nothing, or another link."""
        where = self._itself(path)
        if not isinstance(self._state(where), Link | None):
            raise GuestFileError(f"{path} is in the guest already")
        self._make_parents(where)
        self._plan(where, Link(target))

    def make_directory(self, path: str) -> None:
        where = self._where(path)
        if self._state(where) is None:
            self._make_parents(where)
            self._plan(where, Directory())

    def _itself(self, path: str) -> str:
        """Like ``_where``, but the last part is not followed."""
        parent, name = split(path)
        parent = self._where(parent) if parent != "/" else "/"
        return f"{parent.rstrip('/')}/{name}"

    def _make_parents(self, where: str) -> None:
        parent = split(where)[0]
        if parent != "/" and not self.is_directory(parent):
            self._make_parents(parent)
            self._plan(parent, Directory())

    def _plan(self, where: str, after: State) -> None:
        if (now := self._state(where)) == after:
            return
        edit = self._edits.get(where)
        if edit is None:
            self._edits[where] = Edit(where, now, after, (self._fixup,))
            return
        fixups = edit.fixups if self._fixup in edit.fixups else (*edit.fixups, self._fixup)
        self._edits[where] = edit._replace(after=after, fixups=fixups)

    def _state(self, where: str) -> State:
        if where in self._edits:
            return self._edits[where].after
        try:
            status = self.tree.status(where, follow=False)
        except FileNotFoundError:
            return None
        if status.is_link:
            return Link(self.tree.readlink(where))
        if status.is_directory:
            return Directory(stat.S_IMODE(status.mode))
        data = self.tree.read(where)
        return Content(data, stat.S_IMODE(status.mode), status.uid, status.gid)
