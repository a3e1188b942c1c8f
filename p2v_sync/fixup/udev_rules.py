"""Rules of udev that name network interfaces, from all its ages (udev(7)).

Old ones say SYSFS{address} where newer ones say ATTR{address}; SLES 10 calls rename_netiface.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from p2v_sync.fixup.lines import body, split_lines

_PAIR = re.compile(
    r"(?<![A-Z_])([A-Z_]++(?:\{[^}\"]{0,100}\})?)[ \t]*+(==|!=|:=|\+=|-=|=)[ \t]*+"
    r'"((?:[^"\\]|\\.)*+)"'
)
_RENAMED = re.compile(r"rename_netiface\s+%k\s+(\S+)")
_ADDRESSES = ("ATTR{address}", "SYSFS{address}", "ATTRS{address}")
_OF_HARDWARE = (
    "KERNELS",
    "ID",
    "DEVPATH",
    "DRIVER",
    "ENV{ID_PATH}",
    "ENV{ID_VENDOR_ID}",
    "ENV{ID_MODEL_ID}",
    "ENV{ID_NET_DRIVER}",
    "ATTRS{vendor}",
    "ATTRS{device}",
    "SYSFS{vendor}",
    "SYSFS{device}",
)


@dataclass(frozen=True)
class NameRule:
    """A rule that gives a network interface its name.

    ``lines``: the numbers (from 0) of those that it is written on.  ``address``: lower case, ''
    when it matches none.
    """

    lines: range
    name: str
    address: str
    matches: Mapping[str, str]  # KEY or KEY{attribute} → the value of its ==

    @property
    def hardware(self) -> tuple[str, ...]:
        """What it matches that a virtual machine's interface can't have: slots, drivers."""
        found = {key: value for key, value in self.matches.items() if key in _OF_HARDWARE}
        driver = self.matches.get("DRIVERS", "?*")
        if driver not in ("?*", "*"):
            found["DRIVERS"] = driver
        return tuple(found.values())


def name_rules(text: str) -> Iterator[NameRule]:
    """All of a file, in their order."""
    for lines, logical in _logical_lines(text):
        if not logical.lstrip().startswith("#"):
            rule = _rule(lines, logical)
            if rule is not None:
                yield rule


def _logical_lines(text: str) -> Iterator[tuple[range, str]]:
    start, parts = 0, list[str]()
    for number, line in enumerate(map(body, split_lines(text))):
        continues = line.endswith("\\") and not line.lstrip().startswith("#")
        parts.append(line.removesuffix("\\") if continues else line)
        if not continues:
            yield range(start, number + 1), "".join(parts)
            start, parts = number + 1, []
    if parts:
        yield range(start, start + len(parts)), "".join(parts)


def _rule(lines: range, text: str) -> NameRule | None:
    matches, name = dict[str, str](), ""
    for key, operator, value in _PAIR.findall(text):
        if operator == "==":
            matches[key] = value
        elif key == "NAME" and operator in ("=", ":="):
            name = value
        elif key.startswith(("IMPORT", "PROGRAM", "RUN")) and (found := _RENAMED.search(value)):
            name = found[1]
    address = next((matches[key] for key in _ADDRESSES if key in matches), "").lower()
    is_net = matches.get("SUBSYSTEM") == "net" or bool(address)
    if not name or not is_net or "%" in name or "$" in name:
        return None
    return NameRule(lines, name, address, matches)


def written(name: str, mac: str, *, is_old: bool = False) -> str:
    """A rule that names the interface with that address, without a line end.

    Only what has a driver, so no bridge, bond or VLAN that took the address over.
    """
    if is_old:
        return f'SUBSYSTEM=="net", ACTION=="add", SYSFS{{address}}=="{mac}", NAME="{name}"'
    return (
        'SUBSYSTEM=="net", ACTION=="add", DRIVERS=="?*", '
        f'ATTR{{address}}=="{mac}", ATTR{{type}}=="1", NAME="{name}"'
    )
