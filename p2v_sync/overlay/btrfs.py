"""btrfs mounts whatever device of an fsid the kernel was told of last: it is told of ours alone."""

import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from p2v_sync import run
from p2v_sync.device.source import open_read_only
from p2v_sync.errors import CommandError

# btrfs_tree.h: the super block is at 64 KiB, num_devices (u64, LE) is at 0x88 of it.
_NUM_DEVICES = 0x10000 + 0x88


def count_devices(device: Path) -> int:
    """How many devices the file system has; 0 when that can't be read.  Raises DeviceError."""
    fd = open_read_only(device)
    try:
        raw = os.pread(fd, 8, _NUM_DEVICES)
    finally:
        os.close(fd)
    return int(struct.unpack("<Q", raw)[0]) if len(raw) == 8 else 0


def forget() -> None:
    """The kernel drops what it was told of unmounted ones.  Where that can't be done, nothing."""
    with suppress(CommandError):
        run.capture(["btrfs", "device", "scan", "--forget"])


def scan(devices: Sequence[Path]) -> None:
    """These are.  A file system on one device mounts without that."""
    with suppress(CommandError):
        run.capture(["btrfs", "device", "scan", *map(str, devices)])
