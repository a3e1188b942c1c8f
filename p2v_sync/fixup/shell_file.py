"""Files of shell assignments: /etc/default, /etc/sysconfig.  Only values change."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from p2v_sync.fixup.lines import newline_of

_ASSIGNMENT = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_]\w*)\+?=
        (?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>[^']*)'|(?P<bare>[^\s"'\#;&|`()$]*))""",
    re.MULTILINE | re.DOTALL | re.VERBOSE | re.ASCII,
)
_UNSAFE = re.compile(r"[^\w@%+=:,./-]", re.ASCII)


class Assignment(NamedTuple):
    """``name=value`` in a text.  ``start`` and ``end``: of the value, without its quotes."""

    name: str
    value: str
    start: int
    end: int
    is_quoted: bool


def assignments(text: str) -> Iterator[Assignment]:
    """All that are not commented out, in their order.  What a shell would expand stays as it is."""
    for found in _ASSIGNMENT.finditer(text):
        kind = next(kind for kind in ("double", "single", "bare") if found[kind] is not None)
        yield Assignment(found["name"], found[kind], *found.span(kind), kind != "bare")


def value_of(text: str, name: str) -> str | None:
    """The last one counts; None without any."""
    values = [each.value for each in assignments(text) if each.name == name]
    return values[-1] if values else None


def with_value(text: str, name: str, value: str) -> str:
    """``text`` with that value of ``name``: in the last assignment's place, else in a new line."""
    quoted = (
        value if not _UNSAFE.search(value) else '"' + re.sub(r'(["\\$`])', r"\\\1", value) + '"'
    )
    found = [each for each in assignments(text) if each.name == name]
    if not found:
        newline = newline_of(text)
        start = newline if text and not text.endswith("\n") else ""
        return f"{text}{start}{name}={quoted}{newline}"
    last = found[-1]
    if last.value == value:
        return text
    around = 1 if last.is_quoted else 0
    if last.is_quoted and not quoted.startswith('"'):
        quoted = f'"{quoted}"'
    return text[: last.start - around] + quoted + text[last.end + around :]
