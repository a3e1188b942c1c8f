"""The order of versions, as rpm and the boot loaders have it."""

import re

_SEGMENT = re.compile(r"[0-9]+|[a-zA-Z]+")

Key = tuple[tuple[int, int, str], ...]


def version_key(version: str) -> Key:
    """For sorting: numbers by value and above letters, the longer one above its own beginning."""
    key = []
    for segment in _SEGMENT.findall(version):
        if segment[0].isdigit():
            digits = segment.lstrip("0")
            key.append((1, len(digits), digits))
        else:
            key.append((0, 0, segment))
    return tuple(key)
