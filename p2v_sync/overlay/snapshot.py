"""Overlays over whole disks: made, looked at, found again by another process, removed.

What must be known to remove an overlay stands in a record below /run, written before anything is
changed.  Records and maps are gone after a reboot, and so is the kernel's read-only flag.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from p2v_sync import run
from p2v_sync.device import ioctl, readonly
from p2v_sync.device.attributes import SYS, read_text
from p2v_sync.device.mounts import users_of
from p2v_sync.device.source import open_read_only
from p2v_sync.device.topology import Node, Topology, read_topology
from p2v_sync.errors import (
    CommandError,
    DeviceBusy,
    DeviceError,
    DuplicateSource,
    OverlayBusy,
    OverlayError,
    OverlayFull,
    P2vError,
)
from p2v_sync.overlay import cow, lineage, mapper
from p2v_sync.units import format_size

RECORDS = Path("/run/p2v-sync/overlay")
# What is mounted below it is ours, and unmounted when an overlay is removed.
MOUNTS = Path("/run/p2v-sync/mnt")

# The delta is made of chunks: small ones keep it small.  They make reading through the overlay ten
# times slower, but whoever copies the disk reads the origin, which nobody writes to.
CHUNK_SIZE = 4096
NEARLY_FULL_PERCENT = 80.0

_RECORD_CAP = 64 * 1024
_USAGE = re.compile(r"0 \d+ snapshot (\d+)/(\d+) (\d+)")


@dataclass(frozen=True)
class Overlay:
    """``made_read_only``: nodes whose flag we set.  ``writes_before``: the origin's counter of
    writes when the overlay was made.  Sizes in bytes."""

    disk: str  # the kernel's name, for a map its own: sda, cciss!c0d0, mpatha
    origin: Path
    size: int
    chunk_size: int
    cow: Path
    cow_size: int
    made_read_only: tuple[str, ...] = ()
    writes_before: int = 0

    @property
    def map_name(self) -> str:
        return mapper.map_name(self.disk)

    @property
    def device(self) -> Path:
        return mapper.MAPPER / self.map_name

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "origin": str(self.origin), "cow": str(self.cow)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError and ValueError for anything else."""
        paths = {"origin": Path(record["origin"]), "cow": Path(record["cow"])}
        return cls(**{**record, **paths, "made_read_only": tuple(record["made_read_only"])})


@dataclass(frozen=True)
class Usage:
    """``state``: active; invalid (the space ran full, all changes are lost); missing (what a killed
    run left); failed.  Bytes of the copy-on-write space."""

    state: str
    used: int = 0
    total: int = 0
    metadata: int = 0

    @property
    def percent(self) -> float:
        return 100 * self.used / self.total if self.total else 0.0

    @property
    def is_nearly_full(self) -> bool:
        return self.percent > NEARLY_FULL_PERCENT


def parse_usage(line: str) -> Usage:
    """What ``dmsetup status`` says of a snapshot (Documentation/admin-guide/device-mapper)."""
    if found := _USAGE.fullmatch(line.strip()):
        return Usage("active", *(int(number) * mapper.SECTOR for number in found.groups()))
    if not line.strip():
        return Usage("missing")
    return Usage("invalid" if line.split()[3:] in (["Invalid"], ["Overflow"]) else "failed")


# Looking at them.


def list_overlays(disks: Sequence[str] = ()) -> list[Overlay]:
    """Those that have a record, also what a killed run left, by name; or those of ``disks`` alone.

    ``disks``: sda or /dev/sda.  Raises OverlayError for one that has none.
    """
    found = {overlay.disk: overlay for overlay in _records()}
    wanted = list(dict.fromkeys(map(_name_of, disks))) or sorted(found)
    if unknown := [disk for disk in wanted if disk not in found]:
        raise OverlayError(
            f"{', '.join(unknown)} has no overlay", hint="see p2v-sync overlay status"
        )
    return [found[disk] for disk in wanted]


def _name_of(disk: str) -> str:
    return disk.removeprefix("/dev/").removeprefix("mapper/").replace("/", "!")


def _records() -> Iterator[Overlay]:
    for file in RECORDS.glob("*.json"):
        with file.open("rb") as opened, suppress(ValueError, KeyError, TypeError):
            yield Overlay.from_json(json.loads(opened.read(_RECORD_CAP)))


