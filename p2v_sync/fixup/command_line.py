"""A kernel's command line as tokens; those that are not changed stay as they are, byte for byte.

What a token is: next_arg() of the kernel's lib/cmdline.c.  Double quotes hold spaces together, a
backslash means nothing.  In the files of GRUB 2 and of shells quoting is that of a shell.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from p2v_sync.errors import FixupError

_KERNEL_TOKEN = re.compile(r'(?:"[^"]*"?|[^ \t\n\v\f\r"])+')
_SHELL_TOKEN = re.compile(
    r"""(?: "(?:[^"\\]|\\.)*"?              # quoted
          | '[^']*'?
          | \\"(?:(?!\\").)*(?:\\")?        # quoted for the kernel, within quotes of the shell
          | \\(?!\r?\n).|\\\Z
          | [^ \t\n\v\f\r"'\\]
        )+""",
    re.VERBOSE | re.DOTALL,
)
_SHELL_QUOTING = re.compile(r"\\(.)|[\"']", re.DOTALL)
_NOT_WRITTEN = re.compile(r"[\s\"'\\$`;&|<>(){}#\x00-\x1f\x7f]")  # would need quotes somewhere


class Dialect(Enum):
    """How a file quotes."""

    KERNEL = _KERNEL_TOKEN
    SHELL = _SHELL_TOKEN

    def meaning(self, raw: str) -> tuple[str, str | None]:
        """``a token → (key, value)``; without ``=`` the value is None."""
        if self is Dialect.SHELL:
            raw = _SHELL_QUOTING.sub(lambda found: found[1] or "", raw)
        if raw.startswith('"'):
            raw = raw[1:].removesuffix('"')
        key, equals, value = raw.partition("=")
        if value.startswith('"'):
            value = value[1:].removesuffix('"')
        return key, value if equals else None


@dataclass
class _Token:
    gap: str  # what stands before it
    raw: str
    key: str
    value: str | None


class CommandLine:
    """One command line, which may come in parts (several ``options`` lines, GRUB's grubenv).

    Keys are compared as the kernel does: ``-`` and ``_`` are the same.
    """

    def __init__(self, *parts: str, dialects: Sequence[Dialect] = ()) -> None:
        """``dialects``: one for each part; without them that of the kernel."""
        self._dialects = tuple(dialects) or (Dialect.KERNEL,) * len(parts)
        self._parts: list[list[_Token]] = []
        self._ends: list[str] = []  # what stands behind the last token of each part
        for text, dialect in zip(parts, self._dialects, strict=True):
            tokens, at = [], 0
            for found in dialect.value.finditer(text):
                meaning = dialect.meaning(found[0])
                tokens.append(_Token(text[at : found.start()], found[0], *meaning))
                at = found.end()
            self._parts.append(tokens)
            self._ends.append(text[at:])

    def parts(self) -> list[str]:
        """The text of each part as it is now."""
        return [
            "".join(token.gap + token.raw for token in tokens) + end
            for tokens, end in zip(self._parts, self._ends, strict=True)
        ]

    def __str__(self) -> str:
        return " ".join(filter(None, (part.strip() for part in self.parts())))

    # Reading

    def _of(self, key: str) -> Iterator[_Token]:
        for token in self._tokens():
            if _same(token.key, key):
                yield token

    def _tokens(self) -> Iterator[_Token]:
        for part in self._parts:
            yield from part

    def tokens(self) -> list[str]:
        """As they stand in the file."""
        return [token.raw for token in self._tokens()]

    def keys(self) -> list[str]:
        """Of all tokens, in their order; some may come again."""
        return [token.key for token in self._tokens()]

    def values(self, key: str) -> list[str]:
        """All values of ``key``, '' for a token without one."""
        return [token.value or "" for token in self._of(key)]

    def get(self, key: str) -> str | None:
        """The last value, which is the one that counts; None when there is no such token."""
        return values[-1] if (values := self.values(key)) else None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and any(self._of(key))

    # Changing

    def map(self, key: str, change: Callable[[str], str | None]) -> None:
        """Replace each value of ``key`` by what ``change`` says; None removes the token.

        Raises FixupError for a value that can't be written everywhere.
        """
        for number, part in enumerate(self._parts):
            kept: list[_Token] = []
            for token in part:
                if _same(token.key, key):
                    value = change(token.value or "")
                    if value is None:
                        continue
                    if value != (token.value or ""):
                        token.raw, token.value = _written(token.key, value), value
                kept.append(token)
            if part and kept:
                kept[0].gap = part[0].gap  # also when the first one was removed
            self._parts[number] = kept

    def remove(self, key: str) -> None:
        """All tokens of that key."""
        self.map(key, lambda _: None)

    def set(self, key: str, value: str | None = None) -> None:
        """Let ``key`` be there, and have ``value`` wherever it is.  Raises FixupError."""
        if key not in self:
            self._add(_written(key, value), key, value)
        elif value is not None:
            self.map(key, lambda _: value)

    def add(self, token: str) -> None:
        """A token that may come several times with different values, as ``console=``: if it is
        not there yet, behind all others.  Raises FixupError."""
        key, equals, value = token.partition("=")
        wanted = value if equals else None
        if all(found.value != wanted for found in self._of(key)):
            self._add(_written(key, wanted), key, wanted)

    def _add(self, raw: str, key: str, value: str | None) -> None:
        part, token = self._parts[-1], _Token(" ", raw, key, value)
        # What is behind -- is for init alone.
        at = next((n for n, each in enumerate(part) if each.raw == "--"), len(part))
        if at == 0:  # the first token has the gap that the text began with
            token.gap, self._ends[-1] = (
                (part[0].gap, self._ends[-1]) if part else (self._ends[-1], "")
            )
            for each in part[:1]:
                each.gap = " "
        part.insert(at, token)


def _same(one: str, other: str) -> bool:
    return one == other or one.replace("-", "_") == other.replace("-", "_")


def _written(key: str, value: str | None) -> str:
    raw = key if value is None else f"{key}={value}"
    if not raw or _NOT_WRITTEN.search(raw):
        raise FixupError(f"{raw!r} can't be written on a kernel's command line")
    return raw
