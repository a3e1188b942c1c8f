"""Which volumes hold a system, and which of several is meant."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from p2v_sync.device.storage import Mounter, Storage, Volume
from p2v_sync.errors import FixupError, GuestFileError
from p2v_sync.fixup import names
from p2v_sync.fixup.guest import BootEntry
from p2v_sync.fixup.inspect import entries, fstab, loaders, windows
from p2v_sync.fixup.inspect.distribution import find_distribution
from p2v_sync.fixup.inspect.firmware import ESP_TYPES
from p2v_sync.fixup.inspect.locate import Locator
from p2v_sync.fixup.inspect.reader import Reader
from p2v_sync.fixup.tree import Tree

_LINUX = ("ext2", "ext3", "ext4", "xfs", "btrfs", "reiserfs", "jfs", "f2fs")
_FAT = ("vfat", "msdos")
_NTFS = ("ntfs", "ntfs3")
_TOP_LEVEL = "subvolid=5"  # of a btrfs, whatever its default subvolume is
_SUBVOLUME = re.compile(r"[\w@+-][\w@.+-]*")  # fit for mount options; none of .snapshots
_SUBVOLUMES_MOST = 64


@dataclass(frozen=True)
class Root:
    """A system on a volume.

    ``options``: what it must be mounted with (subvol=@); ``quota``: also that, where it is written
    to.  ``used_s``: when it was last used, as far as its files tell, in seconds since 1970.
    """

    volume: Volume
    options: str = ""
    quota: str = ""
    name: str = ""  # of the distribution, for people
    is_windows: bool = False
    used_s: float = 0.0


@dataclass(frozen=True)
class Roots:
    """``chosen``: None when there is none; ``problems``: a line each, for people."""

    chosen: Root | None
    others: tuple[Root, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Boot:
    """What a boot loader boots by default, and on which disk that was found."""

    disk: str
    entry: BootEntry


def is_linux_root(reader: Reader) -> bool:
    """The test of libguestfs."""
    has_programs = reader.is_directory("/bin") or reader.target("/bin").strip("/") == "usr/bin"
    has_tables = reader.is_file("/etc/fstab") or reader.is_file("/etc/hosts")
    return reader.is_directory("/etc") and has_programs and has_tables


def find_roots(storage: Storage, mounter: Mounter, point: Path) -> Roots:
    """Mounts each candidate read-only at ``point``, an empty directory of ours, one by one.

    Raises FixupError when something stays mounted.
    """
    search = _Search(storage, mounter, point)
    for volume in storage:
        search.look_at(volume)
    for volume in storage:
        search.look_for_boot_loader(volume)
    ranked = rank(search.roots, search.boots, storage)
    return Roots(next(iter(ranked), None), tuple(ranked[1:]), tuple(search.problems))


class _Search:
    """One look over all volumes."""

    def __init__(self, storage: Storage, mounter: Mounter, point: Path) -> None:
        self._storage = storage
        self._mounter = mounter
        self._point = point
        self.roots: list[Root] = []
        self.boots: list[Boot] = []
        self.problems: list[str] = []

    @contextmanager
    def _mounted(
        self, volume: Volume, point: Path, options: str = "", *, is_needed: bool = True
    ) -> Iterator[bool]:
        """Yields whether that worked; when it had to, why not is a problem."""
        try:
            self._mounter.mount(volume, point, writable=False, options=options)
        except FixupError as error:
            if is_needed:
                self.problems.append(f"{volume_name(volume)} was not looked into: {error.message}")
            yield False
            return
        try:
            yield True
        finally:
            self._mounter.unmount_all()

    def look_at(self, volume: Volume) -> None:
        """Add the roots of one volume."""
        if volume.kind not in (*_LINUX, *_NTFS):
            return
        with self._mounted(volume, self._point) as is_mounted:
            found = [*self._roots_in(volume, "", self._point)] if is_mounted else []
        if volume.kind == "btrfs":
            found = self._of_btrfs(volume, found)
        self.roots += found

    def _of_btrfs(self, volume: Volume, by_default: list[Root]) -> list[Root]:
        """The default subvolume, and those at the top that call themselves a root.

        One that doesn't is a root only where nothing else is: it is a snapshot of one, as a rule.
        """
        with self._mounted(volume, self._point, _TOP_LEVEL) as is_mounted:
            named = [*self._of_subvolumes(volume)] if is_mounted else []
        own = [root for root, is_own in named if is_own]
        return own or by_default or [root for root, _ in named[:1]]

    def _of_subvolumes(self, volume: Volume) -> Iterator[tuple[Root, bool]]:
        """Roots in directories of the top level, and whether their fstab mounts them so."""
        with Tree(self._point) as tree:
            reader = Reader(tree)
            found = [name for name in reader.names("/") if _SUBVOLUME.fullmatch(name)]
            directories = [name for name in found if reader.is_directory(f"/{name}")]
            # No links: they would lead out of the volume.
            kept = [name for name in directories if not reader.target(f"/{name}")]
        for name in kept[:_SUBVOLUMES_MOST]:
            directory = self._point / name
            for root in self._roots_in(volume, f"subvol={name}", directory):
                with Tree(directory) as tree:
                    yield root, f"subvol={name}" in _root_options(Reader(tree))

    def _roots_in(self, volume: Volume, options: str, directory: Path) -> Iterator[Root]:
        """The one in a directory that is mounted, if there is one."""
        with Tree(directory) as tree:
            reader = Reader(tree)
            if volume.kind in _NTFS:
                if windows.find_root(reader):
                    yield Root(volume, options, name="Windows", is_windows=True)
            elif is_linux_root(reader):
                self._add_boot(volume, reader)
                quota = fstab.quota_options(_root_options(reader)) if volume.kind == "xfs" else ""
                name = find_distribution(reader).name
                yield Root(volume, options, quota, name, used_s=_used(reader))

    def look_for_boot_loader(self, volume: Volume) -> None:
        """On a /boot of its own, or an EFI system partition; mounted where it would be."""
        is_esp = volume.part_type.lower() in ESP_TYPES
        if volume.kind not in (*_LINUX, *_FAT) or any(volume == root.volume for root in self.roots):
            return
        place = self._point / ("efi" if is_esp else "boot")
        place.mkdir(exist_ok=True)
        with self._mounted(volume, place, is_needed=False) as is_mounted:
            if is_mounted:
                with Tree(self._point) as tree:
                    self._add_boot(volume, Reader(tree))
        place.rmdir()

    def _add_boot(self, volume: Volume, reader: Reader) -> None:
        mounts = tuple(fstab.parse(reader.text("/etc/fstab")))
        installed = loaders.find_loaders(reader, mounts)
        locator = Locator(reader, loaders.efi_directories(reader, mounts))
        if entry := entries.default_entry(reader, installed, locator):
            self.boots.append(Boot(volume.disk, entry))


def volume_name(volume: Volume) -> str:
    """For people."""
    return volume.kernel_name if volume.partition else next(iter(volume.aliases), volume.disk)


def _root_options(reader: Reader) -> list[str]:
    """Those of the line for / in fstab; ``subvol=/@`` as ``subvol=@``."""
    for mount in fstab.parse(reader.text("/etc/fstab")):
        if fstab.point_of(mount) == "/":
            return [each.replace("subvol=/", "subvol=") for each in mount.options.split(",")]
    return []


def _used(reader: Reader) -> float:
    """When somebody last logged in, else when the system was installed."""
    for path in ("/var/log/wtmp", "/etc/machine-id", "/etc/fstab"):
        try:
            with reader.tree.opened(path) as fd:
                return os.fstat(fd).st_mtime
        except (FileNotFoundError, GuestFileError):
            continue
    return 0.0


def rank(roots: Sequence[Root], boots: Sequence[Boot], storage: Storage) -> list[Root]:
    """What the boot loader of the first disk boots; then the last used; then by disk."""
    order = {disk: number for number, disk in enumerate(storage.disks)}
    by_disk = sorted(boots, key=lambda boot: order.get(boot.disk, len(order)))

    def key(root: Root) -> tuple[int, float, int]:
        named = (number for number, boot in enumerate(by_disk) if _is_for(boot, root, storage))
        disk = order.get(root.volume.disk, len(order))
        return next(named, len(by_disk)), -root.used_s, disk

    return sorted(roots, key=key)


def _is_for(boot: Boot, root: Root, storage: Storage) -> bool:
    options = boot.entry.options
    if names.resolve(entries.option(options, "root"), storage) != root.volume:
        return False
    flags = entries.option(options, "rootflags").replace("subvol=/", "subvol=").split(",")
    subvolumes = [flag for flag in flags if flag.startswith("subvol=")]
    return not subvolumes or root.options in subvolumes
