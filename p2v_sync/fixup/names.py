"""What a guest calls its volumes, and what each of these names stands for."""

import posixpath
import re
from collections.abc import Callable

from p2v_sync.device.storage import Storage, Volume

# Names that a bus gives, and that change with it; sd and hd by turns for the same disk.
_BY_BUS = re.compile(
    r"(?:(?P<family>[hs]d|vd|xvd)(?P<letters>[a-z]{1,3})(?P<number>\d{1,3})?"
    r"|(?:cciss|ida|rd|i2o)/[\w/]+|(?:nvme\d|mmcblk)\w+|disk/by-(?:id|path)/.+"
    r"|mapper/(?:mpath|isw_|nvidia_|ddf1_|sil_|via_|pdc_|jmicron_|asr_|lsi_|hpt\w\w_).+)",
    re.ASCII,
)
_TAGS: dict[str, Callable[[Volume], str]] = {
    "UUID": lambda volume: volume.uuid,
    "LABEL": lambda volume: volume.label,
    "PARTUUID": lambda volume: volume.part_uuid,
    "PARTLABEL": lambda volume: volume.part_label,
}
_LONGEST = 1024
_DEVICES = {f"disk/by-{tag.lower()}/": tag for tag in _TAGS}
_HEX_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")


def device_name(spec: str) -> str | None:
    """``/dev/sda1`` → ``sda1``; None for what is no path below /dev."""
    is_path = spec.startswith("/dev/") and len(spec) <= _LONGEST
    path = posixpath.normpath(spec) if is_path else ""
    return path.removeprefix("/dev/") if path.startswith("/dev/") else None


def depends_on_bus(spec: str) -> bool:
    """Whether another bus, controller or disk would change this name."""
    name = device_name(spec)
    return name is not None and bool(_BY_BUS.fullmatch(name))


def resolve(spec: str, storage: Storage) -> Volume | None:
    """The volume that ``spec`` (UUID=…, LABEL="…", /dev/…) names; None when none does, or several.

    Names of disks are the guest's: /dev/hda1 is /dev/sda1 where there is but one disk.
    """
    found = candidates(spec, storage)
    return found[0] if len(found) == 1 else None


def candidates(spec: str, storage: Storage) -> list[Volume]:
    """All volumes that ``spec`` may name: cloned disks have the same UUIDs and labels."""
    name = device_name(spec)
    if name is None:
        tag, _, value = spec.partition("=")
        return _by_tag(tag, value.strip("\"'"), storage)
    for prefix, tag in _DEVICES.items():
        if name.startswith(prefix):
            value = _HEX_ESCAPE.sub(lambda found: chr(int(found[1], 16)), name[len(prefix) :])
            return _by_tag(tag, value, storage)
    names = {name, _logical_volume(name)} - {""}
    return [each for each in storage if names & names_of(each)] or _other_family(name, storage)


def is_perhaps_there(spec: str, storage: Storage) -> bool:
    """False only where it is certain that nothing has this name."""
    if not storage.is_complete or candidates(spec, storage):
        return True
    # What is inside a locked volume nobody can see.
    is_hidden = any(volume.kind == "crypto_LUKS" for volume in storage)
    return is_hidden and not depends_on_bus(spec)


def names_of(volume: Volume) -> set[str]:
    """Below /dev."""
    mapped = any(each.startswith(("mapper/", "md", "dm-")) for each in volume.aliases)
    own = {volume.kernel_name} if volume.partition or not mapped else set()
    names = own | {*volume.aliases} | {_logical_volume(each) for each in volume.aliases}
    return names - {""}


def _by_tag(tag: str, value: str, storage: Storage) -> list[Volume]:
    get = _TAGS.get(tag.upper())
    if get is None or not value:
        return []
    if tag.upper() in ("UUID", "PARTUUID"):  # the others are told apart by case
        return [each for each in storage if get(each).lower() == value.lower()]
    return [each for each in storage if get(each) == value]


def _logical_volume(name: str) -> str:
    """``vg-a/root`` ↔ ``mapper/vg--a-root``: LVM doubles the dashes of either part."""
    mapped = re.fullmatch(r"mapper/((?:[^-]|--)+)-((?:[^-]|--)+)", name)
    if mapped:
        return "/".join(each.replace("--", "-") for each in mapped.groups())
    group, slash, volume = name.partition("/")
    if not slash or "/" in volume or group in ("disk", "mapper", "md", "cciss", "ida", "rd", "i2o"):
        return ""
    return "mapper/" + "-".join(each.replace("-", "--") for each in (group, volume))


def _other_family(name: str, storage: Storage) -> list[Volume]:
    """hda1 of an old kernel is sda1 of a new one: said only where there is one disk."""
    found = _BY_BUS.fullmatch(name)
    if not found or found["letters"] != "a" or not found["number"]:
        return []
    if not storage.is_complete or len(storage.disks) != 1:
        return []
    (disk,) = storage.disks
    if not re.fullmatch(r"(?:[hs]d|ubd|vd|xvd)[a-z]+|loop\d+", disk):
        return []
    number = int(found["number"])
    return [each for each in storage if (each.disk, each.partition) == (disk, number)]


def has_unique_uuid(volume: Volume, storage: Storage) -> bool:
    """False too for a volume without one.  Cloned disks and members of a mirror have the same."""
    return bool(volume.uuid) and _by_tag("UUID", volume.uuid, storage) == [volume]


def has_unique_label(volume: Volume, storage: Storage) -> bool:
    """And one that can be written anywhere."""
    is_plain = bool(re.fullmatch(r"[\w.+:@/-]+", volume.label, re.ASCII))
    return is_plain and _by_tag("LABEL", volume.label, storage) == [volume]


def lasting_spec(volume: Volume, storage: Storage) -> str | None:
    """A name in fstab's form that stays whatever the bus is, the best one; None without any."""
    if has_unique_uuid(volume, storage):
        return f"UUID={volume.uuid}"
    if has_unique_label(volume, storage):
        return f"LABEL={volume.label}"
    if volume.part_uuid and _by_tag("PARTUUID", volume.part_uuid, storage) == [volume]:
        return f"PARTUUID={volume.part_uuid}"
    return None
