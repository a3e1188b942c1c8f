"""Reading the physical machine: its names, its size, and what it is made of.

Nothing here fails for want of a fact: DMI is read by root alone, a module may not be loaded, and
whatever a firmware says may be garbage.  What is missing is '' or 0.
"""

import ctypes
import os
import re
import time
import uuid
from collections.abc import Container, Iterator
from pathlib import Path

from p2v_sync.device.attributes import PROC, SYS, names_in, read_bytes, read_text
from p2v_sync.device.capacity import read_cpus, read_memory
from p2v_sync.device.machine import Machine, MachineDisk
from p2v_sync.device.nics import read_nics
from p2v_sync.device.sysfs import Disk, scan

DEV = Path("/dev")

_STRINGS = (
    *("sys_vendor", "product_name", "product_version", "product_serial", "product_sku"),
    *("product_family", "board_vendor", "board_name", "board_version", "board_serial"),
    *("board_asset_tag", "chassis_vendor", "chassis_version", "chassis_serial"),
    *("chassis_asset_tag", "bios_vendor", "bios_version", "bios_date"),
)
# An SMBIOS string is longer only by mistake, and QEMU takes no longer one.
_STRING_CAP = 255
# What makers leave in when nobody fills it in, compared without case, blanks, dots and dashes.
_PLACEHOLDER = re.compile(
    r"|tobefilled.*|filledby.*|default(string)?|oem(string)?|none|null|n/?a|unknown|undefined"
    r"|invalid|empty|0+|f+|x+|0?123456789.*|(no)?assettag.*|nodminformation"
    r"|not(specified|applicable|available|provided|present|set|defined)"
    r"|(system|product|board|baseboard|mainboard|chassis)?"
    r"(manufacturer|name|productname|version|serial(number)?|assettag|sku(number)?|family)",
    re.IGNORECASE,
)


def is_placeholder(text: str) -> bool:
    """True for "To Be Filled By O.E.M.", "Default string", "0123456789" and the like."""
    return _PLACEHOLDER.fullmatch(re.sub(r"[\s._-]", "", text)) is not None


def _dmi(sys_root: Path) -> dict[str, str]:
    base = sys_root / "class" / "dmi" / "id"
    found = ((name, read_text(base / name)[:_STRING_CAP].strip()) for name in _STRINGS)
    return {name: text for name, text in found if not is_placeholder(text)}


# One for whole generations of boards, as the firmware's source has them.
_UUIDS_OF_MANY = {
    "03000200-0400-0500-0006-000700080009",
    "00020003-0004-0005-0006-000700080009",
    "12345678-1234-5678-90ab-cddeefaabbcc",
    "01020304-0506-0708-090a-0b0c0d0e0f10",
}


def parse_uuid(text: str) -> str:
    """The canonical form in lower case; '' for no UUID and for those that are no machine's own."""
    try:
        found = uuid.UUID(text.strip())
    except ValueError:
        return ""
    is_filler = len(set(found.bytes)) == 1
    return "" if is_filler or str(found) in _UUIDS_OF_MANY else str(found)


# EFI variables: four bytes of attributes, then the value (efivarfs); UEFI 2.10, 3.3.
_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def _has_secure_boot(sys_root: Path) -> bool:
    raw = read_bytes(sys_root / "firmware" / "efi" / "efivars" / _SECURE_BOOT)
    return len(raw) == 5 and raw[4] == 1


_ZONE_STEP_S = 15 * 60
_ZONE_MOST_S = 14 * 3600
_TIME_ERROR = 5


def _clock_is_right() -> bool:
    """True when something (NTP) keeps the system's clock; man 2 adjtimex."""
    timex = ctypes.create_string_buffer(512)  # modes 0: only asks
    state: int = ctypes.CDLL(None).adjtimex(timex)
    return 0 <= state < _TIME_ERROR


def rtc_base(since_epoch: int, now: float) -> str:
    """What the hardware clock runs in, when it shows ``since_epoch`` (taken as UTC) at ``now``.

    '' when it is off by what is no time zone.
    """
    offset_s = since_epoch - now
    zone_s = round(offset_s / _ZONE_STEP_S) * _ZONE_STEP_S
    if abs(zone_s) > _ZONE_MOST_S or abs(offset_s - zone_s) > _ZONE_STEP_S / 3:
        return ""
    return "localtime" if zone_s else "utc"


def _rtc(sys_root: Path, now: float | None) -> str:
    if now is None:
        # The kernel sets the time by the hardware clock, so the two agree until NTP had its say.
        if sys_root != SYS or not _clock_is_right():
            return ""
        now = time.time()
    text = read_text(sys_root / "class" / "rtc" / "rtc0" / "since_epoch")
    return rtc_base(int(text), now) if re.fullmatch(r"[0-9]{1,12}", text) else ""


_LINKS_MOST = 64  # of one disk; each is at most a file name long


def _links(dev_root: Path) -> Iterator[tuple[str, str]]:
    """``(kernel name, link)`` for all below /dev/disk/by-id and by-path."""
    for kind in ("by-id", "by-path"):
        directory = dev_root / "disk" / kind
        for name in names_in(directory):
            try:
                target = os.readlink(directory / name)
            except OSError:
                continue
            if name.isprintable():
                # Device-mapper's links lead to dm-N, those of others perhaps into a directory.
                yield target.removeprefix("../../").replace("/", "!"), f"{kind}/{name}"


def _disk(disk: Disk, links: list[tuple[str, str]]) -> MachineDisk:
    return MachineDisk(
        name=disk.name,
        size=disk.size,
        model=disk.model,
        serial=disk.serial,
        wwn=disk.wwn,
        bus=disk.bus,
        logical_sector_size=disk.logical_sector_size,
        physical_sector_size=disk.physical_sector_size,
        ids=tuple(link for name, link in links if name == disk.name)[:_LINKS_MOST],
    )


def read_machine(
    sys_root: Path = SYS,
    proc_root: Path = PROC,
    *,
    disks: Container[str] | None = None,
    dev_root: Path = DEV,
    now: float | None = None,
) -> Machine:
    """All facts about a machine.  Raises DeviceError without sysfs.

    ``disks``: kernel names of those that are copied; without it all that could be.  ``now``: the
    time when the tree was read; without it a clock that NTP keeps is asked, or nobody.
    """
    links = list(_links(dev_root))
    efi = sys_root / "firmware" / "efi"
    return Machine(
        hostname=read_text(proc_root / "sys" / "kernel" / "hostname")[:_STRING_CAP],
        uuid=parse_uuid(read_text(sys_root / "class" / "dmi" / "id" / "product_uuid")),
        dmi=_dmi(sys_root),
        memory=read_memory(sys_root, proc_root),
        cpus=read_cpus(sys_root, proc_root),
        nics=read_nics(sys_root),
        disks=tuple(
            _disk(disk, links)
            for disk in scan(sys_root, proc_root)
            if (disk.excluded is None if disks is None else disk.name in disks)
        ),
        is_uefi=efi.is_dir(),
        has_secure_boot=_has_secure_boot(sys_root),
        rtc=_rtc(sys_root, now),
        has_tpm=bool(names_in(sys_root / "class" / "tpm")),
    )
