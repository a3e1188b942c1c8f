"""What a block device of an overlay holds, by blkid's low-level probe: no cache, no names."""

import os
import re
from pathlib import Path

from p2v_sync import run
from p2v_sync.device import ioctl
from p2v_sync.device.source import open_read_only
from p2v_sync.device.volumes import parse_probe

_NOTHING, _AMBIVALENT = 2, 8  # exit statuses of blkid
_ESCAPED = re.compile(r"\\(.)")


def probe(device: Path) -> dict[str, str]:
    """TYPE, UUID, LABEL, PTTYPE and so on; nothing where it finds nothing, or several things.

    Raises CommandError.
    """
    argv = ["blkid", "--probe", "--output", "export", str(device)]
    found = parse_probe(run.capture(argv, statuses=(0, _NOTHING, _AMBIVALENT)))
    return {key: _ESCAPED.sub(r"\1", value) for key, value in found.items()}


def size_of(device: Path) -> int:
    """Bytes.  Raises DeviceError; OSError for what is no block device."""
    fd = open_read_only(device)
    try:
        return ioctl.device_size(fd)
    finally:
        os.close(fd)
