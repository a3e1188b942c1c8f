"""Which disks this machine has, as the 2008 tool found out: by sniffing /sys/block.

Nothing is left out silently: what is no candidate stays in the list with the reason.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from p2v_sync.device.attributes import PROC, SYS, read_int, read_text
from p2v_sync.device.describe import MULTIPATH_PREFIX, bus_of, model_of, names_of
from p2v_sync.device.mounts import Uses, read_uses, uses_above
from p2v_sync.device.table import TABLE_BYTES, parse_table
from p2v_sync.device.topology import Node, Topology, read_topology

# sysfs counts in these whatever the disk's own sectors are (Documentation/ABI/stable/sysfs-block).
SYSFS_SECTOR = 512

# /dev path → the disk's first TABLE_BYTES; empty when they can't be read.
HeadReader = Callable[[str], bytes]

_DISK = re.compile(
    r"(sd|hd|vd|xvd|ubd)[a-z]+|nvme\d+n\d+|mmcblk\d+|(cciss|ida|rd)!c\d+d\d+|md(\d+|_\w+)|pmem\d+"
)
_NVME_PATH = re.compile(r"(nvme\d+)c\d+(n\d+)")
_NOT_DISKS = (
    (re.compile(r"loop\d+"), "loop device"),
    (re.compile(r"ram\d+"), "RAM disk"),
    (re.compile(r"zram\d+"), "compressed RAM disk"),
    (re.compile(r"(sr|scd)\d+"), "CD or DVD drive"),
    (re.compile(r"fd\d+"), "floppy drive"),
    (re.compile(r"mmcblk\d+boot\d+"), "boot area of a memory card"),
    (re.compile(r"mmcblk\d+rpmb"), "replay-protected area of a memory card"),
    (re.compile(r"mmcblk\d+gp\d+"), "general-purpose area of a memory card"),
    (re.compile(r"(nbd|rbd)\d+"), "network block device"),
    (re.compile(r"drbd\d+"), "DRBD device: its backing disk is copied"),
    (re.compile(r"bcache\d+"), "bcache device: its backing disk is copied"),
    (re.compile(r"zd\d+"), "ZFS volume: its pool's disks are copied"),
    (re.compile(r"mtdblock\d+"), "flash memory"),
)
_DM_KINDS = (
    (re.compile(r"part\d+-.*"), "partition"),
    (re.compile(r"LVM-.*"), "logical volume"),
    (re.compile(r"CRYPT-.*"), "encrypted volume"),
)
# One disk each, made of others: multipath, and BIOS RAID assembled by dmraid.
_DM_DISKS = (MULTIPATH_PREFIX, "DMRAID-")
# Where Debian's live-boot and dracut's dmsquash-live mount what they booted from, or what the ISO
# image they booted from lies on.
_LIVE_MOUNTS = frozenset(
    {
        "/run/live/medium",
        "/lib/live/mount/medium",
        "/run/live/findiso",
        "/run/initramfs/live",
        "/run/initramfs/isoscan",
    }
)


@dataclass(frozen=True)
class Disk:
    """A whole disk.  Sizes are bytes, texts are '' where the disk does not say."""

    name: str  # the kernel's, "cciss!c0d0" included
    path: str
    size: int
    model: str
    serial: str
    wwn: str
    bus: str
    logical_sector_size: int
    physical_sector_size: int
    read_only: bool
    removable: bool
    partition_table: str  # "gpt", "dos" or ''
    mounted: tuple[str, ...]  # mount points, "swap on PATH"
    holders: tuple[str, ...]  # dm, md, … devices built on it, in use or not
    excluded: str | None  # why it is no candidate


def read_head(path: str) -> bytes:
    """The first :data:`TABLE_BYTES` of a device; empty when it can't be opened or read (P1)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(fd, TABLE_BYTES, 0)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _no_head(_path: str) -> bytes:
    return b""


def _size(node: Node) -> int:
    return read_int(node.directory / "size") * SYSFS_SECTOR


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _is_dm_disk(node: Node) -> bool:
    return node.dm_uuid.startswith(_DM_DISKS)


def _covers(topology: Topology, upper: Node, disk: str) -> bool:
    """True when ``upper`` is built of the whole disk, or of every partition it has."""
    slaves = topology.slaves(upper.name)
    parts = {part.name for part in topology.partitions(disk)}
    return disk in slaves or (bool(parts) and parts <= slaves)


def _disks_below(topology: Topology, name: str) -> set[str]:
    return {
        topology.nodes[slave].disk if slave in topology.nodes else slave
        for slave in topology.slaves(name)
    }


def _md_reason(node: Node, topology: Topology) -> str | None:
    """Why an array is no disk of its own.

    An array that takes up its members is the disk.  Arrays on some of the partitions (/boot on one,
    / on another) are parts of the disks below, which also hold the table and the boot loader.
    """
    below = _disks_below(topology, node.name)
    volumes = {name for name in below if name.startswith("dm-")}
    if any(name in topology.nodes and not _is_dm_disk(topology.nodes[name]) for name in volumes):
        return f"array on {_listed(below)}, which is part of a disk that is copied whole"
    if all(_covers(topology, node, disk) for disk in below):
        return None
    return f"array on partitions of {_listed(below)}, which are copied whole"


