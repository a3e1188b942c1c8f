"""Editing text line by line: what is not edited stays as it is, to the byte.

Text is the guest's bytes, one character each (latin-1).  Only ``\\n`` ends a line; a ``\\r`` before
it belongs to the ending and stays.
"""

import re
from collections.abc import Callable

_OUT = "#p2v# "
_FIELD = re.compile(r"[^ \t\r\n]+")


def split_lines(text: str) -> list[str]:
    """Lines with their endings; ``''.join()`` gives the text again.

    Unlike str.splitlines() it does not take form feeds and \\x85 for ends.
    """
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def ending(line: str) -> str:
    """``\\r\\n``, ``\\n``, or '' for a last line without one."""
    return line[len(body(line)) :]


def body(line: str) -> str:
    """A line without its ending."""
    return line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line


def newline_of(text: str) -> str:
    """The ending that this text's lines have."""
    return "\r\n" if "\r\n" in text else "\n"


def map_lines(text: str, change: Callable[[str], str | None]) -> str:
    """Each line's body replaced by what ``change`` says; None comments it out."""
    changed = []
    for line in split_lines(text):
        new = change(body(line))
        changed.append(comment_out(line) if new is None else new + ending(line))
    return "".join(changed)


def comment_out(line: str) -> str:
    """What a removed line becomes."""
    return _OUT + line


def is_comment(line: str) -> bool:
    """Also an empty one."""
    return line.strip(" \t\r\n")[:1] in ("", "#")


def with_block(text: str, key: str, lines: list[str]) -> str:
    """``text`` with one framed block of that key: where it was, else at the end; none if empty."""
    newline = newline_of(text)
    frame = [f"# BEGIN p2v {key}", *lines, f"# END p2v {key}"] if lines else []
    block = "".join(line + newline for line in frame)
    # A block that lacks its end is no block of ours: nothing is taken out then.
    begin = re.search(rf"^# BEGIN p2v {re.escape(key)}\r?$", text, re.MULTILINE)
    end = re.compile(rf"^# END p2v {re.escape(key)}\r?(?:\n|\Z)", re.MULTILINE)
    old = end.search(text, begin.end()) if begin else None
    if begin and old:
        return text[: begin.start()] + block + text[old.end() :]
    if block and text and not text.endswith("\n"):
        text += newline
    return text + block


def fields(line: str) -> list[str]:
    """What blanks separate."""
    return _FIELD.findall(line)


def replace_field(line: str, number: int, value: str) -> str:
    """Field ``number`` (from 0) replaced; later columns stay in their place where there is room.

    Raises IndexError when there is no such field.
    """
    found = list(_FIELD.finditer(line))[number]
    rest = line[found.end() :]
    if not rest.strip(" \t\r\n"):
        return line[: found.start()] + value + rest
    longer = len(value) - len(found[0])
    blanks = len(rest) - len(rest.lstrip(" "))
    if blanks > 1 and not rest.startswith(" \t"):  # columns made with spaces
        rest = " " * max(1, blanks - longer) + rest[blanks:]
    return line[: found.start()] + value + rest
