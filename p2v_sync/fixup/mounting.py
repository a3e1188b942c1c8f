"""Mounting a guest as it mounts itself, as far as fix-ups need it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from p2v_sync.device.storage import Mounter, Storage, Volume
from p2v_sync.errors import FixupError
from p2v_sync.fixup import names
from p2v_sync.fixup.crypttab import CRYPTTAB, with_opened_names
from p2v_sync.fixup.guest import Mount
from p2v_sync.fixup.inspect import fstab
from p2v_sync.fixup.inspect.firmware import ESP_TYPES
from p2v_sync.fixup.inspect.reader import Reader, shown
from p2v_sync.fixup.roots import Root, volume_name
from p2v_sync.fixup.tree import Tree

# Where fix-ups have something to do, in the order of mounting.
_POINTS = ("/usr", "/var", "/boot", "/boot/efi", "/efi")
_ESP_POINTS = ("/boot/efi", "/efi", "/boot")
# UAPI group, Discoverable Partitions Specification: Extended Boot Loader Partition.
_XBOOTLDR = ("bc13c2ff-59e6-4262-a352-b275fd6f7172",)


class _Wanted(NamedTuple):
    """``volume``: None when it is on no disk here."""

    point: str
    volume: Volume | None
    mount: Mount


def mount_guest(
    root: Root, storage: Storage, mounter: Mounter, point: Path, *, writable: bool
) -> tuple[str, ...]:
    """Mount a root at ``point``, and below it /usr, /var, /boot and the EFI system partition.

    Returns problems, a line each: what its fstab names and is not there or could not be mounted.
    Windows is never mounted writable.  Raises FixupError when the root itself can't be mounted.
    """
    writable = writable and not root.is_windows
    options = ",".join(filter(None, (root.options, root.quota if writable else "")))
    mounter.mount(root.volume, point, writable=writable, options=options)
    if root.is_windows:
        return ()
    with Tree(point) as tree:
        reader = Reader(tree)
        storage = with_opened_names(storage, reader.text(CRYPTTAB))
        mounts = tuple(fstab.parse(reader.text("/etc/fstab")))
        problems = [*_root_problems(root, mounts, storage)]
        by_point = {fstab.point_of(mount): mount for mount in mounts if fstab.is_on_disk(mount)}
        for place in _POINTS:
            for wanted in _wanted(place, by_point, root, storage, reader):
                by_point[place] = wanted.mount
                problems += _mount(wanted, mounter, reader, point, writable=writable)
    return tuple(problems)


def _root_problems(root: Root, mounts: tuple[Mount, ...], storage: Storage) -> Iterator[str]:
    for mount in mounts:
        volume = names.resolve(mount.spec, storage) if fstab.point_of(mount) == "/" else None
        if volume is not None and volume.device != root.volume.device:
            there, here = volume_name(volume), volume_name(root.volume)
            yield f"fstab of the system on {here} says that its root is on {there}"


def _wanted(
    place: str, by_point: dict[str, Mount], root: Root, storage: Storage, reader: Reader
) -> Iterator[_Wanted]:
    """What fstab has for a place, else a partition whose type says that it belongs there."""
    if place in by_point:
        mount = by_point[place]
        yield _Wanted(place, names.resolve(mount.spec, storage), mount)
        return
    types = _types_for(place, by_point, reader)
    for volume in storage:
        if volume.disk == root.volume.disk and volume.part_type.lower() in types:
            yield _Wanted(place, volume, Mount("", place, volume.kind))
            return


def _types_for(place: str, by_point: dict[str, Mount], reader: Reader) -> tuple[str, ...]:
    """As systemd-gpt-auto-generator(8): nothing goes where files are already."""
    if place not in _ESP_POINTS or not reader.is_directory(place) or reader.names(place):
        return ()
    has_esp = any(by_point[each].kind == "vfat" for each in _ESP_POINTS if each in by_point)
    if place != "/boot":
        return () if has_esp else ESP_TYPES
    has_own_place = any(reader.is_directory(each) for each in ("/efi", "/boot/efi"))
    return _XBOOTLDR if has_esp or has_own_place else (*_XBOOTLDR, *ESP_TYPES)


def _mount(
    wanted: _Wanted, mounter: Mounter, reader: Reader, point: Path, *, writable: bool
) -> Iterator[str]:
    """Mount one, at the directory that the guest's links lead to inside of it."""
    if wanted.volume is None:
        yield f"{wanted.point} ({shown(wanted.mount.spec)}) is on no disk here"
        return
    if not reader.is_directory(wanted.point):
        yield f"{wanted.point} is no directory in the guest, so nothing was mounted there"
        return
    place = point / reader.resolved(wanted.point).lstrip("/")
    options = fstab.mount_options(wanted.mount, wanted.volume.kind, writable=writable)
    try:
        mounter.mount(wanted.volume, place, writable=writable, options=options)
    except FixupError as error:
        yield f"{wanted.point} was not mounted: {error.message}"
