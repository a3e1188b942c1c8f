"""What is in an initramfs: its files as the kernel leaves them, its modules, what made it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from p2v_sync.fixup.guest import Generator
from p2v_sync.fixup.initramfs import segments
from p2v_sync.fixup.initramfs.compression import Compression
from p2v_sync.fixup.initramfs.cpio import Entry
from p2v_sync.fixup.initramfs.modules import module_name
from p2v_sync.fixup.initramfs.segments import Image

_LINKS_MOST = 40  # as the kernel follows
_UDEV = {"udevd", "systemd-udevd", "nlplug-findfs"}  # they load modules for what they see
_IN_MODULES = re.compile(r"(?:usr/)?lib/modules/([^/]+)/.+")


@dataclass(frozen=True)
class Contents:
    """``files``: path without a slash before it → the last member of that name.

    ``modules``: module → its path, of the one kernel it was asked for.
    """

    image: Image
    files: Mapping[str, Entry]
    modules: Mapping[str, str]
    generator: Generator
    reason: str = ""  # why nothing can be appended; '' when it can

    @property
    def is_appendable(self) -> bool:
        return not self.reason

    @property
    def ends_in_lz4(self) -> bool:
        """The kernel reads on behind lz4 data, and stumbles over zeros or an archive there."""
        last = self.image.segments[-1]
        return last.compression is Compression.LZ4 and last.end == self.image.length

    def resolve(self, path: str) -> str:
        """Where ``path`` ends up when the links among its directories are followed."""
        return resolved(self.files, path)

    def data(self, path: str) -> bytes | None:
        """A regular file's bytes; links on the way are followed, not the last part."""
        entry = self.files.get(self.resolve(path))
        return bytes(entry.data) if entry is not None and entry.is_file else None


def examine(data: bytes, version: str, known: Generator = Generator.OTHER) -> Contents:
    """An initramfs of the kernel ``version``; ``known``: what the guest has to make them with."""
    image = segments.parse(data)
    files: dict[str, Entry] = {}
    for segment in image.segments:
        for entry in segment.entries:
            path = resolved(files, entry.name)
            if path:
                files[path] = entry
    generator = _generator(files, known)
    reason = image.reason or _not_appendable(files, generator)
    return Contents(image, files, _modules(files, version), generator, reason)


def resolved(files: Mapping[str, Entry], path: str) -> str:
    """As the kernel's own lookup: ``..`` at the top stays there.  '' for the top itself."""
    waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    found: list[str] = []
    followed = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            found = found[:-1]
            continue
        entry = files.get("/".join([*found, part]))
        if waiting and entry is not None and entry.is_link and followed < _LINKS_MOST:
            followed += 1
            target = bytes(entry.data).decode("latin-1")
            found = [] if target.startswith("/") else found
            waiting += [each for each in reversed(target.split("/")) if each not in ("", ".")]
        else:
            found.append(part)
    return "/".join(found)


def _modules(files: Mapping[str, Entry], version: str) -> dict[str, str]:
    found = {}
    for path, entry in files.items():
        match = _IN_MODULES.fullmatch(path)
        is_ours = match[1] == version if match else path.startswith("lib/") and path.count("/") == 1
        name = module_name(path) if is_ours and entry.is_file else ""
        if name:
            found[name] = path
    return found


def _generator(files: Mapping[str, Entry], known: Generator) -> Generator:
    """What made it, by what it left in the image; that wins over what is installed."""

    def has(*names: str) -> bool:
        return all(name in files for name in names)

    init = files.get("init")
    if has("bin/nash") or (init is not None and bytes(init.data[:80]).startswith(b"#!/bin/nash")):
        return Generator.MKINITRD_RH
    if has("usr/lib/dracut-lib.sh") or has("lib/dracut-lib.sh") or has("usr/lib/dracut"):
        return Generator.DRACUT
    if any(path.startswith(("usr/lib/dracut/", "lib/dracut/")) for path in files):
        return Generator.DRACUT
    if has("scripts/functions") and any(path.startswith("conf/") for path in files):
        return Generator.INITRAMFS_TOOLS
    if has("run_all.sh"):
        return Generator.MKINITRD_SUSE
    if has("config", "init_functions") or has("buildconfig"):
        return Generator.MKINITCPIO
    return known


def _not_appendable(files: Mapping[str, Entry], generator: Generator) -> str:
    if generator is Generator.MKINITRD_SUSE:
        return "its init (SUSE's mkinitrd) loads the drivers that it was made with, no others"
    if generator in (Generator.MKINITRD_RH, Generator.INITRAMFS_TOOLS):
        return ""  # they have a list of what to load
    if not any(path.rpartition("/")[2] in _UDEV for path in files):
        return "it has no udev, which would load a driver that is added"
    return ""
