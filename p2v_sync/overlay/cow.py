"""Copy-on-write space: sparse files, in RAM unless told otherwise, each shown by a loop device.

A file grows as chunks are written, so what is allotted is a limit and not a price.  It lies in a
tmpfs of our own: /run has a tenth of the memory only, and may be needed by others.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from p2v_sync import run
from p2v_sync.device import ioctl
from p2v_sync.device.attributes import PROC, SYS
from p2v_sync.device.source import open_read_only
from p2v_sync.device.topology import read_topology
from p2v_sync.errors import CommandError, CowTooSmall, OverlayError
from p2v_sync.units import KIB, MIB, format_size

OWN_SPACE = Path("/run/p2v-sync/cow")

# Below that a kernel with an initramfs, or the journal of a file system, may not fit.
_COMFORTABLE = 64 * MIB
_LEAST = MIB
_PAIR_SIZE = 16
_SUFFIX = ".cow"


def full_size(size: int, chunk_size: int) -> int:
    """The most that the store of a disk of ``size`` bytes can need: every chunk changed."""
    chunks = -(-size // chunk_size)
    areas = chunks * _PAIR_SIZE // chunk_size + 2  # the last one has a successor
    return (1 + areas + chunks) * chunk_size


def allot(wanted: int | None, most: Sequence[int], available: int, where: str) -> list[int]:
    """Bytes for each disk: as wanted, else fair shares of half of what is available.

    ``most``: what each can use (``full_size``); ``where``, for the message: "memory".  Pure.
    Raises CowTooSmall.
    """
    share = available // 2 // max(len(most), 1) if wanted is None else wanted
    share -= share % (64 * KIB)
    if wanted is not None and share < _LEAST:
        raise CowTooSmall(
            f"{format_size(wanted)} of copy-on-write space are too little for anything",
            hint=f"give at least {format_size(_LEAST)} (--cow-size)",
        )
    sizes = [min(each, share) for each in most]
    needed = [
        min(each, _COMFORTABLE) if wanted is None else size
        for each, size in zip(most, sizes, strict=True)
    ]
    if any(size < least for size, least in zip(sizes, needed, strict=True)) or (
        sum(sizes) > available
    ):
        raise CowTooSmall(
            f"{format_size(sum(needed))} of copy-on-write space for {len(most)} disks do not fit "
            f"into {format_size(available)} of free {where}"
            + (", of which half may be taken" if wanted is None else ""),
            hint="give less with --cow-size, or a place on another disk with --cow-dir",
        )
    return sizes


def available_in(cow_dir: Path | None) -> int:
    """Bytes that new files may take: in RAM less what older ones were promised."""
    if cow_dir is None:
        return max(memory_available() - sum(map(_unused, own_files())), 0)
    try:
        status = os.statvfs(cow_dir)
    except OSError as error:
        raise OverlayError(f"{cow_dir} can't be used: {error.strerror}") from error
    return status.f_bavail * status.f_frsize


def memory_available() -> int:
    """MemAvailable of /proc/meminfo, bytes."""
    text = (PROC / "meminfo").read_text()
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * KIB if found else 0


def _unused(file: Path) -> int:
    status = file.stat()
    return max(status.st_size - status.st_blocks * 512, 0)


def make_room(length: int) -> None:
    """The tmpfs of our own, large enough for ``length`` bytes more.  Raises OverlayError."""
    try:
        OWN_SPACE.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_there = os.path.ismount(OWN_SPACE)
        total = length + sum(file.stat().st_size for file in own_files())
        # What the kernel needs for a file's own pages and ours is not counted in there.
        options = f"{'remount,' if is_there else ''}size={total + MIB},mode=0700,nosuid,nodev"
        run.capture(["mount", "-t", "tmpfs", "-o", options, "p2v-sync-cow", str(OWN_SPACE)])
    except (OSError, CommandError) as error:
        raise OverlayError(f"no space in memory can be made: {error}") from error


def drop_room() -> None:
    """Give the memory back, unless a file is left."""
    if os.path.ismount(OWN_SPACE) and not any(OWN_SPACE.iterdir()):
        with suppress(CommandError):
            run.capture(["umount", str(OWN_SPACE)])


def file_for(map_name: str, cow_dir: Path | None) -> Path:
    """Where the changes of that overlay are kept."""
    return (cow_dir or OWN_SPACE) / (map_name + _SUFFIX)


def make_file(file: Path, size: int) -> None:
    """An empty space.  What a killed run left there is removed.  Raises OverlayError."""
    discard(file)
    try:
        with file.open("xb") as new:
            new.truncate(size)
    except OSError as error:
        raise OverlayError(f"{file} can't be made: {error.strerror}") from error


def attach(file: Path) -> Path:
    """A loop device that shows the file, writable.  Raises OverlayError."""
    try:
        device = Path(run.capture(["losetup", "--find", "--show", str(file)]).strip())
        fd = open_read_only(device)
        try:
            # The flag outlives what a loop device showed before.
            ioctl.mark_read_only(fd, False)
        finally:
            os.close(fd)
    except (OSError, CommandError) as error:
        raise OverlayError(f"no loop device can show {file}: {error}") from error
    return device


def let_go(device: Path) -> None:
    """The kernel detaches a loop device that is in use when its user is gone; else at once."""
    run.capture(["losetup", "--detach", str(device)])


def discard(file: Path) -> None:
    """Remove a space and the loop devices on it, if there are any.  Raises OverlayError."""
    for device in _loops_on(file):
        with suppress(CommandError):
            let_go(device)
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise OverlayError(f"{file} can't be removed: {error.strerror}") from error


def own_files() -> list[Path]:
    """What is in our own space."""
    return sorted(OWN_SPACE.glob(f"*{_SUFFIX}"))


def _loops_on(file: Path) -> list[Path]:
    nodes = read_topology(SYS).disks()
    return [Path("/dev", node.name) for node in nodes if node.backing_file == file]
