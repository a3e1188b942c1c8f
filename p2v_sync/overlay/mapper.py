"""Device-mapper by way of dmsetup(8): maps of ours, told from others by their uuid."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from p2v_sync import run
from p2v_sync.device.readonly import OVERLAY_UUID
from p2v_sync.device.topology import Node, Topology
from p2v_sync.errors import CommandError, OverlayBusy, OverlayError, OverlayUnsupported

MAPPER = Path("/dev/mapper")
# Every map of ours; fixed, because LVM's filter goes by it.
PREFIX = "p2v-"
SECTOR = 512

_UDEV = Path("/run/udev/control")  # there while udevd runs; libudev asks the same
_PACKAGES = {
    "dmsetup": "dmsetup",
    "losetup": "mount",
    "mount": "mount",
    "blkid": "util-linux",
    "partx": "util-linux",
}
_OPEN_COUNT = re.compile(r"[0-9]+")


def map_name(disk: str) -> str:
    """sda → p2v-sda, cciss!c0d0 → p2v-cciss_c0d0."""
    return PREFIX + re.sub(r"[^0-9A-Za-z#+.:=@_-]", "_", disk)


def overlay_uuid(name: str) -> str:
    """What makes the map of that name an overlay of ours."""
    return f"{OVERLAY_UUID}overlay-{name}"


def part_uuid(name: str) -> str:
    """What makes the map of that name a partition of ours."""
    return f"{OVERLAY_UUID}part-{name}"


def is_overlay(node: Node) -> bool:
    """True for the snapshot over a whole disk."""
    return node.dm_uuid.startswith(overlay_uuid(""))


def check_support() -> None:
    """Raises OverlayUnsupported when no overlay can be made on this system, and says why."""
    if os.geteuid() != 0:
        raise OverlayUnsupported("overlays can only be made by root", hint="run as root")
    for program, package in _PACKAGES.items():
        if shutil.which(program) is None:
            text = f"overlays need {program}, which is not installed here"
            raise OverlayUnsupported(text, hint=f"install the package {package}")
    if not _has_snapshots():
        with suppress(CommandError):
            run.capture(["modprobe", "dm-snapshot"])
    if not _has_snapshots():
        raise OverlayUnsupported(
            "this kernel has no device-mapper snapshots",
            hint="boot one that has dm-mod and dm-snapshot, as the live system's",
        )


def _has_snapshots() -> bool:
    try:
        targets = run.capture(["dmsetup", "targets"])
    except CommandError:
        return False
    return any(line.split()[:1] == ["snapshot"] for line in targets.splitlines())


def has_udev() -> bool:
    """Where no udev runs nobody makes nodes or answers that it has."""
    return _UDEV.exists()


def _dmsetup(*arguments: str, stdin: str = "") -> str:
    waiting = [] if has_udev() else ["--noudevsync"]
    return run.capture(["dmsetup", *waiting, *arguments], stdin=stdin)


def create(name: str, uuid: str, table: str) -> Path:
    """A map, and its node below /dev/mapper.  Raises OverlayError."""
    try:
        _dmsetup("create", name, "--uuid", uuid, stdin=table)
        if not has_udev():
            # Also where one is there: that of an earlier map may lead to another number.
            _dmsetup("mknodes", name)
    except CommandError as error:
        raise OverlayError(f"{MAPPER / name} can't be made: {error.message}") from error
    return MAPPER / name


def remove(name: str) -> None:
    """Take a map away.  Raises OverlayBusy when something still uses it."""
    try:
        # udev and blkid may look at it for a moment.
        _dmsetup("remove", "--retry", name)
    except CommandError as error:
        raise OverlayBusy(f"{MAPPER / name} can't be removed: {error.message}") from error


def settle() -> None:
    """Wait for udev, which opens what is new to look at it, and keeps it busy meanwhile."""
    if has_udev():
        with suppress(CommandError):
            run.capture(["udevadm", "settle", "--timeout=30"])


def status_text(name: str) -> str:
    """The line of a snapshot; '' when there is no such map."""
    try:
        return _dmsetup("status", name).strip()
    except CommandError:
        return ""


def open_count(name: str) -> int:
    """How many have it open: maps above it, mounts, programs.  0 for what is not there."""
    argv = ("info", "--columns", "--noheadings", "-o", "open", name)
    with suppress(CommandError):
        found = _OPEN_COUNT.search(_dmsetup(*argv))
        return int(found[0]) if found else 0
    return 0


def find(topology: Topology, name: str) -> Node | None:
    """The map of that name, whoever made it."""
    return next((node for node in topology.disks() if node.dm_name == name), None)
