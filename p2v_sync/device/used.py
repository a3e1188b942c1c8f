"""What the file systems of a source use, and a source that reads the rest as zeros.

Everything counts as used that is not proved to be free: gaps, boot loaders and tables, swap, LVM,
md and LUKS members, what is unknown, unclean or damaged.
"""

import logging
import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from shutil import which

from p2v_sync import run
from p2v_sync.device import file_systems
from p2v_sync.device.domain_log import parse_unused
from p2v_sync.device.file_systems import Judgement, Read
from p2v_sync.device.source import DiskSource
from p2v_sync.device.volumes import Volume, find_volumes
from p2v_sync.errors import CommandError, DeviceError, SourceReadError
from p2v_sync.extent import Extent, merged
from p2v_sync.units import KIB, MIB, format_size

log = logging.getLogger(__name__)

# Where boot loaders put themselves in a file system's own partition.
_ALWAYS_USED = MIB
# Shorter gaps are read as what they are: many small extents cost more than they save.
_LEAST_GAP = 64 * KIB
_TICK_S = 0.2
_REPORT_BYTES = 4096
_HINT_WITHOUT = "or leave out --used-only"


class UnusedMap:
    """The extents that count as zero.  Compact: a fragmented disk has millions of them."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        """``extents``: in any order; what touches is joined."""
        self._starts, self._ends = array("Q"), array("Q")
        for extent in merged(extents):
            self._starts.append(extent.start)
            self._ends.append(extent.end)

    @property
    def length(self) -> int:
        """Bytes that count as zero."""
        return sum(self._ends) - sum(self._starts)

    @property
    def digest(self) -> str:
        """Equal for equal maps; BLAKE2b-128, hex."""
        return blake2b(self._starts.tobytes() + self._ends.tobytes(), digest_size=16).hexdigest()

    def used(self, start: int, end: int) -> Iterator[Extent]:
        """The extents of ``[start, end)`` that do not count as zero, in order."""
        position = start
        at = max(0, bisect_right(self._starts, start) - 1)
        while at < len(self._starts) and self._starts[at] < end:
            if self._starts[at] > position:
                yield Extent(position, self._starts[at] - position)
            position = max(position, self._ends[at])
            at += 1
        if position < end:
            yield Extent(position, end - position)

    def next_used(self, start: int) -> int:
        """The first byte from ``start`` on that does not count as zero."""
        at = bisect_right(self._starts, start) - 1
        return max(start, self._ends[at]) if at >= 0 else start


NOTHING_UNUSED = UnusedMap(())


class UsedSource:
    """A source as its file systems see it: what they don't use reads as zeros, to the byte.

    Satisfies ``engine.ports.Source``.  This is what is copied, digested and verified.
    """

    def __init__(self, source: DiskSource) -> None:
        """All of it is used until ``leave_out``."""
        self._source = source
        self._unused = NOTHING_UNUSED

    def leave_out(self, unused: UnusedMap) -> None:
        """Not while somebody reads."""
        self._unused = unused

    @property
    def size(self) -> int:
        return self._source.size

    def read_into(self, buffer: memoryview, start: int) -> Sequence[Extent]:
        """As ``DiskSource.read_into``; unused extents are not read, so they can't be bad."""
        bad: list[Extent] = []
        done, end = start, start + len(buffer)
        for extent in self._unused.used(start, end):
            buffer[done - start : extent.start - start] = bytes(extent.start - done)
            part = buffer[extent.start - start : extent.end - start]
            bad.extend(self._source.read_into(part, extent.start))
            done = extent.end
        buffer[done - start :] = bytes(end - done)
        return bad

    def next_data(self, start: int) -> int:
        """The next byte that is allocated in the source's own file, and that a file system uses."""
        while True:
            data = self._source.next_data(start)
            start = self._unused.next_used(data)
            if start == data:
                return data


@dataclass(frozen=True)
class _FileSystem:
    program: str
    judge: Callable[[Read], Judgement]
    refusal: Callable[[str], str]  # loop device → why its free space is not believed, or ''


def _xfs_refusal(device: str) -> str:
    return file_systems.xfs_log_refusal(
        run.capture_start(["xfs_logprint", "-t", device], _REPORT_BYTES)
    )


def _ntfs_refusal(device: str) -> str:
    journal = run.capture_start(["ntfscat", "--inode", "2", device], 8192)
    if refusal := file_systems.ntfs_log_refusal(journal):
        return refusal
    try:
        start = run.capture_start(["ntfscat", device, "hiberfil.sys"], 4096)
    except CommandError as error:
        if "No such file" in error.message:
            return ""
        raise
    return file_systems.hibernation_refusal(start)


def _no_refusal(_device: str) -> str:
    return ""


_EXT = _FileSystem("partclone.extfs", file_systems.judge_ext, _no_refusal)
# By the name that blkid gives them.
_FILE_SYSTEMS = {
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "xfs": _FileSystem("partclone.xfs", file_systems.judge_xfs, _xfs_refusal),
    "btrfs": _FileSystem("partclone.btrfs", file_systems.judge_btrfs, _no_refusal),
    "ntfs": _FileSystem("partclone.ntfs", file_systems.judge_ntfs, _ntfs_refusal),
    "vfat": _FileSystem("partclone.fat", file_systems.judge_fat, _no_refusal),
}
_PACKAGES = {"blkid": "util-linux", "partx": "util-linux", "losetup": "util-linux"}


def check_tools() -> None:
    """Raises CommandError when what every map needs is not installed."""
    for program, package in _PACKAGES.items():
        if which(program) is None:
            raise _missing(program, package)
    if not any(which(each.program) for each in _FILE_SYSTEMS.values()):
        raise _missing("partclone", "partclone")