def usage_of(overlay: Overlay) -> Usage:
    """How full it is."""
    return parse_usage(mapper.status_text(overlay.map_name))


def check_usable(overlay: Overlay) -> Usage:
    """Its usage.  Raises OverlayFull when its changes are lost, OverlayError when it is not there.

    To be asked after each change: what does not fit is not refused, it makes all of it invalid.
    """
    usage = usage_of(overlay)
    if usage.state == "invalid":
        raise OverlayFull(
            f"the overlay of {overlay.disk} is invalid: its copy-on-write space "
            f"({format_size(overlay.cow_size)}) ran full",
            hint="remove it and make one with more space (--cow-size); the disk is as it was",
        )
    if usage.state != "active":
        raise OverlayError(
            f"the overlay of {overlay.disk} is not there any more",
            hint=f"p2v-sync overlay remove {overlay.disk}, and make a new one",
        )
    return usage


def check_untouched(overlay: Overlay) -> None:
    """P1: nothing was written to the origin since.  Raises OverlayError, which nobody expects."""
    writes = _writes(overlay.origin)
    if writes != overlay.writes_before:
        raise OverlayError(
            f"{overlay.origin} was written to since its overlay was made "
            f"({writes - overlay.writes_before} sectors)",
            hint="the overlay no longer fits its disk: remove it, and find out who wrote",
        )


def _writes(disk: Path) -> int:
    """Sectors written, of /sys/block/DISK/stat (Documentation/block/stat.rst)."""
    number = disk.stat().st_rdev
    directory = SYS / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    fields = read_text(directory / "stat").split()
    return int(fields[6]) if len(fields) > 6 else 0


# Making them.


def create_overlays(
    disks: Sequence[Path], *, cow_size: int | None = None, cow_dir: Path | None = None
) -> list[Overlay]:
    """One for each disk, or none.

    ``cow_size``: for each, bytes; without it what half of the free memory allows.  Raises
    OverlayUnsupported, CowTooSmall, OverlayBusy (a map of that name exists), DeviceBusy for a disk
    in use, DeviceError for what is no whole disk.
    """
    mapper.check_support()
    topology = read_topology(SYS)
    nodes = [_examine(path, topology) for path in disks]
    if len({node.name for node in nodes}) < len(nodes):
        raise DuplicateSource("a disk was named twice")
    for node in nodes:
        _clear_way(node)
    origins = [lineage.device_path(node) for node in nodes]
    most = [cow.full_size(_size(origin), CHUNK_SIZE) for origin in origins]
    place = "memory" if cow_dir is None else f"space in {cow_dir}"
    sizes = cow.allot(cow_size, most, cow.available_in(cow_dir), place)
    if cow_dir is None:
        cow.make_room(sum(sizes))
    made: list[Overlay] = []
    try:
        for node, origin, size in zip(nodes, origins, sizes, strict=True):
            made.append(_plan(node, origin, size, cow_dir))
            _make(made[-1])
    except BaseException:
        for overlay in made:
            with suppress(P2vError):
                _remove(overlay)
        cow.drop_room()
        raise
    return made


def _examine(path: Path, topology: Topology) -> Node:
    fd = open_read_only(path)
    try:
        number = os.fstat(fd).st_rdev
    finally:
        os.close(fd)
    node = topology.by_dev(f"{os.major(number)}:{os.minor(number)}")
    if node is None:
        raise DeviceError(
            f"{path} is no disk but a file",
            hint="show it as one with: losetup --find --show --partscan FILE",
        )
    if node.is_partition:
        raise DeviceError(f"{path} is a partition", hint=f"name the whole disk: /dev/{node.disk}")
    if users := users_of(path):
        raise DeviceBusy(f"{path} is in use by {', '.join(users)}", hint="unmount it")
    return node


def _clear_way(node: Node) -> None:
    """Nothing else may stand on the disk; what a killed run left of its overlay is removed."""
    disk = _disk_name(node)
    for overlay in _records():
        if overlay.disk == disk:
            if usage_of(overlay).state != "missing":
                raise OverlayBusy(
                    f"{disk} has an overlay already", hint=f"p2v-sync overlay remove {disk}"
                )
            _remove(overlay)
    topology = read_topology(SYS)
    if mapper.find(topology, mapper.map_name(disk)):
        raise OverlayBusy(
            f"there is a map {mapper.map_name(disk)} that is not known here",
            hint="p2v-sync overlay remove removes it if it is ours, dmsetup remove otherwise",
        )
    if above := lineage.uppers_first(topology, [node.name]):
        names = ", ".join(str(lineage.device_path(each)) for each in above)
        raise DeviceBusy(
            f"{lineage.device_path(node)} is part of {names}",
            hint="deactivate that (vgchange -an, mdadm --stop, dmsetup remove), or name it instead",
        )


