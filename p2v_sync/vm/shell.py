"""Parts of the shell scripts that are written for a host.  Whatever goes in stays data."""

import shlex
from collections.abc import Iterable, Sequence


def comment(lines: Iterable[str]) -> list[str]:
    """Comment lines, in which nothing ends the line early; xl.cfg and YAML have the same."""
    return ["# " + "".join(c if c.isprintable() else "?" for c in line) for line in lines]


def command(head: str, options: Sequence[Sequence[str]], tail: str = "") -> str:
    """``head`` (shell text), the quoted words of ``options`` a line each, ``tail`` (shell text)."""
    lines = [head, *(" ".join(map(shlex.quote, words)) for words in options)]
    return " \\\n    ".join([*lines, tail] if tail else lines)


# A script works in its own directory: there lie the images.
BESIDE_IMAGES = 'CDPATH= cd -- "$(dirname -- "$0")"'


def script(lines: Iterable[str]) -> bytes:
    """A POSIX shell script that stops at the first thing that fails."""
    return "\n".join(["#!/bin/sh", *lines, ""]).encode()
