"""Who uses a disk: mounted file systems and swap on it, its partitions and what is built on it."""

import errno
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from p2v_sync.device.attributes import LIST_CAP, PROC, SYS, names_in, read_bytes, read_text
from p2v_sync.device.topology import Node, Topology, read_topology

# "major:minor" → mount points and swap areas on exactly that device.
Uses = Mapping[str, tuple[str, ...]]

_OCTAL = re.compile(r"\\([0-7]{3})")


def _unescape(field: str) -> str:
    r"""``\040`` → space: how the kernel writes white space and backslashes in its tables."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _lines(path: Path) -> list[list[str]]:
    text = read_bytes(path, LIST_CAP).decode("utf-8", errors="replace")
    return [line.split(" ") for line in text.splitlines()]


class _Mount(NamedTuple):
    dev: str  # major:minor
    point: str
    source: str
    is_writable: bool  # the file system, whatever this mount of it allows


def _mounts(proc_root: Path) -> Iterator[_Mount]:
    """Each mount; man 5 proc_pid_mountinfo."""
    for fields in _lines(proc_root / "self" / "mountinfo"):
        rest = fields[fields.index("-", 6) :] if "-" in fields[6:] else []
        if len(rest) > 2:
            is_writable = len(rest) < 4 or "ro" not in rest[3].split(",")
            yield _Mount(fields[2], _unescape(fields[4]), _unescape(rest[2]), is_writable)


def _swaps(proc_root: Path) -> Iterator[str]:
    for fields in _lines(proc_root / "swaps")[1:]:
        yield _unescape(fields[0].split("\t")[0])


def _btrfs_members(sys_root: Path) -> list[set[str]]:
    """One set of ``major:minor`` for each mounted btrfs; mountinfo names just one of its disks."""
    root = sys_root / "fs" / "btrfs"
    groups = []
    for name in names_in(root):
        devices = root / name / "devices"
        groups.append({read_text(devices / member / "dev") for member in names_in(devices)} - {""})
    return [group for group in groups if group]


def _dev_lookup(topology: Topology, sys_root: Path) -> Callable[[str], str]:
    """How a path of mountinfo becomes a device number; a copied tree never asks the real /dev."""

    def by_name(path: str) -> str:
        node = topology.by_path(path)
        return node.dev if node else ""

    return _dev_of if sys_root == SYS else by_name


def _dev_of(path: str) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    if not stat.S_ISBLK(status.st_mode):
        return ""
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def read_uses(
    topology: Topology, sys_root: Path, proc_root: Path, *, also_read_only: bool = True
) -> Uses:
    """Mount points and swap areas by device number; on request only what may be written to."""
    uses: defaultdict[str, list[str]] = defaultdict(list)
    dev_of = _dev_lookup(topology, sys_root)
    groups = _btrfs_members(sys_root)
    for dev, mount_point, source, is_writable in _mounts(proc_root):
        if not (is_writable or also_read_only):
            continue
        # btrfs and bcachefs mount under anonymous numbers, so the source counts as well; bcachefs
        # joins its devices with colons.
        devs = {dev} | {dev_of(part) for part in source.split(":") if part.startswith("/")}
        for group in groups:
            devs |= group if devs & group else set()
        for each in devs - {""}:
            uses[each].append(mount_point)
    for path in _swaps(proc_root):
        uses[dev_of(path)].append(f"swap on {path}")
    return {dev: tuple(dict.fromkeys(users)) for dev, users in uses.items() if dev}


def uses_above(topology: Topology, uses: Uses, name: str) -> tuple[str, ...]:
    """Who uses a device, its partitions or what is built on them; each mount point once."""
    found = (user for node in topology.above(name) for user in uses.get(node.dev, ()))
    return tuple(dict.fromkeys(found))


def _loops_on(file: Path, topology: Topology) -> Iterator[Node]:
    """The loop devices that show this regular file."""
    for node in topology.disks():
        backing = node.backing_file
        try:
            if backing is not None and backing.samefile(file):
                yield node
        except OSError:
            continue


def _is_claimed(path: Path) -> bool:
    """True when somebody has the device or a part of it for himself.

    File systems in other mount namespaces, ZFS and the like are in no table we can read, but each
    claims its device, and O_EXCL on a block device (man 2 open) fails then.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _users(nodes: Iterable[Node], topology: Topology, uses: Uses) -> list[str]:
    found = (user for node in nodes for user in uses_above(topology, uses, node.name))
    return list(dict.fromkeys(found))


def users_of(path: Path, sys_root: Path = SYS, proc_root: Path = PROC) -> list[str]:
    """Who uses a source: mount points as they are, ``swap on PATH``, or a sentence.  Empty: nobody.

    For a block device that is itself, its partitions and, upwards, every dm, md, bcache or loop
    device on them; for a regular file the loop devices that show it.  An idle holder (an LV that is
    active but not mounted) is no user.  A path that does not exist has none.
    """
    topology = read_topology(sys_root)
    uses = read_uses(topology, sys_root, proc_root)
    dev = _dev_of(os.fspath(path))
    if not dev:
        return _users(_loops_on(path, topology), topology, uses) if path.is_file() else []
    node = topology.by_dev(dev)
    if node is None:
        return []
    users = _users([node], topology, uses)
    is_held = any(topology.holders.get(each.name) for each in topology.above(node.name))
    if not users and not is_held and _is_claimed(path):
        return ["something that opened it exclusively (another mount namespace, ZFS)"]
    return users


def writers_of(path: Path, sys_root: Path = SYS, proc_root: Path = PROC) -> list[str]:
    """Those of ``users_of`` that may write: all but file systems that are mounted read-only."""
    topology = read_topology(sys_root)

    def names(uses: Uses) -> set[str]:
        return {user for users in uses.values() for user in users}

    known = names(read_uses(topology, sys_root, proc_root))
    writing = names(read_uses(topology, sys_root, proc_root, also_read_only=False))
    users = users_of(path, sys_root, proc_root)
    return [user for user in users if user in writing or user not in known]
