"""The kernel's read-only flag on a source disk (P1): nobody writes while we copy, not even we."""

import errno
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from p2v_sync.device import ioctl
from p2v_sync.device.attributes import SYS
from p2v_sync.device.mounts import users_of
from p2v_sync.device.source import open_read_only
from p2v_sync.device.topology import Node, Topology, read_topology
from p2v_sync.errors import DeviceBusy, DeviceError, SourceMissing

log = logging.getLogger(__name__)

# How the uuid of every device-mapper map begins that stands over a disk of ours.
OVERLAY_UUID = "P2VSYNC-"


def _node_path(node: Node) -> Path:
    return Path("/dev", node.name.replace("!", "/"))


def _parts_of(path: Path) -> list[Path]:
    """Device nodes of a disk's partitions."""
    topology, node = _node_of(path)
    return [_node_path(part) for part in topology.partitions(node.name)] if node else []


def _node_of(path: Path) -> tuple[Topology, Node | None]:
    number = path.stat().st_rdev
    topology = read_topology(SYS)
    return topology, topology.by_dev(f"{os.major(number)}:{os.minor(number)}")


def _has_overlay(path: Path) -> bool:
    """True while a snapshot of ours stands on the disk: its flag is the overlay's to clear."""
    try:
        topology, node = _node_of(path)
    except (OSError, DeviceError):
        return False
    uppers = topology.holders.get(node.name, ()) if node else ()
    found = (topology.nodes.get(name) for name in uppers)
    return any(upper is not None and upper.dm_uuid.startswith(OVERLAY_UUID) for upper in found)


def writable_nodes(path: Path) -> list[Path]:
    """The disk and those of its partitions that can be written to.  Raises DeviceError."""
    found = []
    for each in [path, *_parts_of(path)]:
        try:
            fd = open_read_only(each)
        except SourceMissing:
            continue
        try:
            if not ioctl.is_read_only(fd):
                found.append(each)
        finally:
            os.close(fd)
    return found


def lock(path: Path) -> None:
    """Set the flag of a disk and its partitions, for longer than a ``with``.

    Raises DeviceError.
    """
    _lock_all(path, [], left_by_us=False)


def unlock(paths: Iterable[Path]) -> None:
    """Clear the flag of each; failures are only logged."""
    for each in paths:
        _unlock(each)


def _lock(path: Path) -> bool:
    """Set the flag; False when it was set already."""
    fd = open_read_only(path)
    try:
        if ioctl.is_read_only(fd):
            return False
        ioctl.mark_read_only(fd, True)
    except OSError as error:
        is_denied = error.errno in (errno.EACCES, errno.EPERM)
        hint = "run as root" if is_denied else None
        text = f"can't set {path} read-only: {error.strerror}"
        raise DeviceError(text, hint=hint) from error
    finally:
        os.close(fd)
    return True


def _lock_all(path: Path, changed: list[Path], *, left_by_us: bool) -> None:
    if _lock(path) or left_by_us:
        changed.append(path)
    for part in _parts_of(path):
        try:
            if _lock(part) or left_by_us:
                changed.append(part)
        except SourceMissing:
            # Small live systems and containers have no nodes for partitions; nothing that
            # goes through a node can write to them then.
            log.debug("%s: no such node", part)


def _unlock(path: Path) -> None:
    """Clear the flag; a failure must not hide what went wrong before."""
    try:
        fd = open_read_only(path)
        try:
            ioctl.mark_read_only(fd, False)
        finally:
            os.close(fd)
    except (OSError, DeviceError) as error:
        log.warning("%s stays read-only: %s", path, error)


@contextmanager
def read_only(path: Path, *, left_by_us: bool = False) -> Iterator[list[Path]]:
    """Keep a disk and its partitions read-only inside the ``with``; yields what had to be changed.

    What was writable before is writable again after; so is, with ``left_by_us``, what a killed run
    of ours left read-only.  While an overlay stands on the disk it stays as it is.  Regular files
    have no such flag: nothing happens.  Raises DeviceBusy for a disk in use, because some kernels
    answer the writes of a mounted file system with EIO then (a seed is read without this);
    DeviceError without the right to do it.  Does nothing either for what is no disk or not there:
    opening it says so.
    """
    changed: list[Path] = []
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = 0
    try:
        if stat.S_ISBLK(mode):
            if users := users_of(path):
                text = f"{path} is in use by {', '.join(users)}"
                raise DeviceBusy(text, hint="unmount it, or copy it as it runs with --seed")
            _lock_all(path, changed, left_by_us=left_by_us)
        yield changed
    finally:
        if changed and not _has_overlay(path):
            unlock(reversed(changed))