def _disk_name(node: Node) -> str:
    return node.dm_name or node.name


def _size(path: Path) -> int:
    fd = open_read_only(path)
    try:
        return ioctl.device_size(fd)
    finally:
        os.close(fd)


def _plan(node: Node, origin: Path, cow_size: int, cow_dir: Path | None) -> Overlay:
    disk = _disk_name(node)
    return Overlay(
        disk=disk,
        origin=origin,
        size=_size(origin),
        chunk_size=CHUNK_SIZE,
        cow=cow.file_for(mapper.map_name(disk), cow_dir and cow_dir.resolve()),
        cow_size=cow_size,
        made_read_only=tuple(map(str, readonly.writable_nodes(origin))),
        writes_before=_writes(origin),
    )


def _make(overlay: Overlay) -> None:
    name = overlay.map_name
    _write_record(overlay)
    readonly.lock(overlay.origin)
    cow.make_file(overlay.cow, overlay.cow_size)
    loop = cow.attach(overlay.cow)
    try:
        sectors = (overlay.size // mapper.SECTOR, overlay.chunk_size // mapper.SECTOR)
        table = f"0 {sectors[0]} snapshot {overlay.origin} {loop} P {sectors[1]}"
        mapper.create(name, mapper.overlay_uuid(name), table)
    finally:
        # From here on the kernel takes it down together with the snapshot.
        cow.let_go(loop)


def _record_file(disk: str) -> Path:
    return RECORDS / f"{mapper.map_name(disk)}.json"


def _write_record(overlay: Overlay) -> None:
    try:
        RECORDS.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _record_file(overlay.disk)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(overlay.to_json()))
        new.replace(file)
    except OSError as error:
        raise OverlayError(f"{RECORDS} can't be written to: {error.strerror}") from error


# Removing them.


def remove_overlays(disks: Sequence[str] = ()) -> list[str]:
    """The overlays of these disks (sda or /dev/sda), or all, with all that stands on them.

    Also what killed runs left: maps, loop devices, files, mounts below ``MOUNTS``, read-only flags.
    Returns the disks' names.  Raises OverlayBusy while something is mounted elsewhere, OverlayError
    for a disk that has none.
    """
    mapper.check_support()
    overlays = list_overlays(disks)
    strays = [] if disks else _stray_maps(overlays)
    _take_down([*(overlay.map_name for overlay in overlays), *strays])
    for overlay in overlays:
        _remove(overlay)
    for name in strays:
        mapper.remove(name)
    if not disks:
        for file in cow.own_files():
            cow.discard(file)
    cow.drop_room()
    return [overlay.disk for overlay in overlays]


def _stray_maps(known: Iterable[Overlay]) -> list[str]:
    names = {overlay.map_name for overlay in known}
    nodes = read_topology(SYS).disks()
    return [node.dm_name for node in nodes if mapper.is_overlay(node) and node.dm_name not in names]


def _take_down(maps: Sequence[str]) -> None:
    topology = read_topology(SYS)
    found = [node for name in maps if (node := mapper.find(topology, name))]
    if others := [node.dm_name for node in found if not mapper.is_overlay(node)]:
        raise OverlayBusy(f"{', '.join(others)} is not a map of ours", hint="it is left alone")
    names = [node.name for node in found]
    for point in reversed(list(lineage.users(topology, names))):
        if Path(point).is_relative_to(MOUNTS):
            with suppress(CommandError):
                run.capture(["umount", point])
    lineage.take_down(topology, names)


def _remove(overlay: Overlay) -> None:
    node = mapper.find(read_topology(SYS), overlay.map_name)
    if node is not None and mapper.is_overlay(node):
        mapper.remove(overlay.map_name)
    cow.discard(overlay.cow)
    readonly.unlock(map(Path, overlay.made_read_only))
    _record_file(overlay.disk).unlink(missing_ok=True)
