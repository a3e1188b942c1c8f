"""Which disks are of no use without others: the members of one md array or one volume group."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from p2v_sync import run
from p2v_sync.errors import CommandError

_WITHIN_S = 60.0
_MEDIUM = ("iso9660", "P2V-SYNC")  # as livecd/build names it
_ARRAY = "linux_raid_member"


class Contents:
    """What lsblk(8) and pvs(8) say of the disks; both only read."""

    def __init__(self, lsblk: str, pvs: str = "") -> None:
        """Their JSON; anything else counts as nothing known."""
        self.kinds: dict[str, list[str]] = defaultdict(list)  # kernel name → ext4, swap, …
        self.media: set[str] = set()  # kernel names of disks that a live CD of ours is on
        self._sets: dict[str, set[str]] = defaultdict(set)  # UUID of a set → kernel names
        groups = {str(each.get("pv_name")): str(each.get("vg_name")) for each in _volumes(pvs)}
        for disk in _objects(lsblk, "blockdevices"):
            for node in _tree(disk):
                self._note(str(disk.get("name")), node, groups)

    def _note(self, disk: str, node: Mapping[str, Any], groups: Mapping[str, str]) -> None:
        kind = node.get("fstype")
        if not kind:
            return
        self.kinds[disk].append(str(kind))
        if (kind, node.get("label")) == _MEDIUM:
            self.media.add(disk)
        if kind == _ARRAY:
            self._sets[f"array {node.get('uuid')}"].add(disk)
        elif group := groups.get(f"/dev/{node.get('name')}"):
            self._sets[f"group {group}"].add(disk)

    def kept_with(self, disk: str) -> tuple[str, ...]:
        """The others that ``disk`` shares an array or volume group with, however far away."""
        found, ahead = {disk}, [disk]
        while ahead:
            name = ahead.pop()
            near = {each for members in self._sets.values() if name in members for each in members}
            ahead += near - found
            found |= near
        return tuple(sorted(found - {disk}))


def _objects(text: str, key: str) -> list[dict[str, Any]]:
    try:
        return [each for each in json.loads(text)[key] if isinstance(each, dict)]
    except (ValueError, KeyError, TypeError):
        return []


def _volumes(text: str) -> Iterator[dict[str, Any]]:
    for report in _objects(text, "report"):
        yield from (each for each in report.get("pv", ()) if isinstance(each, dict))


def _tree(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for child in node.get("children", ()):
        yield from _tree(child)


def read_contents() -> Contents:
    """Without the programs nothing is known."""
    return Contents(
        _said(["lsblk", "--json", "--output", "NAME,FSTYPE,UUID,LABEL"]),
        _said(["pvs", "--readonly", "--reportformat", "json", "--options", "pv_name,vg_name"]),
    )


def _said(argv: list[str]) -> str:
    try:
        return run.capture(argv, timeout_s=_WITHIN_S)
    except CommandError:
        return ""
