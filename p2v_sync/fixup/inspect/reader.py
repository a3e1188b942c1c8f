"""Looking at a guest that may hold anything: what can't be read is a problem, no exception."""

import fnmatch
import os
import re
from collections.abc import Iterator

from p2v_sync.device.attributes import clean
from p2v_sync.errors import GuestFileError
from p2v_sync.fixup.tree import Status, Tree
from p2v_sync.units import MIB

_FOUND_MOST = 2000  # paths of one pattern, names in one directory
_PROBLEMS_MOST = 100
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_BINARY_WITHIN = 4096  # bytes in which a NUL shows that a file is no text


def path_of(text: str) -> str:
    """A path as the guest's text (latin-1) has it → as the file system calls have it."""
    return os.fsdecode(text.encode("latin-1", errors="replace")).replace("\0", "?")


def shown(text: str) -> str:
    """Guest text (latin-1) for people: UTF-8 understood, one line, nothing that moves a cursor."""
    return clean(text.encode("latin-1", errors="replace"))[:200]


def joined(directory: str, path: str) -> str:
    """``path`` below ``directory``, however many slashes they have."""
    return f"{directory.rstrip('/')}/{path.lstrip('/')}"


class Reader:
    """A guest's files.  Nothing here raises but FixupError, for a kernel without openat2(2)."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.problems: list[str] = []

    def note(self, problem: str) -> None:
        """Once each, and not without end."""
        if problem not in self.problems and len(self.problems) < _PROBLEMS_MOST:
            self.problems.append(problem)

    def status(self, path: str) -> Status | None:
        try:
            return self.tree.status(path)
        except (FileNotFoundError, GuestFileError):
            return None

    def exists(self, path: str) -> bool:
        return self.status(path) is not None

    def is_file(self, path: str) -> bool:
        status = self.status(path)
        return status is not None and status.is_file

    def is_directory(self, path: str) -> bool:
        status = self.status(path)
        return status is not None and status.is_directory

    def resolved(self, path: str) -> str:
        """Without links; ``path`` itself when it leads nowhere."""
        if not self.exists(path):
            return path
        try:
            return self.tree.resolve(path)
        except (FileNotFoundError, GuestFileError, ValueError):
            return path

    def target(self, path: str) -> str:
        """Where a link points, as it says, or ''."""
        try:
            return self.tree.readlink(path)
        except (FileNotFoundError, GuestFileError):
            return ""

    def part(self, path: str, start: int, length: int) -> bytes:
        """Some bytes of a regular file; fewer or none when there are no more."""
        try:
            return self.tree.read_part(path, start, length)
        except (FileNotFoundError, GuestFileError, OverflowError):
            return b""

    def text(self, path: str, most: int = MIB) -> str:
        """A configuration file (latin-1); '' when there is none.

        One that is there and can't be one (a FIFO, binary, endless) is a problem.
        """
        try:
            data = self.tree.read(path, most)
        except FileNotFoundError:
            return ""
        except GuestFileError as error:
            self.note(clean(error.message.encode(errors="replace")))
            return ""
        if b"\0" in data[:_BINARY_WITHIN]:
            self.note(f"{path} in the guest is no text")
            return ""
        return data.decode("latin-1")

    def lines(self, path: str, most: int = MIB) -> Iterator[str]:
        """Stripped, without empty ones and comments (``#``)."""
        for line in self.text(path, most).splitlines():
            stripped = line.strip()
            if stripped and not stripped.startswith("#"):
                yield stripped

    def names(self, directory: str) -> list[str]:
        """Sorted; none when there is no such directory."""
        try:
            found = self.tree.names(directory)
        except (FileNotFoundError, GuestFileError):
            return []
        if len(found) > _FOUND_MOST:
            self.note(f"{directory} in the guest has {len(found)} files; most were not looked at")
        return found[:_FOUND_MOST]

    def glob(self, pattern: str) -> list[str]:
        """Paths that match; ``*``, ``?`` and ``[]`` within parts.  Sorted."""
        found = [""]
        for part in pattern.strip("/").split("/"):
            if any(each in part for each in "*?["):
                found = [
                    f"{base}/{name}"
                    for base in found
                    for name in self.names(base or "/")
                    if fnmatch.fnmatchcase(name, part)
                ][:_FOUND_MOST]
            else:
                found = [f"{base}/{part}" for base in found]
        return [path for path in found if self.exists(path)]

    def files(self, *patterns: str) -> list[str]:
        """Regular files that match one of the patterns."""
        return [path for pattern in patterns for path in self.glob(pattern) if self.is_file(path)]

    def first_file(self, *paths: str) -> str:
        return next((path for path in paths if self.is_file(path)), "")

    def without_case(self, path: str) -> str:
        """The path as it is spelt in the guest (FAT and NTFS don't mind), '' when not there."""
        found = ""
        for part in path.strip("/").split("/"):
            names = self.names(found or "/")
            alike = [name for name in names if name.lower() == part.lower()]
            if not alike:
                return ""
            found = f"{found}/{part if part in alike else alike[0]}"
        return found


def assignments(text: str) -> dict[str, str]:
    """``KEY=value`` lines of a shell fragment (os-release, ifcfg, sysconfig); the last one counts.

    Quotes and backslashes are undone; nothing is expanded.
    """
    found = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and key.removeprefix("export ").isidentifier():
            found[key.removeprefix("export ")] = unquoted(value.strip())
    return found


def unquoted(value: str) -> str:
    """``"a \\"b\\""`` → ``a "b"``; what is not quoted ends at white space."""
    if value[:1] == "'":
        return value[1:].partition("'")[0]
    if value[:1] != '"':
        word = value.split(None, 1)
        return word[0].replace("\\", "") if word else ""
    kept, rest = [], iter(value[1:])
    for char in rest:
        if char == '"':
            break
        kept.append(next(rest, "") if char == "\\" else char)
    return "".join(kept)


def sections(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """``[Section]`` and its ``key=value`` lines (man systemd.syntax, NM keyfiles), in order."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            found.append((stripped[1:-1], []))
        elif found and "=" in stripped and stripped[:1] not in "#;":
            key, _, value = stripped.partition("=")
            found[-1][1].append((key.strip(), value.strip()))
    return found


def settings(text: str) -> dict[tuple[str, str], str]:
    """The same by section and key; the last one counts."""
    return {(part, key): value for part, keys in sections(text) for key, value in keys}


def mac_of(text: str) -> str:
    """Lower case with colons; '' when it is no address."""
    mac = text.strip().strip("\"'").lower().replace("-", ":")
    return mac if _MAC.fullmatch(mac) else ""
