"""What the guest boots when nobody touches the keyboard."""

from collections.abc import Sequence

from p2v_sync.fixup.guest import BootEntry, BootLoader, LoaderKind
from p2v_sync.fixup.inspect import bls, grub, labels
from p2v_sync.fixup.inspect.locate import Locator
from p2v_sync.fixup.inspect.reader import Reader


def default_entry(
    reader: Reader, loaders: Sequence[BootLoader], locator: Locator
) -> BootEntry | None:
    """Of the first boot loader that has entries at all; a problem when none has."""
    for loader in loaders:
        if entry := _entry_of(reader, loader, loaders, locator):
            return entry
    if loaders:
        reader.note("no boot loader's configuration has an entry that could be read")
    return None


def _entry_of(
    reader: Reader, loader: BootLoader, loaders: Sequence[BootLoader], locator: Locator
) -> BootEntry | None:
    match loader.kind:
        case LoaderKind.SYSTEMD_BOOT:
            unified = (each for each in loaders if each.kind is LoaderKind.UKI)
            return bls.systemd_boot_entry(reader, (loader, *unified), locator)
        case LoaderKind.UKI:
            return bls.systemd_boot_entry(reader, (loader,), locator)
        case LoaderKind.GRUB2_BLS:
            return bls.grub2_bls_entry(reader, loader, locator)
        case LoaderKind.GRUB2:
            return grub.grub2_entry(reader, loader.config, locator)
        case LoaderKind.GRUB_LEGACY:
            return grub.legacy_entry(reader, loader.config, locator)
        case LoaderKind.LILO | LoaderKind.ELILO:
            return labels.lilo_entry(reader, loader.config, locator)
        case LoaderKind.EXTLINUX:
            return labels.extlinux_entry(reader, loader.config, locator)


def option(options: str, name: str) -> str:
    """The last ``name=value`` of a command line, as the kernel takes it; '' when it has none."""
    said = [word for word in options.split() if word.startswith(f"{name}=")]
    return said[-1].partition("=")[2].strip('"') if said else ""
