"""Files of sections and ``key=value`` lines: systemd's units, NetworkManager's keyfiles.

Lines are numbered from 0, as ``split_lines`` has them, so that an edit can leave all others alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

from p2v_sync.fixup.lines import body, split_lines


class Setting(NamedTuple):
    """One line.  ``section`` and ``key`` as they are written; the value without outer spaces."""

    line: int
    section: str
    key: str
    value: str


def settings(text: str) -> Iterator[Setting]:
    """What no section, comment or setting is, is skipped."""
    section = ""
    for number, line in enumerate(split_lines(text)):
        stripped = body(line).strip()
        if stripped[:1] in ("#", ";", ""):
            continue
        if stripped.startswith("[") and stripped.endswith("]"):
            section = stripped[1:-1]
            continue
        key, equals, value = stripped.partition("=")
        if equals:
            yield Setting(number, section, key.rstrip(), value.lstrip())


def values(text: str, section: str, key: str) -> list[str]:
    """All values of ``key`` in ``section``, in their order."""
    return [each.value for each in settings(text) if (each.section, each.key) == (section, key)]
