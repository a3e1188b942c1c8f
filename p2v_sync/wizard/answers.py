"""Answers that were given beforehand, and which one counts.

From the strongest: the kernel command line, the preseed at ``p2v.config``, the preseed on the
medium.  What nobody answered is asked, or, with ``auto``, found on the machine or missed.
"""

import difflib
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from p2v_sync.errors import PreseedError
from p2v_sync.wizard.settings import SETTINGS, Setting, Value

PRESEED_MOST = 1 << 20  # bytes


class Answer(NamedTuple):
    """``origin``: where it was given, for people: ``preseed.toml:7``."""

    value: Value
    origin: str


Answers = Mapping[str, Answer]


def _parsed(setting: Setting, value: Any, origin: str) -> Answer:
    try:
        return Answer(setting.parse(value), origin)
    except ValueError as error:
        shown = "a secret" if setting.is_secret else repr(value)
        raise PreseedError(f"{origin}: {setting.key} is {shown}: {error}") from error


def _unknown(key: str, origin: str) -> PreseedError:
    close = difflib.get_close_matches(key, SETTINGS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(SETTINGS)}"
    return PreseedError(f"{origin}: there is no {key}", hint=hint)


class Found(NamedTuple):
    """``problem``: the first; what else could be read is there all the same, for the fail hook."""

    answers: dict[str, Answer]
    problem: PreseedError | None = None


def parse_preseed(data: bytes, name: str) -> dict[str, Answer]:
    """A TOML file's answers by key.  ``name``: of the file, for messages.  Raises PreseedError."""
    return _whole(read_preseed(data, name))


def _whole(found: Found) -> dict[str, Answer]:
    if found.problem is not None:
        raise found.problem
    return found.answers


def read_preseed(data: bytes, name: str) -> Found:
    """``parse_preseed`` that goes on behind a problem."""
    try:
        text = _decode(data, name)
        record = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return Found({}, PreseedError(f"{name} is no TOML: {error}"))
    except PreseedError as error:
        return Found({}, error)
    lines = _lines_of_keys(text)
    found = Found({})
    for key, value in _flat(record):
        line = lines.get(key)
        found = _add(found, key, value, f"{name}:{line}" if line else name)
    return found


def _decode(data: bytes, name: str) -> str:
    if len(data) > PRESEED_MOST:
        raise PreseedError(f"{name} is too long for a preseed: {len(data)} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise PreseedError(f"{name} is no TOML: {error}") from error


def _add(found: Found, key: str, value: Any, origin: str) -> Found:
    try:
        if key not in SETTINGS:
            raise _unknown(key, origin)
        answer = _parsed(SETTINGS[key], value, origin)
    except PreseedError as error:
        return Found(found.answers, found.problem or error)
    return Found({**found.answers, key: answer}, found.problem)


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``{"vm": {"memory": …}}`` → ``vm.memory``; one level of tables is all there is."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", each) for name, each in value.items())
        else:
            yield key, value


_TABLE = re.compile(r"\s*\[\s*([\w.-]+)\s*\]")
_KEY = re.compile(r"\s*([\w.-]+)\s*=")


def _lines_of_keys(text: str) -> dict[str, int]:
    """Where each key stands; tomllib does not say.  Keys in quotes are not found."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            table = f"{match[1]}."
            found.setdefault(match[1], number)
        elif match := _KEY.match(line):
            found.setdefault(table + match[1], number)
    return found


KERNEL_COMMAND_LINE = "kernel command line"


def parse_kernel_command_line(text: str) -> dict[str, Answer]:
    """The answers in /proc/cmdline: ``p2v.KEY=VALUE``, or ``p2v.KEY`` alone for true.

    Raises PreseedError.
    """
    return _whole(read_kernel_command_line(text))


def read_kernel_command_line(text: str) -> Found:
    """``parse_kernel_command_line`` that goes on behind a problem."""
    found = Found({})
    for word in _words(text):
        name, equals, value = word.partition("=")
        if not name.startswith("p2v."):
            continue
        key = name.removeprefix("p2v.")
        key = _SHORT.get(key, key)
        if key in SETTINGS and SETTINGS[key].is_secret:
            problem = PreseedError(
                f"{KERNEL_COMMAND_LINE}: {name} must not stand there, where every user can read it",
                hint="put it into a preseed, or let the wizard ask",
            )
            found = Found(found.answers, found.problem or problem)
            continue
        found = _add(found, key, value if equals else "", KERNEL_COMMAND_LINE)
    return found


# p2v.network=dhcp is what one types.
_SHORT = {"network": "network.mode"}


def _words(text: str) -> list[str]:
    """As the kernel splits: double quotes keep white space together (kernel/params.c)."""
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
        lexer.whitespace_split, lexer.quotes, lexer.escape, lexer.commenters = True, '"', "", ""
        return list(lexer)
    except ValueError:
        return text.split()


def merge(*sources: Mapping[str, Answer]) -> dict[str, Answer]:
    """All answers; an earlier source is stronger."""
    merged: dict[str, Answer] = {}
    for source in sources:
        for key, answer in source.items():
            merged.setdefault(key, answer)
    return merged


def format_preseed(values: Mapping[str, Value]) -> str:
    """The TOML file that gives just these answers."""
    plain = [(key, value) for key, value in values.items() if "." not in key]
    lines = [f"{key} = {_toml(value)}" for key, value in plain]
    for table in dict.fromkeys(key.split(".")[0] for key in values if "." in key):
        inside = [(key, value) for key, value in values.items() if key.startswith(f"{table}.")]
        lines += ["", f"[{table}]"]
        lines += [f"{key.removeprefix(f'{table}.')} = {_toml(value)}" for key, value in inside]
    return "\n".join(lines).lstrip("\n") + "\n"


def _toml(value: Value) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'
        case _:
            return f"[{', '.join(map(_toml, value))}]"
