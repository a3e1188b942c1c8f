"""What stands on the overlays and on nothing else, and how it is taken down.  Origin and overlay
carry the same UUIDs, so where a device comes from is asked of the kernel, never of a name (P1)."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from p2v_sync import run
from p2v_sync.device.attributes import PROC, SYS
from p2v_sync.device.mounts import read_uses, uses_above
from p2v_sync.device.topology import Node, Topology
from p2v_sync.errors import CommandError, OverlayBusy
from p2v_sync.overlay import mapper


def is_overlaid(topology: Topology, name: str) -> bool:
    """True when every path downwards from a device ends at an overlay."""
    node = topology.nodes.get(name)
    if node is None:
        return False
    if mapper.is_overlay(node):
        return True
    lower = {node.disk} if node.is_partition else topology.slaves(name)
    return bool(lower) and all(is_overlaid(topology, each) for each in lower)


def arrays_below(topology: Topology, name: str) -> set[str]:
    """The md arrays that a device is, or stands on."""
    node = topology.nodes[name]
    lower = {node.disk} if node.is_partition else topology.slaves(name)
    found = {name} if name.startswith("md") and not node.is_partition else set()
    return found.union(*(arrays_below(topology, each) for each in lower if each in topology.nodes))


def uppers_first(topology: Topology, names: Iterable[str]) -> list[Node]:
    """Everything built on these devices, those on top first; without them and without partitions
    that the kernel found, which go with their disk."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        parts = [part.name for part in topology.partitions(name)]
        for lower in [name, *parts]:
            for upper in sorted(topology.holders.get(lower, ())):
                if upper not in ordered:
                    visit(upper)
                    ordered.append(upper)

    bases = list(names)
    for base in bases:
        visit(base)
    return [topology.nodes[name] for name in ordered if name in topology.nodes]


def users(topology: Topology, names: Iterable[str]) -> Iterator[str]:
    """Mount points and swap areas on these devices and on what is built on them."""
    uses = read_uses(topology, SYS, PROC)
    seen = (user for name in names for user in uses_above(topology, uses, name))
    yield from dict.fromkeys(seen)


def take_down(topology: Topology, names: Iterable[str]) -> None:
    """Remove all that was built on these devices, not themselves.  Raises OverlayBusy."""
    bases = list(names)
    if mounted := list(users(topology, bases)):
        raise OverlayBusy(f"the overlay is in use by {', '.join(mounted)}", hint="unmount it")
    mapper.settle()
    for node in uppers_first(topology, bases):
        _take_down(node)


def _take_down(node: Node) -> None:
    if node.dm_name:
        # Logical volumes too: nothing of LVM's is on the disk for an active volume.
        mapper.remove(node.dm_name)
    elif node.name.startswith("md"):
        try:
            run.capture(["mdadm", "--stop", str(device_path(node))])
        except CommandError as error:
            raise OverlayBusy(f"/dev/{node.name} can't be stopped: {error.message}") from error
    else:
        raise OverlayBusy(f"/dev/{node.name} was made of the overlay", hint="take it down first")


def device_path(node: Node) -> Path:
    """Its node below /dev."""
    if node.dm_name:
        return mapper.MAPPER / node.dm_name
    return Path("/dev", node.name.replace("!", "/"))
