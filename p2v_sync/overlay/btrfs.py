"""btrfs mounts whatever device of an fsid the kernel was told of last: it is told of ours alone."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from p2v_sync import run
from p2v_sync.device.source import open_read_only
from p2v_sync.errors import CommandError

# btrfs_tree.h: the super block is at 64 KiB, num_devices (u64, LE) is at 0x88 of it.
_NUM_DEVICES = 0x10000 + 0x88


def count_missing(devices: Sequence[Path]) -> int:
    """How many more devices than these the file system has.  Raises DeviceError, OSError."""
    fd = open_read_only(devices[0])
    try:
        raw = os.pread(fd, 8, _NUM_DEVICES)
    finally:
        os.close(fd)
    return max(int.from_bytes(raw, "little") - len(devices), 0)


def forget() -> None:
    """The kernel drops what it was told of unmounted ones.  Where that can't be done, nothing."""
    with suppress(CommandError):
        run.capture(["btrfs", "device", "scan", "--forget"])


def scan(devices: Sequence[Path]) -> None:
    """These are.  A file system on one device mounts without that, so it need not work."""
    with suppress(CommandError):
        run.capture(["btrfs", "device", "scan", *map(str, devices)])
