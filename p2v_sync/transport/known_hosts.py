"""OpenSSH's known_hosts files: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT".  Only text, no cryptography
but the hash of hashed names."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path


class Verdict(Enum):
    """What is known of a host's key."""

    KNOWN = auto()
    UNKNOWN = auto()  # nothing of that host
    CHANGED = auto()  # the host is known, with other keys
    REVOKED = auto()


@dataclass(frozen=True)
class Entry:
    """One line: which hosts, and their key."""

    marker: str  # "", "@revoked" or "@cert-authority"
    patterns: str
    key_type: str
    key: str  # base64

    def matches(self, name: str) -> bool:
        """``name`` is as in the file: a host, or ``[host]:port`` where the port is not 22."""
        hit = False
        for pattern in self.patterns.split(","):
            if _matches(pattern.removeprefix("!"), name):
                if pattern.startswith("!"):
                    return False
                hit = True
        return hit


class KnownHosts:
    """What several files say; missing ones say nothing, and damaged lines are passed over."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._entries = [entry for path in paths for entry in _read(path)]

    def check(self, name: str, key_type: str, key: str) -> Verdict:
        """What is known of the key (its base64) that the host ``name`` shows."""
        entries = [entry for entry in self._entries if entry.matches(name)]
        same = [entry.marker for entry in entries if (entry.key_type, entry.key) == (key_type, key)]
        if "@revoked" in same:
            return Verdict.REVOKED
        if "" in same:
            return Verdict.KNOWN
        if any(not entry.marker for entry in entries):
            return Verdict.CHANGED
        return Verdict.UNKNOWN

    def key_types(self, name: str) -> list[str]:
        """Of the keys that are known: the host must be asked for one of these."""
        return [e.key_type for e in self._entries if not e.marker and e.matches(name)]


def file_name_of(host: str, port: int) -> str:
    """How a host is written in the files."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def append(path: Path, name: str, key_type: str, key: str) -> None:
    """Add a key at the end.  Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(f"{name} {key_type} {key}\n".encode())


def _read(path: Path) -> Iterator[Entry]:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) >= 3 and not words[0].startswith("#"):
            yield Entry(marker, words[0], words[1], words[2])


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("|1|"):
        return _matches_hash(pattern, name)
    expression = re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name) is not None


def _matches_hash(pattern: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part) for part in pattern[3:].split("|"))
    except ValueError:
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
