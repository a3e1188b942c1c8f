"""What lies on what: disks, their partitions, and the dm, md and loop devices above them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from p2v_sync.device.attributes import names_in, read_bytes, read_text
from p2v_sync.errors import DeviceError


@dataclass(frozen=True)
class Node:
    """One block device of sysfs: a whole disk or a partition."""

    name: str  # the kernel's, with '!' for '/': cciss!c0d0
    directory: Path
    dev: str  # "major:minor"
    disk: str  # name of the whole disk; its own for whole disks

    @property
    def is_partition(self) -> bool:
        return self.name != self.disk

    @property
    def dm_uuid(self) -> str:
        return read_text(self.directory / "dm" / "uuid")

    @property
    def dm_name(self) -> str:
        return read_text(self.directory / "dm" / "name")

    @property
    def backing_file(self) -> Path | None:
        """What a loop device shows; the kernel ends the line of a deleted file in (deleted)."""
        raw = read_bytes(self.directory / "loop" / "backing_file").removesuffix(b"\n")
        return Path(raw.decode("utf-8", errors="surrogateescape")) if raw else None


@dataclass(frozen=True)
class Topology:
    """A snapshot of sysfs.  ``holders`` maps a device to those built on top of it."""

    nodes: Mapping[str, Node]
    holders: Mapping[str, frozenset[str]]

    def disks(self) -> list[Node]:
        """Whole disks as people count: sda, sdb, sdaa, md2, md10."""
        whole = (node for node in self.nodes.values() if not node.is_partition)
        return sorted(whole, key=lambda node: _natural(node.name))

    def partitions(self, disk: str) -> list[Node]:
        """The partitions of a disk, as the kernel numbers them."""
        parts = (node for node in self.nodes.values() if node.disk == disk and node.is_partition)
        return sorted(parts, key=lambda node: _natural(node.name))

    def slaves(self, name: str) -> set[str]:
        """The devices that ``name`` is built of."""
        return {lower for lower, uppers in self.holders.items() if name in uppers}

    def above(self, name: str) -> Iterator[Node]:
        """The device itself, its partitions, and everything built on any of them."""
        waiting, seen = [name], {name}
        while waiting:
            current = waiting.pop(0)
            if current in self.nodes:
                yield self.nodes[current]
            parts = [part.name for part in self.partitions(current)]
            for upper in [*parts, *sorted(self.holders.get(current, ()))]:
                if upper not in seen:
                    seen.add(upper)
                    waiting.append(upper)

    def by_dev(self, dev: str) -> Node | None:
        """The device with that ``major:minor``."""
        return next((node for node in self.nodes.values() if node.dev == dev), None)

    def by_path(self, path: str) -> Node | None:
        """The device of a /dev path, by name alone: /dev/sda1, /dev/cciss/c0d0, /dev/mapper/x."""
        name = path.removeprefix("/dev/").replace("/", "!")
        if name in self.nodes:
            return self.nodes[name]
        mapped = path.removeprefix("/dev/mapper/")
        is_mapped = mapped not in ("", path)
        named = (node for node in self.nodes.values() if is_mapped and node.dm_name == mapped)
        return next(named, None)


def _natural(name: str) -> list[tuple[int, str] | int]:
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if at % 2 else (len(part), part) for at, part in enumerate(parts)]


def _is_partition(directory: Path) -> bool:
    return (directory / "partition").exists() or (directory / "start").exists()


def _nodes(block: Path) -> Iterator[Node]:
    for name in names_in(block):
        directory = (block / name).resolve()
        yield Node(name, directory, read_text(directory / "dev"), name)
        for part in names_in(directory):
            inner = directory / part
            if part.startswith(name) and _is_partition(inner):
                yield Node(part, inner, read_text(inner / "dev"), name)


def _is_on(node: Node) -> Iterator[tuple[str, str]]:
    """``(lower, upper)`` pairs that one device knows of, looking down and up."""
    yield from ((node.name, upper) for upper in names_in(node.directory / "holders"))
    yield from ((lower, node.name) for lower in names_in(node.directory / "slaves"))
    # A loop device claims its backing device but does not appear among its holders.
    backing = node.backing_file
    if backing is not None and backing.is_relative_to("/dev"):
        yield str(backing.relative_to("/dev")).replace("/", "!"), node.name


def read_topology(sys_root: Path) -> Topology:
    """All block devices below ``sys_root``.  Raises DeviceError when it has no ``block``."""
    block = sys_root / "block"
    if not block.is_dir():
        raise DeviceError(f"there is no {block}", hint="is sysfs mounted?")
    nodes = {node.name: node for node in _nodes(block)}
    holders: defaultdict[str, set[str]] = defaultdict(set)
    for node in nodes.values():
        for lower, upper in _is_on(node):
            holders[lower].add(upper)
    return Topology(nodes, {name: frozenset(uppers) for name, uppers in holders.items()})
