"""What sysfs knows about one disk: names unique in the world, model, bus.  '' where unknown."""

import re
from pathlib import Path
from typing import NamedTuple

from p2v_sync.device.attributes import SYS, read_bytes, read_text
from p2v_sync.device.vpd import parse_identification_page, parse_serial_page

MULTIPATH_PREFIX = "mpath-"

# First match along the device's path wins; a disk behind a USB bridge is also a SCSI disk, and one
# on virtio-scsi or an ATA port has a SCSI host too.
_BUS_OF_COMPONENT = (
    (re.compile(r"usb\d+"), "usb"),
    (re.compile(r"nvme(-subsys)?\d+"), "nvme"),
    (re.compile(r"mmc\d+|mmc_host"), "mmc"),
    (re.compile(r"vbd-\d+"), "xen"),
    (re.compile(r"virtio\d+"), "virtio"),
    (re.compile(r"ata\d+"), "ata"),
    (re.compile(r"end_device-.*"), "sas"),
    (re.compile(r"rport-.*"), "fc"),
    (re.compile(r"session\d+"), "iscsi"),
    (re.compile(r"ide\d+"), "ide"),
    (re.compile(r"cciss\d+"), "cciss"),
    (re.compile(r"host\d+"), "scsi"),
)
# For trees that are copies without the device path.
_BUS_OF_NAME = (
    ("nvme", "nvme"),
    ("mmcblk", "mmc"),
    ("cciss", "cciss"),
    ("xvd", "xen"),
    ("sd", "scsi"),
    ("hd", "ide"),
    ("vd", "virtio"),
    ("md", "md"),
    ("dm-", "dm"),
)
# scsi_id, and so multipath, puts the designator's type in front: 3 NAA, 2 EUI-64.
_SCSI_ID_TYPES = {"3": "naa.", "2": "eui."}


# Longer than any real one (a dm uuid has up to 128 characters), short enough to keep anywhere.
_NAME_CAP = 256


class Names(NamedTuple):
    """``wwn`` is unique in the world, ``serial`` within what a maker sells; '' when not known."""

    wwn: str
    serial: str


def bus_of(directory: Path) -> str:
    """``ata``, ``sas``, ``usb``, ``nvme``, … from where in the device tree a disk hangs."""
    for pattern, bus in _BUS_OF_COMPONENT:
        if any(pattern.fullmatch(component) for component in directory.parts[:-1]):
            return bus
    return next((bus for prefix, bus in _BUS_OF_NAME if directory.name.startswith(prefix)), "")


def model_of(directory: Path) -> str:
    """Vendor and model; for dm its name, for md its level."""
    device = directory / "device"
    vendor = read_text(device / "vendor")
    model = read_text(device / "model") or read_text(device / "name")
    # libata puts its own name where the vendor belongs, virtio and PCI a number.
    if vendor == "ATA" or vendor.startswith("0x"):
        vendor = ""
    full = f"{vendor} {model}".strip()
    return full or read_text(directory / "dm" / "name") or read_text(directory / "md" / "level")


def _is_meaningful(name: str) -> bool:
    """False for the zeros and Fs that cheap bridges and emulators report."""
    payload = re.sub(r"^(naa|eui|uuid|0x)\.?|[-:. ]", "", name.lower())
    return len(set(payload)) > 1


def _usb_serial(directory: Path) -> str:
    """The serial of the USB device a disk belongs to: its bridges often hide the disk's own."""
    for ancestor in directory.parents:
        if (ancestor / "idVendor").exists():
            return read_text(ancestor / "serial")
    return ""


def _wwn(directory: Path) -> str:
    dm_uuid = read_text(directory / "dm" / "uuid")
    if dm_uuid.startswith(MULTIPATH_PREFIX):
        wwid = dm_uuid.removeprefix(MULTIPATH_PREFIX)
        # The same name as on a leg, so that a machine booted without multipath is recognised.
        return _SCSI_ID_TYPES.get(wwid[:1], wwid[:1]) + wwid[1:]
    return (
        read_text(directory / "wwid")
        or read_text(directory / "device" / "wwid")
        or parse_identification_page(read_bytes(directory / "device" / "vpd_pg83"))
        or read_text(directory / "device" / "unique_id")
    )


def _serial(directory: Path) -> str:
    return (
        read_text(directory / "serial")
        or read_text(directory / "device" / "serial")
        or parse_serial_page(read_bytes(directory / "device" / "vpd_pg80"))
        or _usb_serial(directory)
        or read_text(directory / "md" / "uuid")
        or read_text(directory / "dm" / "uuid")
    )


def names_of(directory: Path) -> Names:
    """WWN and serial of the whole disk in a (resolved) sysfs directory."""
    wwn, serial = _wwn(directory)[:_NAME_CAP], _serial(directory)[:_NAME_CAP]
    return Names(wwn if _is_meaningful(wwn) else "", serial if _is_meaningful(serial) else "")


def names_of_device(dev: str, sys_root: Path = SYS) -> Names:
    """WWN and serial of the block device ``major:minor``.

    A partition has its disk's with ``-partN`` appended, as udev's by-id links do.
    """
    directory = (sys_root / "dev" / "block" / dev).resolve()
    number = read_text(directory / "partition")
    if not number:
        return names_of(directory)
    names = names_of(directory.parent)
    return Names(*(f"{name}-part{number}" if name else "" for name in names))
