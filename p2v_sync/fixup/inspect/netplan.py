"""Netplan's files, as far as the names of interfaces and their cards go.

A reader of lines, not of all YAML: what netplan's own tools and installers write is block style.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from p2v_sync.fixup.guest import Interface, NetworkStack
from p2v_sync.fixup.inspect.reader import Reader, mac_of, shown

# /run is gone with the running system.
_PLACES = ("/etc/netplan/*.yaml", "/usr/lib/netplan/*.yaml", "/lib/netplan/*.yaml")
_KINDS = ("ethernets", "bonds", "bridges", "vlans", "wifis")
_KEY = re.compile(r"^( *)([^\s:#][^:#]*|\"[^\"]*\"|'[^']*'):(?:\s+(.*))?$")
_PAIR = re.compile(r"\b(macaddress|name|set-name)\s*:\s*[\"']?([^\"',}\s]+)")


@dataclass
class _Found:
    name: str
    matched: str = ""
    set_name: str = ""
    mac: str = ""
    is_in_match: bool = False
    match_depth: int = 0


def netplan_interfaces(reader: Reader) -> Iterator[Interface]:
    """A name that is only an id of the file gives way to ``set-name`` and ``match: name``."""
    paths = {path.rpartition("/")[2]: path for path in reversed(reader.files(*_PLACES))}
    for path in sorted(paths.values()):
        for found in _interfaces(reader.text(path)):
            name = found.set_name or found.matched or found.name
            yield Interface(shown(name), mac_of(found.mac), NetworkStack.NETPLAN, path)


def _interfaces(text: str) -> list[_Found]:
    found: list[_Found] = []
    section_depth = item_depth = 0  # 0: outside of one, before the first
    for line in text.splitlines():
        match = _KEY.match(line.rstrip())
        if match is None:
            continue
        depth, key, value = len(match[1]), match[2].strip().strip("\"'"), match[3] or ""
        if depth <= section_depth:
            section_depth = 0
        if not section_depth:
            section_depth, item_depth = (depth, 0) if key in _KINDS else (0, 0)
        elif not item_depth or depth <= item_depth:
            item_depth = depth
            found.append(_Found(key))
            _within(found[-1], depth, "", value)
        else:
            _within(found[-1], depth, key, value)
    return found


def _within(found: _Found, depth: int, key: str, value: str) -> None:
    """One key of an interface; ``macaddress`` outside of ``match`` is what the card is given."""
    if found.is_in_match and depth <= found.match_depth:
        found.is_in_match = False
    if key == "match":
        found.is_in_match, found.match_depth = True, depth
    pairs = dict(_PAIR.findall(f"{key}: {value}" if key else value))
    found.set_name = pairs.get("set-name", found.set_name)
    if found.is_in_match or "match" in value:
        found.matched = pairs.get("name", found.matched)
        found.mac = pairs.get("macaddress", found.mac)
