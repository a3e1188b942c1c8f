"""All volumes of the overlaid disks: partitions, arrays, volume groups, what is encrypted.

Everything is assembled from explicit devices of ours and, before it is handed out, the kernel is
asked whether it stands on overlays alone: the origins carry the same UUIDs (P1).
"""

import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from p2v_sync.device.attributes import SYS
from p2v_sync.device.storage import Storage, Volume, opened_name
from p2v_sync.device.topology import read_topology
from p2v_sync.errors import CommandError, OverlayError
from p2v_sync.overlay import btrfs, lineage, luks, mapper, md
from p2v_sync.overlay.lvm import Lvm
from p2v_sync.overlay.partitions import Partition, map_partition, read_partitions
from p2v_sync.overlay.probe import probe, size_of
from p2v_sync.overlay.snapshot import Overlay

_MD, _LVM, _LUKS, _BTRFS = "linux_raid_member", "LVM2_member", "crypto_LUKS", "btrfs"
# Whole worlds of their own, which are copied but not looked into.
_OPAQUE = frozenset(
    {
        "zfs_member", "bcache", "drbd", "DM_VDO", "vdo", "stratis", "ceph_bluestore", "oracleasm",
        "isw_raid_member", "ddf_raid_member", "mpath_member", "BitLocker",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Assembly:
    """``problems``: sentences about what is incomplete or was not looked into."""

    overlays: tuple[Overlay, ...]
    storage: Storage
    problems: tuple[str, ...]


@contextmanager
def assembled(
    overlays: Sequence[Overlay],
    *,
    ids: Mapping[str, Sequence[str]] | None = None,
    keys: luks.Keys | None = None,
) -> Iterator[Assembly]:
    """The volumes of these disks inside the ``with``; all is taken down after it.

    ``ids``: disk → its names below /dev (disk/by-id/…), as udev knows them.  ``keys``: for what is
    encrypted; without one that fits it stays locked, a volume of kind crypto_LUKS.  Raises
    OverlayError, CommandError; at the end OverlayBusy when something is still mounted.
    """
    names = [overlay.map_name for overlay in overlays]
    try:
        builder = _Builder(ids or {}, keys or luks.Keys())
        for overlay in overlays:
            builder.add_disk(overlay)
        builder.assemble()
        disks = tuple(overlay.disk for overlay in overlays)
        yield Assembly(
            tuple(overlays), Storage(tuple(builder.volumes), disks), tuple(builder.problems)
        )
    except BaseException:
        # What went wrong counts, not that it can't be tidied up now: removing the overlay will.
        with suppress(OverlayError, CommandError):
            _take_down(names)
        raise
    _take_down(names)


def _take_down(names: Sequence[str]) -> None:
    topology = read_topology(SYS)
    nodes = [mapper.find(topology, name) for name in names]
    btrfs.forget()
    lineage.take_down(topology, [node.name for node in nodes if node])


class _Builder:
    """Takes disks apart until nothing new is found."""

    def __init__(self, ids: Mapping[str, Sequence[str]], keys: luks.Keys) -> None:
        self.volumes: list[Volume] = []
        self.problems: list[str] = []
        self._ids = ids
        self._keys = keys
        self._arrays: list[Path] = []
        self._done: set[str] = set()  # arrays and encrypted volumes by UUID, sets of members

    def add_disk(self, overlay: Overlay) -> None:
        """A whole disk: its partitions, or what it is without them."""
        disk = overlay.disk
        names = [*self._ids.get(disk, ())]
        if "!" in disk:
            names.append(disk.replace("!", "/"))
        parts = self._partitions(overlay.device, overlay.size)
        if not parts:
            self._add(overlay.device, Volume("", disk, aliases=tuple(names)))
        for part in parts:
            aliases = [_part_name(name, part.number) for name in names]
            self._add_partition(overlay.device, part, Volume("", disk, aliases=tuple(aliases)))

    def _partitions(self, device: Path, size: int) -> list[Partition]:
        if "PTTYPE" not in probe(device):
            return []
        try:
            return read_partitions(device, size)
        except ValueError as error:
            self.problems.append(f"{device} has a partition table that makes no sense: {error}")
            return []

    def _add_partition(self, device: Path, part: Partition, known: Volume) -> None:
        known = replace(
            known,
            partition=part.number if known.disk else 0,
            part_uuid=part.uuid,
            part_label=part.label,
            part_type=part.kind,
        )
        self._add(map_partition(device, part), known)

    def _add(self, device: Path, known: Volume) -> None:
        """``known``: what is known but for what stands on it."""
        node = next(
            (each for each in read_topology(SYS).disks() if lineage.device_path(each) == device),
            None,
        )
        if node is None or not lineage.is_overlaid(read_topology(SYS), node.name):
            raise OverlayError(
                f"{device} does not stand on the overlays alone, so it is not used",
                hint="deactivate what this system made of the disks itself: vgchange -an",
            )
        found = probe(device)
        kind = found.get("TYPE", "")
        if kind in _OPAQUE:
            self.problems.append(f"{device} is {kind}: it is copied, but not looked into")
        self.volumes.append(
            replace(
                known,
                device=str(device),
                kind=kind,
                uuid=found.get("UUID", ""),
                label=found.get("LABEL", ""),
                size=size_of(device),
            )
        )

    def assemble(self) -> None:
        """Arrays, encrypted volumes and volume groups, on each other in any order."""
        done = -1
        while done != len(self._done):
            done = len(self._done)
            self._assemble_arrays()
            self._open_encrypted()
            self._activate_groups()
        self._check_btrfs()

    def _of_kind(self, kind: str) -> dict[str, list[Path]]:
        """UUID → devices."""
        found: defaultdict[str, list[Path]] = defaultdict(list)
        for volume in self.volumes:
            if volume.kind == kind:
                found[volume.uuid].append(Path(volume.device))
        return found

    def _assemble_arrays(self) -> None:
        for uuid, members in self._of_kind(_MD).items():
            if uuid in self._done:
                continue
            self._done.add(uuid)
            try:
                aliases = md.aliases_of(members[0], uuid)
                device = md.assemble(uuid, members)
            except CommandError as error:
                self.problems.append(f"the array of {members[0]} can't be used: {_said(error)}")
                continue
            if device is None:
                names = ", ".join(map(str, members))
                self.problems.append(f"the array of {names} lacks members and does not start")
                continue
            self._arrays.append(device)
            known = Volume("", "", aliases=aliases)
            parts = self._partitions(device, size_of(device))
            if not parts:
                self._add(device, known)
            for part in parts:
                named = tuple(_part_name(name, part.number) for name in aliases)
                self._add_partition(device, part, replace(known, aliases=named))

    def _open_encrypted(self) -> None:
        for volume in [each for each in self.volumes if each.kind == _LUKS]:
            if volume.uuid in self._done:
                continue
            self._done.add(volume.uuid)
            why = "no key that opens it was given"
            try:
                device = luks.unlock(volume, self._keys)
            except CommandError as error:
                device, why = None, _said(error)
            if device is None:
                name = luks.volume_name(volume)
                self.problems.append(f"{name} is encrypted and stays locked: {why}")
                continue
            aliases = (opened_name(volume.uuid), f"disk/by-id/dm-name-luks-{volume.uuid}")
            self._add(device, Volume("", "", aliases=aliases))

    def _activate_groups(self) -> None:
        members = [str(path) for paths in self._of_kind(_LVM).values() for path in paths]
        # A member found later may complete a group, so it is all looked at again then.
        if not members or (seen := " ".join(sorted(members))) in self._done:
            return
        self._done.add(seen)
        if shutil.which("lvm") is None:
            self.problems.append("LVM is not installed here: its volumes are not looked into")
            return
        known = {volume.device for volume in self.volumes}
        try:
            lvm = Lvm(self._arrays)
            new = [each for each in lvm.volumes() if str(each.device) not in known]
            lvm.activate(new)
            said = lvm.problems()
        except CommandError as error:
            self.problems.append(f"the volume groups can't be used: {_said(error)}")
            return
        self.problems += [each for each in said if each not in self.problems]
        for each in new:
            self._add(each.device, Volume("", "", aliases=each.aliases))

    def _check_btrfs(self) -> None:
        for uuid, devices in self._of_kind(_BTRFS).items():
            if missing := btrfs.count_missing(devices):
                self.problems.append(f"btrfs {uuid} lacks {missing} of its devices")


def _said(error: CommandError) -> str:
    """In one line."""
    return " ".join(error.message.split())


def _part_name(name: str, number: int) -> str:
    """sda → sda2, cciss/c0d0 → cciss/c0d0p2, disk/by-id/ata-x → disk/by-id/ata-x-part2."""
    if name.startswith("disk/"):
        return f"{name}-part{number}"
    return f"{name}{'p' if name[-1:].isdigit() else ''}{number}"
