"""/etc/network/interfaces and what it sources (man 5 interfaces)."""

import re
from collections.abc import Iterator

from p2v_sync.fixup.guest import Interface, NetworkStack
from p2v_sync.fixup.inspect.reader import Reader, joined, path_of, shown

_START = "/etc/network/interfaces"
_FILES_MOST = 200
_NAME = re.compile(r"[a-zA-Z0-9_.-]+")  # what source-directory reads


def ifupdown_interfaces(reader: Reader) -> Iterator[Interface]:
    """Each interface with an ``iface`` line, once; not the loopback."""
    seen = {"lo"}
    for path in _sourced(reader):
        for words in _lines(reader, path):
            if words[0] == "iface" and len(words) > 1 and words[1] not in seen:
                seen.add(words[1])
                # eth0:1 is an alias, eth0=home a logical name.
                name = re.split("[:=]", words[1])[0]
                yield Interface(shown(name), "", NetworkStack.IFUPDOWN, path)


def _sourced(reader: Reader) -> Iterator[str]:
    """Each file once, so that one that sources itself ends."""
    waiting, seen = [_START], set[str]()
    while waiting and len(seen) < _FILES_MOST:
        path = waiting.pop(0)
        if path in seen or not reader.exists(path):
            continue
        seen.add(path)
        yield path
        for words in _lines(reader, path):
            if words[0] in ("source", "source-directory") and len(words) > 1:
                waiting += _meant(reader, words[0], path_of(words[1]))


def _meant(reader: Reader, command: str, pattern: str) -> list[str]:
    absolute = pattern if pattern.startswith("/") else joined("/etc/network", pattern)
    if command == "source":
        return reader.files(absolute)
    paths = [
        f"{directory}/{name}"
        for directory in reader.glob(absolute)
        for name in reader.names(directory)
    ]
    return [
        path for path in paths if _NAME.fullmatch(path.rpartition("/")[2]) and reader.is_file(path)
    ]


def _lines(reader: Reader, path: str) -> Iterator[list[str]]:
    """Words of each line; a backslash at its end joins the next one to it."""
    text = reader.text(path).replace("\\\n", " ")
    for line in text.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            yield words
