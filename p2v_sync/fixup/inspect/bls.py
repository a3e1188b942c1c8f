"""Entries of the Boot Loader Specification: what GRUB with blscfg and systemd-boot would boot."""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from p2v_sync.fixup.guest import BootEntry, BootLoader
from p2v_sync.fixup.inspect import grub
from p2v_sync.fixup.inspect.locate import Locator
from p2v_sync.fixup.inspect.reader import Reader, shown
from p2v_sync.fixup.inspect.unified import read_unified
from p2v_sync.fixup.inspect.versions import Key, version_key


@dataclass(frozen=True)
class _Candidate:
    entry: BootEntry
    order: Key


def grub2_bls_entry(reader: Reader, loader: BootLoader, locator: Locator) -> BootEntry | None:
    """What grub.cfg's default names, else the newest."""
    values = grub.variables(reader, loader.config)
    wanted = grub.default_of(reader, loader.config)
    found = _sorted(_read(reader, path, locator, values) for path in loader.entries)
    by_name = (one for one in found if wanted in (one.id, one.title))
    if entry := next(by_name, None):
        return entry
    number = int(wanted) if wanted.isdecimal() and len(wanted) < 9 else 0
    return found[number if number < len(found) else 0] if found else None


def systemd_boot_entry(
    reader: Reader, loaders: tuple[BootLoader, ...], locator: Locator
) -> BootEntry | None:
    """What loader.conf's ``default`` (a pattern) matches, else the newest.

    The entry that was chosen last is in an EFI variable, which stays with the physical machine.
    """
    files = [path for loader in loaders for path in loader.entries]
    found = _sorted(
        read_unified_entry(reader, path)
        if path.lower().endswith(".efi")
        else _read(reader, path, locator, {})
        for path in files
    )
    pattern = _wanted(reader, loaders[0].config)
    matching = [one for one in found if pattern and _matches(one.id, pattern)]
    return next(iter(matching or found), None)


def _matches(id_: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(id_ + suffix, pattern) for suffix in ("", ".conf"))


def _wanted(reader: Reader, config: str) -> str:
    for line in reader.lines(config) if config else ():
        words = line.split()
        if len(words) > 1 and words[0] == "default":
            return words[1]
    return ""


def _sorted(candidates: Iterator[_Candidate]) -> list[BootEntry]:
    """The newest first."""
    found = sorted(candidates, key=lambda one: one.order, reverse=True)
    return [one.entry for one in found]


def _read(reader: Reader, path: str, locator: Locator, values: Mapping[str, str]) -> _Candidate:
    said: dict[str, list[str]] = {}
    for line in reader.lines(path):
        key, *rest = line.split(None, 1)
        said.setdefault(key.lower(), []).extend(rest)
    id_ = path.rpartition("/")[2].removesuffix(".conf")
    images = [word for value in said.get("initrd", []) for word in value.split()]
    files = [image for image in images if not image.startswith("$")]
    entry = BootEntry(
        shown(id_),
        shown(" ".join(said.get("title", []))),
        locator.find("".join(said.get("linux", [])[:1]), path),
        locator.find(files[-1], path) if files else "",
        grub.expanded(" ".join(said.get("options", [])), values),
    )
    return _Candidate(entry, version_key("".join(said.get("version", [])[:1]) or id_))


def read_unified_entry(reader: Reader, path: str) -> _Candidate:
    """A unified kernel image stands for an entry; what the firmware boots is the image itself."""
    image = read_unified(reader, path)
    id_ = path.rpartition("/")[2]
    entry = BootEntry(shown(id_), "", path, "", image.options)
    return _Candidate(entry, version_key(image.version or id_))