def _dm_reason(node: Node, topology: Topology) -> str | None:
    if _is_dm_disk(node):
        return None
    kind = next((text for pattern, text in _DM_KINDS if pattern.fullmatch(node.dm_uuid)), None)
    below = _listed(_disks_below(topology, node.name))
    return (kind or "device-mapper device") + (f" on {below}" if below else "")


def _kind_reason(node: Node, topology: Topology) -> str | None:
    """Why this kind of device is no disk."""
    for pattern, reason in _NOT_DISKS:
        if pattern.fullmatch(node.name):
            return reason
    if leg := _NVME_PATH.fullmatch(node.name):
        return f"path to {leg[1]}{leg[2]}"
    if node.name.startswith("dm-"):
        return _dm_reason(node, topology)
    if not _DISK.fullmatch(node.name):
        return "not a kind of disk p2v-sync knows"
    if read_text(node.directory / "device" / "media") in ("cdrom", "tape", "floppy"):
        return "CD, tape or floppy drive"
    return _md_reason(node, topology) if node.name.startswith("md") else None


def _is_compound(node: Node, topology: Topology) -> bool:
    """True for a disk that is made of other disks."""
    is_one = node.name.startswith("md") or _is_dm_disk(node)
    return is_one and _size(node) > 0 and _kind_reason(node, topology) is None


def _held_by(node: Node, topology: Topology) -> list[Node]:
    """The devices built directly on a disk or on one of its partitions."""
    own = [node.name, *(part.name for part in topology.partitions(node.name))]
    uppers = {upper for name in own for upper in topology.holders.get(name, ())}
    return [topology.nodes[upper] for upper in sorted(uppers) if upper in topology.nodes]


def _member_reason(node: Node, topology: Topology) -> str | None:
    """Why a disk is left out in favour of an array or multipath device made of it."""
    for upper in _held_by(node, topology):
        if not _is_compound(upper, topology) or not _covers(topology, upper, node.name):
            continue
        if upper.dm_uuid.startswith(MULTIPATH_PREFIX):
            return f"path to {upper.dm_name or upper.name}"
        whole = node.name in topology.slaves(upper.name)
        note = "" if whole else " (its own partition table and boot loader are not in there)"
        return f"part of {upper.dm_name or upper.name}{note}"
    return None


def _reason(node: Node, topology: Topology, mounted: tuple[str, ...]) -> str | None:
    """Why a device is left out, None for a candidate."""
    if reason := _kind_reason(node, topology):
        return reason
    if _size(node) == 0:
        return "array is not running" if node.name.startswith("md") else "no medium, or size zero"
    if reason := _member_reason(node, topology):
        return reason
    return "medium this system was started from" if _LIVE_MOUNTS & set(mounted) else None


def _path(node: Node) -> str:
    dm_name = node.dm_name
    return f"/dev/mapper/{dm_name}" if dm_name else "/dev/" + node.name.replace("!", "/")


def _holders(node: Node, topology: Topology) -> tuple[str, ...]:
    own = {node.name, *(part.name for part in topology.partitions(node.name))}
    return tuple(
        each.dm_name or each.name for each in topology.above(node.name) if each.name not in own
    )


def _describe(node: Node, topology: Topology, uses: Uses, head: HeadReader) -> Disk:
    directory, path = node.directory, _path(node)
    mounted = uses_above(topology, uses, node.name)
    reason = _reason(node, topology, mounted)
    logical = read_int(directory / "queue" / "logical_block_size") or SYSFS_SECTOR
    table = None if reason else parse_table(head(path), logical)
    names = names_of(directory)
    return Disk(
        name=node.name,
        path=path,
        size=_size(node),
        model=model_of(directory),
        serial=names.serial,
        wwn=names.wwn,
        bus=bus_of(directory),
        logical_sector_size=logical,
        physical_sector_size=read_int(directory / "queue" / "physical_block_size") or logical,
        read_only=read_int(directory / "ro") != 0,
        removable=read_int(directory / "removable") != 0,
        partition_table=table.kind if table else "",
        mounted=mounted,
        holders=_holders(node, topology),
        excluded=reason,
    )


def scan(
    sys_root: Path = SYS, proc_root: Path = PROC, head: HeadReader | None = None
) -> list[Disk]:
    """All whole disks of a sysfs tree, candidates and others.  Raises DeviceError without sysfs.

    ``head`` reads the first bytes of a candidate for its partition table.  By default the device
    itself is opened when ``sys_root`` is the real one, and never for a copy.
    """
    topology = read_topology(sys_root)
    uses = read_uses(topology, sys_root, proc_root)
    head = head or (read_head if sys_root == SYS else _no_head)
    return [_describe(node, topology, uses, head) for node in topology.disks()]
