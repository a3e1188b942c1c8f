"""Mounting volumes of the overlays, and nothing else (device.storage.Mounter)."""

import os
from collections.abc import Iterable
from pathlib import Path

from p2v_sync import run
from p2v_sync.device.attributes import PROC, SYS
from p2v_sync.device.mounts import read_uses
from p2v_sync.device.storage import Storage, Volume
from p2v_sync.device.topology import Node, Topology, read_topology
from p2v_sync.errors import CommandError, FixupError
from p2v_sync.overlay import btrfs, lineage, md

# How to read without replaying the journal, the first that the kernel takes.  A journal would be
# replayed into the overlay, harmless but a change that nobody asked for.
_READ_ONLY = {
    "ext3": ("noload",),
    "ext4": ("noload",),
    "xfs": ("norecovery",),
    "btrfs": ("rescue=nologreplay", "nologreplay", ""),
    "reiserfs": ("nolog",),
    "f2fs": ("norecovery",),
}
# Without it a thread fills the inode tables, and the copy-on-write space.
_WRITABLE = {"ext4": "noinit_itable"}
_TYPES = {"ntfs": "ntfs3"}  # blkid's names, where the kernel's differ
_ONLY_READ = frozenset({"ntfs", "squashfs", "iso9660"})
_PATIENCE_S = 900.0  # a long log to replay, much to write back
_ALWAYS = "nodev,nosuid"
# What a guest's fstab may ask for: the subvolume, and the quotas without which XFS forgets them.
_ALLOWED = frozenset(
    {
        "subvol", "subvolid", "quota", "usrquota", "grpquota", "prjquota", "uquota", "gquota",
        "pquota", "uqnoenforce", "gqnoenforce", "pqnoenforce",
    }
)  # fmt: skip


def check_options(options: str) -> list[str]:
    """The further options, one by one.  Raises FixupError for one that could do harm."""
    wanted = [option for option in options.split(",") if option]
    for option in wanted:
        if option.partition("=")[0] not in _ALLOWED or not option.isprintable():
            raise FixupError(f"the guest's mount option {option[:60]!r} is not used here")
    return wanted


def option_sets(
    volume: Volume, *, writable: bool, options: str, members: Iterable[str]
) -> list[str]:
    """``-o`` for each try.  Raises FixupError for a file system that is only read."""
    extra = check_options(options)
    if volume.kind == "btrfs":
        extra += [f"device={member}" for member in members]
    if not writable:
        ways = [["ro", way] for way in _READ_ONLY.get(volume.kind, ("",))]
    elif volume.kind in _ONLY_READ:
        raise FixupError(f"{volume.device}: {volume.kind} is never written to")
    else:
        ways = [["rw", "noatime", "nodiratime", _WRITABLE.get(volume.kind, "")]]
    return [",".join(filter(None, [*way, _ALWAYS, *extra])) for way in ways]


class OverlayMounter:
    """For the volumes of one assembly."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._points: list[Path] = []

    def mount(self, volume: Volume, point: Path, *, writable: bool, options: str = "") -> None:
        """``options``: as the guest's fstab has them, checked.  Makes the directory ``point``.

        Raises FixupError, also when what was mounted turns out to be no overlay; it is unmounted
        then.
        """
        topology, node = _check_device(volume)
        members = [each.device for each in self._storage if each.uuid == volume.uuid]
        ways = option_sets(volume, writable=writable, options=options, members=members)
        try:
            point.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FixupError(f"{point} can't be made: {error.strerror}") from error
        if os.path.ismount(point):
            raise FixupError(f"something is mounted on {point} already")
        if volume.kind == "btrfs":
            _register(volume, [Path(member) for member in members])
        if writable:
            for array in lineage.arrays_below(topology, node.name):
                md.freeze(array)
        _mount(volume, point, ways)
        self._points.append(point)
        if not _stands_on_overlays(point):
            self.unmount_all()
            raise FixupError(
                f"mounting {volume.device} gave a device that is no overlay; it was unmounted",
                hint="the same file system is known to this kernel from elsewhere",
            )

    def unmount_all(self) -> None:
        """The last first.  Raises FixupError when something stays."""
        while self._points:
            point = self._points[-1]
            try:
                run.capture(["umount", str(point)], timeout_s=_PATIENCE_S)
            except CommandError as error:
                raise FixupError(f"{point} can't be unmounted: {error.message}") from error
            self._points.pop()


def _register(volume: Volume, members: list[Path]) -> None:
    """Now, and not earlier: udev may tell the kernel of the origins at any moment.

    A device that is missing here would be taken from them, and written to (P1).
    """
    if missing := btrfs.count_missing(members):
        raise FixupError(f"{volume.device} is a btrfs that lacks {missing} of its devices")
    btrfs.forget()
    btrfs.scan(members)


def _mount(volume: Volume, point: Path, ways: list[str]) -> None:
    kind = _TYPES.get(volume.kind, volume.kind)
    for number, way in enumerate(ways, 1):
        argv = ["mount", "-t", kind, "-o", way, volume.device, str(point)]
        try:
            run.capture(argv, timeout_s=_PATIENCE_S)
            return
        except CommandError as error:
            if number == len(ways):
                raise FixupError(f"{volume.device} can't be mounted: {error.message}") from error


def _check_device(volume: Volume) -> tuple[Topology, Node]:
    topology = read_topology(SYS)
    node = topology.by_path(volume.device) if volume.device else None
    if node is None or not lineage.is_overlaid(topology, node.name):
        raise FixupError(f"{volume.device or 'a volume without a device'} is no overlay of ours")
    if not volume.kind:
        raise FixupError(f"there is no file system on {volume.device}")
    return topology, node


def _stands_on_overlays(point: Path) -> bool:
    """True when every device that the kernel names for a mount point does."""
    topology = read_topology(SYS)
    uses = read_uses(topology, SYS, PROC)
    devices = [dev for dev, users in uses.items() if str(point.resolve()) in users]
    # btrfs shows an anonymous number too, which is no device.
    nodes = [node for dev in devices if (node := topology.by_dev(dev))]
    return bool(nodes) and all(lineage.is_overlaid(topology, node.name) for node in nodes)
