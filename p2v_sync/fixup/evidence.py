"""What a guest itself says about its volumes, for a directory whose devices nobody has listed."""

import re
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import NamedTuple

from p2v_sync.device.storage import Storage, Volume
from p2v_sync.errors import FixupError
from p2v_sync.fixup.boot_entries import command_lines
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Guest, LoaderKind
from p2v_sync.fixup.lines import fields, is_comment, split_lines
from p2v_sync.fixup.names import depends_on_bus, device_name

_BLKID = ("/etc/blkid.tab", "/etc/blkid/blkid.tab")
_BLKID_DEVICE = re.compile(r"<device([^<>]*)>\s*(/dev/[^<>\s]+)\s*</device>")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_INSTALLED = re.compile(r"#\s*(\S+) was on (/dev/\S+) during installation")  # Debian, Ubuntu
_UUID = re.compile(r"[0-9A-Fa-f][0-9A-Fa-f-]{7,35}")
_MOST_VOLUMES = 256
_PARTITION = re.compile(r"([hs]d[a-z]+|x?vd[a-z]+|nvme\d+n\d+(?=p)|mmcblk\d+(?=p))p?(\d+)")


class _Said(NamedTuple):
    name: str  # below /dev
    uuid: str
    kind: str = ""
    label: str = ""


def known_storage(draft: Draft, guest: Guest, storage: Storage) -> Storage:
    """``storage`` if it is complete, else what the guest's files tell, as they are on the disk.

    A name for which two of them tell different things is left out.
    """
    if not storage.is_complete:
        told = islice(_volumes(_all_said(Draft(draft.tree), guest)), _MOST_VOLUMES)
        found = [*storage.volumes, *told]
        disks = storage.disks or tuple(sorted({volume.disk for volume in found}))
        return Storage(tuple(found), disks, is_complete=False)
    return storage


def _volumes(said: Iterator[_Said]) -> Iterator[Volume]:
    by_name: dict[str, dict[str, _Said]] = {}
    for each in said:
        of_name = by_name.setdefault(each.name, {})
        known = of_name.get(each.uuid.lower())
        of_name[each.uuid.lower()] = known if known and known.kind else each
    for name, of_name in by_name.items():
        found = _PARTITION.fullmatch(name)
        if len(of_name) == 1:
            (only,) = of_name.values()
            disk, number = (found[1], int(found[2])) if found else ("", 0)
            yield Volume(
                "", disk, number, only.kind, only.uuid, only.label, aliases=() if found else (name,)
            )


def _all_said(draft: Draft, guest: Guest) -> Iterator[_Said]:
    for path in _BLKID:
        yield from _from_blkid(_text(draft, path))
    fstab = _text(draft, "/etc/fstab")
    yield from _from_comments(fstab)
    yield from _from_boot(draft, guest, _points(fstab))


def _text(draft: Draft, path: str) -> str:
    try:
        return draft.text(path)
    except (FileNotFoundError, FixupError):
        return ""


def _from_blkid(text: str) -> Iterator[_Said]:
    for found in _BLKID_DEVICE.finditer(text):
        said = dict(_ATTRIBUTE.findall(found[1]))
        if said.get("UUID"):
            yield _Said(found[2][5:], said["UUID"], said.get("TYPE", ""), said.get("LABEL", ""))


def _from_comments(text: str) -> Iterator[_Said]:
    """``# / was on /dev/sda1 during installation``, and the line with the UUID below it."""
    lines = split_lines(text)
    for line, following in pairwise(lines):
        found, said = _INSTALLED.match(line), fields(following)
        if not found or len(said) < 3 or not said[0].startswith("UUID="):
            continue
        if found[1] in (said[1], said[2]):  # swap: its point is none
            yield _Said(found[2][5:], said[0][5:].strip("\"'"), said[2])


def _points(fstab: str) -> dict[str, str]:
    """Mount point → spec."""
    lines = [fields(line) for line in split_lines(fstab) if not is_comment(line)]
    return {line[1]: line[0] for line in lines if len(line) >= 3}


def _from_boot(draft: Draft, guest: Guest, points: dict[str, str]) -> Iterator[_Said]:
    """The root and /boot by their names in one file, and by UUID in another."""
    roots = {
        value
        for entry, line in command_lines(draft, guest)
        if not entry.is_rescue and (value := line.get("root"))
    }
    if sum(map(depends_on_bus, roots)) > 1:
        roots = set()  # of several systems: which is this one's?
    root = {*roots, *filter(None, [points.get("/")])}
    searched = _searched(draft, guest)
    if "/boot" in points:
        yield from _same({points["/boot"], *searched})
    else:
        root |= searched
    yield from _same(root)


def _searched(draft: Draft, guest: Guest) -> set[str]:
    """The UUID by which GRUB looks for its files, as ``UUID=…``."""
    of_grub = (LoaderKind.GRUB2, LoaderKind.GRUB2_BLS, LoaderKind.GRUB_LEGACY)
    texts = [_text(draft, each.config) for each in guest.boot_loaders if each.kind in of_grub]
    found = set()
    for line in (fields(line) for text in texts for line in split_lines(text)):
        is_search = line[:1] == ["search"] and "--fs-uuid" in line
        if (is_search or line[:1] == ["uuid"]) and _UUID.fullmatch(line[-1]):
            found.add(f"UUID={line[-1]}")
    return found if len(found) == 1 else set()  # with other systems in the menu: whose?


def _same(specs: set[str]) -> Iterator[_Said]:
    """Names and UUIDs of one volume."""
    uuids = {spec[5:].strip("\"'") for spec in specs if spec.upper().startswith("UUID=")}
    for spec in specs:
        name = device_name(spec)
        if name and depends_on_bus(spec):
            for uuid in uuids:
                yield _Said(name, uuid)
