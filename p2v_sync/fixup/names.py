"""What a guest calls its volumes."""

from collections.abc import Callable

from p2v_sync.device.storage import Storage, Volume

_TAGS: dict[str, Callable[[Volume], str]] = {
    "uuid": lambda volume: volume.uuid.lower(),
    "label": lambda volume: volume.label,
    "partuuid": lambda volume: volume.part_uuid.lower(),
    "partlabel": lambda volume: volume.part_label,
}
_WITHOUT_CASE = ("uuid", "partuuid")


def resolve(spec: str, storage: Storage) -> Volume | None:
    """The volume of ``UUID=…``, ``LABEL=…``, ``/dev/disk/by-uuid/…``, ``/dev/sda1``, ``sda1``, …"""
    tag, found, value = spec.partition("=")
    if found and tag.lower() in _TAGS:
        return _by_tag(tag.lower(), value.strip("\"'"), storage)
    name = spec.strip("\"'").removeprefix("/dev/")
    for each in _TAGS:
        prefix = f"disk/by-{each}/"
        if name.startswith(prefix):
            return _by_tag(each, name.removeprefix(prefix), storage)
    by_name = (volume for volume in storage if name and _has_name(volume, name))
    return next(by_name, None)


def _by_tag(tag: str, value: str, storage: Storage) -> Volume | None:
    wanted = value.lower() if tag in _WITHOUT_CASE else value
    of = _TAGS[tag]
    return next((volume for volume in storage if wanted and of(volume) == wanted), None)


def _has_name(volume: Volume, name: str) -> bool:
    # A logical volume is on a disk but is not the disk.
    is_on_disk = volume.partition or not volume.aliases
    return name in volume.aliases or (bool(is_on_disk) and name == volume.kernel_name)
