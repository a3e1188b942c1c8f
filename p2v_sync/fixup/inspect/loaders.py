"""Which boot loaders are installed: by what lies there, because nobody can be asked."""

import re
from collections.abc import Iterator, Sequence

from p2v_sync.fixup.guest import BootLoader, LoaderKind, Mount
from p2v_sync.fixup.inspect import fstab
from p2v_sync.fixup.inspect.reader import Reader, assignments, joined
from p2v_sync.units import MIB

_SYSTEMD_BOOT_SAYS = b"#### LoaderInfo: systemd-boot"
_EXTLINUX = (
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
)
_WRAPPER_MOST = 4096
_LEADS_ON = re.compile(r"^\s*configfile\s", re.MULTILINE)
_BOOTS = re.compile(r"^\s*(menuentry\s|linux(16|efi)?\s|blscfg\b)", re.MULTILINE)
_BLSCFG = re.compile(r"^\s*blscfg\b", re.MULTILINE)


def efi_directories(reader: Reader, mounts: Sequence[Mount]) -> list[str]:
    """Where EFI system partitions seem to be mounted: directories with an EFI directory in them."""
    by_fstab = [fstab.point_of(mount) for mount in mounts if mount.kind in ("vfat", "msdos")]
    usual = ("/boot/efi", "/efi", "/boot")
    places = dict.fromkeys((*filter(None, by_fstab), *usual))
    return [place for place in places if reader.without_case(joined(place, "EFI"))]


def programs_of(reader: Reader, esp: str) -> list[str]:
    """The ``*.efi`` in EFI/*/ of a system partition."""
    efi = reader.without_case(joined(esp, "EFI"))
    found = reader.files(f"{efi}/*/*") if efi else []
    return [path for path in found if path.lower().endswith(".efi")]


def find_loaders(reader: Reader, mounts: Sequence[Mount]) -> tuple[BootLoader, ...]:
    """Those with evidence, the one likeliest to be in charge first."""
    esps = efi_directories(reader, mounts)
    found = [
        *_systemd_boot(reader, esps),
        *_grub2(reader, esps),
        *_grub_legacy(reader, esps),
        *_elilo(reader, esps),
        *_extlinux(reader),
    ]
    found += _lilo(reader, is_alone=not found)
    if not found:
        reader.note("no boot loader was found")
    return tuple(found)


def _systemd_boot(reader: Reader, esps: Sequence[str]) -> Iterator[BootLoader]:
    unified = tuple(path for esp in esps for path in _unified(reader, esp))
    for esp in esps:
        if any(_is_systemd_boot(reader, program) for program in programs_of(reader, esp)):
            config = reader.without_case(joined(esp, "loader/loader.conf"))
            yield BootLoader(LoaderKind.SYSTEMD_BOOT, config, _entries(reader, esps))
            break
    if unified:
        yield BootLoader(LoaderKind.UKI, "", unified)


def _unified(reader: Reader, esp: str) -> list[str]:
    directory = reader.without_case(joined(esp, "EFI/Linux"))
    found = reader.files(f"{directory}/*") if directory else []
    return [path for path in found if path.lower().endswith(".efi")]


def _is_systemd_boot(reader: Reader, program: str) -> bool:
    name = program.rpartition("/")[2].lower()
    if name.startswith("systemd-boot"):
        return True
    return name.startswith("boot") and _SYSTEMD_BOOT_SAYS in reader.part(program, 0, MIB)


def _entries(reader: Reader, esps: Sequence[str]) -> tuple[str, ...]:
    """Files of the Boot Loader Specification, on /boot (or XBOOTLDR) and the system partitions."""
    places = dict.fromkeys(("/boot", *esps))
    found = (reader.files(joined(place, "loader/entries/*.conf")) for place in places)
    return tuple(path for paths in found for path in paths)


def _grub2(reader: Reader, esps: Sequence[str]) -> Iterator[BootLoader]:
    in_boot = reader.files("/boot/grub2/grub.cfg", "/boot/grub/grub.cfg")
    in_esp = [
        path
        for esp in esps
        if (efi := reader.without_case(joined(esp, "EFI")))
        for path in reader.files(f"{efi}/*/grub.cfg")
    ]
    wrappers = tuple(path for path in in_esp if _is_wrapper(reader, path))
    # Where the one on the system partition is no wrapper (RHEL 7), it is what UEFI comes to first.
    configs = [path for path in in_esp if path not in wrappers] + in_boot
    distinct = {reader.resolved(path): path for path in reversed(configs)}
    for number, config in enumerate(reversed(distinct.values())):
        yield _grub2_of(reader, config, esps, wrappers if number == 0 else ())


def _is_wrapper(reader: Reader, path: str) -> bool:
    status = reader.status(path)
    if status is None or status.size > _WRAPPER_MOST:
        return False
    text = reader.text(path)
    return bool(_LEADS_ON.search(text)) and not _BOOTS.search(text)


def _grub2_of(
    reader: Reader, config: str, esps: Sequence[str], wrappers: tuple[str, ...]
) -> BootLoader:
    """With entries of the Boot Loader Specification only where GRUB is told to read them."""
    defaults = assignments(reader.text("/etc/default/grub"))
    suse = assignments(reader.text("/etc/sysconfig/bootloader")).get("LOADER_TYPE")
    is_bls = (
        defaults.get("GRUB_ENABLE_BLSCFG", "").lower() == "true"
        or suse == "grub2-bls"
        or _BLSCFG.search(reader.text(config, 8 * MIB))
    )
    entries = _entries(reader, esps) if is_bls else ()
    kind = LoaderKind.GRUB2_BLS if entries else LoaderKind.GRUB2
    return BootLoader(kind, config, entries, wrappers)


def _grub_legacy(reader: Reader, esps: Sequence[str]) -> Iterator[BootLoader]:
    """Also GRUB 0.97 with EFI, as RHEL 6 has it."""
    paths = reader.files("/boot/grub/menu.lst", "/boot/grub/grub.conf")
    for esp in esps:
        efi = reader.without_case(joined(esp, "EFI"))
        paths = reader.files(f"{efi}/*/grub.conf") + paths
    distinct = dict.fromkeys(reader.resolved(path) for path in paths)
    yield from (BootLoader(LoaderKind.GRUB_LEGACY, path) for path in distinct)


def _elilo(reader: Reader, esps: Sequence[str]) -> Iterator[BootLoader]:
    efis = (reader.without_case(joined(esp, "EFI")) for esp in esps)
    paths = [path for efi in efis if efi for path in reader.files(f"{efi}/*/elilo.conf")]
    if config := next(iter(paths), reader.first_file("/etc/elilo.conf")):
        yield BootLoader(LoaderKind.ELILO, config)


def _extlinux(reader: Reader) -> Iterator[BootLoader]:
    if config := reader.first_file(*_EXTLINUX):
        yield BootLoader(LoaderKind.EXTLINUX, config)


def _lilo(reader: Reader, *, is_alone: bool) -> Iterator[BootLoader]:
    """Many have a lilo.conf that was never run; one that was leaves its map."""
    if reader.is_file("/etc/lilo.conf") and (is_alone or reader.is_file("/boot/map")):
        yield BootLoader(LoaderKind.LILO, "/etc/lilo.conf")
