"""The device filters of lvm.conf(5): what they let through, and letting more through.  Pure.

A device passes if any of its names is accepted, or none is rejected; the first pattern that a name
matches decides about it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ACCEPT = '"a|^/dev/(vd|sd|xvd|hd|nvme).*|"'

_START = re.compile(r"^[ \t]*(?:devices/)?(?:global_)?filter[ \t]*=[ \t]*", re.MULTILINE)
_TOKEN = re.compile(r'\s+|#[^\n]*|,|(?P<list>\[)|(?P<end>\])|(?P<text>"(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class Pattern:
    """``a|regex|`` or ``r|regex|``, and where it stands in the text, with its quotes."""

    accepts: bool
    expression: str
    start: int
    end: int

    def matches(self, name: str) -> bool:
        # The guest's expressions must not keep us busy: what is long or winding is not understood.
        if len(self.expression) > 256 or len(re.findall(r"[*+?{]", self.expression)) > 12:
            return False
        try:
            return bool(re.search(self.expression, name))
        except (re.error, RecursionError, OverflowError):
            return False  # LVM's own kind of expression: then it is taken as if it were not there


@dataclass(frozen=True)
class Filter:
    """One setting.  ``is_list``: not a single string."""

    patterns: tuple[Pattern, ...]
    is_list: bool

    def rejecting(self, names: Iterable[str]) -> Pattern | None:
        """The pattern that keeps a device with these names out; None if it passes."""
        rejected = None
        for name in names:
            found = next((each for each in self.patterns if each.matches(name)), None)
            if found is not None and found.accepts:
                return None
            rejected = rejected or found
        return rejected


def filters(text: str) -> Iterator[Filter]:
    """All that are not commented out."""
    for start in _START.finditer(text):
        patterns, is_list, at = list[Pattern](), False, start.end()
        while found := _TOKEN.match(text, at):
            at = found.end()
            is_list = is_list or bool(found["list"])
            if found["text"]:
                patterns += _pattern(found["text"], found.start(), at)
            if found["end"] or (found["text"] and not is_list):
                yield Filter(tuple(patterns), is_list)
                break


def _pattern(quoted: str, start: int, end: int) -> Iterator[Pattern]:
    inside = re.sub(r"\\(.)", r"\1", quoted[1:-1])
    closing = {"(": ")", "[": "]", "{": "}"}.get(inside[1:2], inside[1:2])
    if inside[:1] in ("a", "r") and len(inside) > 2 and inside.endswith(closing):
        yield Pattern(inside[0] == "a", inside[2:-1], start, end)


def accepting(text: str, devices: Iterable[Iterable[str]]) -> str:
    """``text`` with filters that let each of ``devices`` (its names) through."""
    names = [list(each) for each in devices]
    changes = list[tuple[int, int, str]]()
    for each in filters(text):
        hits = [hit for device in names if (hit := each.rejecting(device))]
        if hits:
            first = min(hits, key=lambda hit: hit.start)
            quoted = text[first.start : first.end]
            new = f"{ACCEPT}, {quoted}" if each.is_list else f"[ {ACCEPT}, {quoted} ]"
            changes.append((first.start, first.end, new))
    for start, end, new in reversed(changes):
        text = text[:start] + new + text[end:]
    return text
