"""What kind of system a tree is."""

import re

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import Storage
from p2v_sync.errors import FixupError
from p2v_sync.fixup.guest import (
    BootLoader,
    Distribution,
    Family,
    Generator,
    Guest,
    Init,
    LoaderKind,
)
from p2v_sync.fixup.shell_file import value_of
from p2v_sync.fixup.tree import Tree

_LOADERS = {
    LoaderKind.GRUB_LEGACY: ("/boot/grub/menu.lst", "/boot/grub/grub.conf"),
    LoaderKind.EXTLINUX: ("/boot/extlinux/extlinux.conf", "/extlinux.conf"),
    LoaderKind.ELILO: ("/etc/elilo.conf",),
    LoaderKind.LILO: ("/etc/lilo.conf",),
}
_FAMILIES = {
    "debian": Family.DEBIAN,
    "ubuntu": Family.DEBIAN,
    "fedora": Family.FEDORA,
    "rhel": Family.RHEL,
    "centos": Family.RHEL,
    "sles": Family.SUSE,
    "suse": Family.SUSE,
    "arch": Family.ARCH,
}
_GENERATORS = {
    "/sbin/nash": Generator.MKINITRD_RH,
    "/usr/bin/mkinitcpio": Generator.MKINITCPIO,
    "/usr/sbin/update-initramfs": Generator.INITRAMFS_TOOLS,
    "/usr/bin/dracut": Generator.DRACUT,
    "/sbin/dracut": Generator.DRACUT,
    "/lib/mkinitrd": Generator.MKINITRD_SUSE,
}
_RELEASE = re.compile(r"(?:Red Hat|CentOS).*? release (\d+(?:\.\d+)?)")


def inspect(tree: Tree, storage: Storage, machine: Machine) -> Guest:
    """What is at ``tree``.  Raises FixupError when it is no system."""
    del storage, machine
    if not _is(tree, "/etc"):
        raise FixupError(
            f"{tree.root} has no /etc, so it is no guest's root",
            hint="name the directory where the guest's root file system is",
        )
    return Guest(
        distribution=_distribution(tree),
        init=Init.SYSTEMD
        if _is(tree, "/lib/systemd/systemd") or _is(tree, "/usr/lib/systemd/systemd")
        else Init.UNKNOWN,
        boot_loaders=tuple(_boot_loaders(tree)),
        generator=next(
            (kind for path, kind in _GENERATORS.items() if _is(tree, path)), Generator.OTHER
        ),
    )


def _is(tree: Tree, path: str) -> bool:
    try:
        tree.status(path)
    except (FileNotFoundError, FixupError):
        return False
    return True


def _text(tree: Tree, path: str) -> str:
    try:
        return tree.read(path).decode("latin-1")
    except (FileNotFoundError, FixupError):
        return ""


def _distribution(tree: Tree) -> Distribution:
    text = _text(tree, "/etc/os-release")
    if name := value_of(text, "ID"):
        return Distribution(
            _FAMILIES.get(name, Family.OTHER), name, value_of(text, "VERSION_ID") or ""
        )
    if found := _RELEASE.match(_text(tree, "/etc/redhat-release")):
        return Distribution(Family.RHEL, "rhel", found[1])
    return Distribution()


def _boot_loaders(tree: Tree) -> list[BootLoader]:
    found = []
    directory = "/boot/loader/entries"
    names = tree.names(directory) if _is(tree, directory) else []
    entries = tuple(f"{directory}/{name}" for name in names if name.endswith(".conf"))
    for path in ("/boot/grub2/grub.cfg", "/boot/grub/grub.cfg"):
        if _is(tree, path):
            kind = LoaderKind.GRUB2_BLS if entries else LoaderKind.GRUB2
            found.append(BootLoader(kind, path, entries))
    if entries and not found:
        found.append(BootLoader(LoaderKind.SYSTEMD_BOOT, "/boot/loader/loader.conf", entries))
    for kind, paths in _LOADERS.items():
        found += [BootLoader(kind, path) for path in paths[:1] if _is(tree, path)]
    return found