def _missing(program: str, package: str) -> CommandError:
    return CommandError(
        f"--used-only needs {program}, which is not installed here",
        hint=f"install the package {package} (apt install {package}), {_HINT_WITHOUT}",
    )


@contextmanager
def _read_only_loop(source: DiskSource, extent: Extent) -> Iterator[str]:
    """A read-only loop device that shows an extent (P1); the kernel takes it down with us.

    Raises DeviceError.
    """
    argv = ["losetup", "--find", "--show", "--read-only", "--sector-size", str(source.sector_size)]
    argv += ["--offset", str(extent.start), "--sizelimit", str(extent.length), str(source.path)]
    try:
        device = run.capture(argv).strip()
    except CommandError as error:
        raise DeviceError(
            f"no loop device can be made to look into {source.path}: {error.message}",
            hint=f"run as root, {_HINT_WITHOUT}",
        ) from error
    fd = -1
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"can't open {device}: {error.strerror}") from error
    finally:
        # While it is open this only says that the last close detaches it: a kill leaves nothing.
        run.capture(["losetup", "--detach", device])
    try:
        yield device
    finally:
        os.close(fd)


class Surveyor:
    """Asks for the allocation maps of one source's file systems."""

    def __init__(
        self, source: DiskSource, notice: Callable[[str], None], check_stop: Callable[[], None]
    ) -> None:
        """``notice``: told about what is copied whole; ``check_stop`` raises to give up."""
        self._source = source
        self._notice = notice
        self._check_stop = check_stop

    def survey(self) -> UnusedMap:
        """What counts as zero now.  Nobody may write to the source meanwhile.

        Raises CommandError without the tools, DeviceError without a loop device.
        """
        check_tools()
        found = UnusedMap(chain.from_iterable(map(self._unused_of, self._volumes())))
        self._notice(
            f"file systems leave {format_size(found.length)} of {format_size(self._source.size)}"
            " unused: that counts as zero and is not copied"
        )
        return found

    def _volumes(self) -> list[Volume]:
        try:
            return find_volumes(self._source.path, self._source.size)
        except (CommandError, ValueError) as error:
            self._notice(f"the disk is copied whole: {error}")
            return []

    def _unused_of(self, volume: Volume) -> list[Extent]:
        """What of a volume counts as zero; nothing when in doubt, and then the reason is told."""
        file_system = _FILE_SYSTEMS.get(volume.kind)
        if file_system is None:
            reason = f"it is {volume.kind or 'of unknown content'}"
        else:
            with _read_only_loop(self._source, volume.extent) as device:
                try:
                    return self._mapped(volume, file_system, device)
                except (CommandError, SourceReadError, ValueError) as error:
                    reason = " ".join(str(error).split())
        self._notice(
            f"{volume.name} ({format_size(volume.extent.length)}) is copied whole: {reason}"
        )
        return []

    def _mapped(self, volume: Volume, file_system: _FileSystem, device: str) -> list[Extent]:
        """Raises ValueError where the map can't be believed, CommandError, SourceReadError."""
        judgement = file_system.judge(self._reader(volume.extent))
        refusal = judgement.refusal or file_system.refusal(device)
        if refusal:
            raise ValueError(f"{volume.kind}: {refusal}")
        with tempfile.TemporaryDirectory(prefix="p2v-sync-") as directory:
            domain = Path(directory, "domain")
            self._run_partclone(file_system.program, device, domain)
            with domain.open(encoding="ascii", errors="replace") as lines:
                return _worth_it(lines, volume.extent, judgement.least_used)

    def _reader(self, volume: Extent) -> Read:
        def read(start: int, length: int) -> bytes:
            if start + length > volume.length:
                raise ValueError("it ends beyond its partition")
            buffer = bytearray(length)
            with memoryview(buffer) as view:
                if self._source.probe_into(view, volume.start + start):
                    raise SourceReadError(f"{length} bytes at {start} of it can't be read")
            return bytes(buffer)

        return read

    def _run_partclone(self, program: str, device: str, domain: Path) -> None:
        """Never with --force: what partclone refuses is copied whole."""
        if which(program) is None:
            raise CommandError(f"{program} is not installed")
        logfile = domain.with_name("log")
        argv = [program, "--domain", "--quiet", "--UI-fresh", "1", "--source", device]
        argv += ["--output", str(domain), "--logfile", str(logfile)]
        process = run.Process(argv, environ={"LC_ALL": "C.UTF-8"})
        try:
            while not process.ends_within(_TICK_S):
                self._check_stop()
        finally:
            status = process.stop()
        text = logfile.read_text(errors="replace") if logfile.exists() else ""
        complaint = file_systems.complaint_in(f"{text}\n{process.error_text()}")
        if status or complaint:
            raise CommandError(f"{program}: {complaint or f'it failed with status {status}'}")


def _worth_it(domain_log: Iterable[str], volume: Extent, least_used: int) -> list[Extent]:
    """The unused extents of a volume that are left out, by their place on the disk.

    Raises ValueError for a log that is wrong, or of fewer bytes in use than ``least_used``.
    """
    found: list[Extent] = []
    used = volume.length
    for extent in parse_unused(domain_log, volume.length):
        used -= extent.length
        start = max(extent.start, _ALWAYS_USED)
        if extent.end - start >= _LEAST_GAP:
            found.append(Extent(volume.start + start, extent.end - start))
    if used < least_used:
        raise ValueError(f"{used} bytes would be in use, and the file system says {least_used}")
    return found
