"""Which disk the BIOS starts from: its own numbers, as the kernel's module ``edd`` saw them.

Documentation/ABI/testing/sysfs-firmware-edd.  It knows a disk by the signature in its MBR alone.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from p2v_sync.device.attributes import SYS, names_in, read_text
from p2v_sync.device.sysfs import HeadReader, read_head

_SIGNATURE = slice(440, 444)


def _by_number(sys_root: Path) -> list[int]:
    """The signatures of the disks 0x80, 0x81, …; 0 for one without."""
    base = sys_root / "firmware" / "edd"
    names = [name for name in names_in(base) if re.fullmatch("int13_dev[89a-f][0-9a-f]", name)]
    texts = [read_text(base / name / "mbr_signature") for name in names]
    return [int(text, 16) if re.fullmatch("0x[0-9a-f]{1,8}", text) else 0 for text in texts]


def read_bios_order(
    disks: Mapping[str, str], sys_root: Path = SYS, head: HeadReader = read_head
) -> list[str]:
    """Those of ``disks`` (name → path) whose number is known, the boot disk first.

    Disks of one signature (copies of each other) can't be told apart, and have none.
    """
    found: dict[int, list[str]] = {}
    for name, path in disks.items():
        signature = int.from_bytes(head(path)[_SIGNATURE], "little")
        found.setdefault(signature, []).append(name)
    numbered = _by_number(sys_root)
    return [
        found[signature][0]
        for signature in numbered
        if signature and numbered.count(signature) == 1 and len(found.get(signature, ())) == 1
    ]
