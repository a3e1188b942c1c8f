"""A UEFI guest starts without boot entries: these stayed behind in the physical machine's NVRAM.

Then firmware tries \\EFI\\BOOT\\BOOT{X64,IA32,AA64}.EFI on each EFI system partition, and nothing
else (UEFI specification, 3.5.1.1).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from p2v_sync.errors import GuestFileError
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Firmware, Guest
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity
from p2v_sync.units import MIB

_USUAL_PLACES = ("/boot/efi", "/efi", "/boot")
_FILE_SYSTEMS = ("vfat", "msdos", "fat")
_LOADER_MOST = 32 * MIB  # a unified kernel image may be longer, and is not copied

# What a loader's name ends with: of the machine that it is for, the likelier one first.
_SUFFIXES = {
    "x86_64": ("x64", "ia32"),
    "i686": ("ia32", "x64"),
    "i586": ("ia32", "x64"),
    "i386": ("ia32", "x64"),
    "aarch64": ("aa64",),
}
# Within a vendor's directory, the best one first.
_LOADERS = ("shim{}.efi", "grub{}.efi", "grub.efi", "systemd-boot{}.efi", "refind_{}.efi")
_MORE_LOADERS = ("elilo.efi", "bootmgfw.efi")
_VENDORS = (
    "fedora", "redhat", "centos", "rocky", "almalinux", "oracle", "opensuse", "sles", "suse",
    "ubuntu", "debian", "arch", "grub", "systemd", "refind",
)  # fmt: skip
_LAST_VENDOR = "microsoft"
_DIRECTORIES = {"rhel": "redhat", "ol": "oracle", "opensuse-leap": "opensuse", "sled": "sles"}


@dataclass(frozen=True)
class _Copy:
    """A file of a vendor's directory, and what it is called in EFI/BOOT."""

    source: str
    name: str


class UefiFallback:
    """The loader is also where firmware looks without being told."""

    key = "F30-uefi-fallback"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        if context.guest.firmware is not Firmware.UEFI:
            return
        partitions = list(system_partitions(draft, context.guest))
        if not partitions:
            yield self._finding(
                "the guest starts by UEFI, but its EFI system partition was not found",
                "make a boot entry for its loader in the virtual machine's firmware",
            )
        for efi in partitions:
            yield from self._plan_one(draft, efi, context.guest)

    def _finding(self, text: str, hint: str = "") -> Finding:
        return Finding(self.key, Severity.WARNING, text, hint)

    def _plan_one(self, draft: Draft, efi: str, guest: Guest) -> Iterator[Finding]:
        vendors = _vendors(draft, efi, guest)
        for suffix in _SUFFIXES.get(guest.architecture, ("x64", "ia32", "aa64")):
            if fallback := find(draft, efi, f"boot/boot{suffix}.efi"):
                yield from self._check(draft, efi, fallback, suffix)
                return
            for vendor in vendors:
                if copies := list(_copies(draft, f"{efi}/{vendor}", suffix)):
                    _write(draft, efi, copies)
                    yield from self._others(draft, efi, vendors, vendor, suffix)
                    return
        yield self._finding(
            f"{efi} has no boot loader that could be made the default one",
            "make a boot entry for it in the virtual machine's firmware",
        )

    def _check(self, draft: Draft, efi: str, fallback: str, suffix: str) -> Iterator[Finding]:
        """A shim there starts fbx64.efi, which makes entries from CSV files, else grubx64.efi."""
        if not _is_shim(draft, fallback):
            return
        if find(draft, efi, f"boot/fb{suffix}.efi"):
            csv = f"boot{suffix}.csv"
            if not any(find(draft, efi, f"{each}/{csv}") for each in draft.names(efi)):
                yield self._finding(
                    f"{efi} has a shim that makes boot entries, but no {csv.upper()} to make any of"
                )
        elif not find(draft, efi, f"boot/grub{suffix}.efi"):
            yield from self._complete(draft, efi, suffix)

    def _complete(self, draft: Draft, efi: str, suffix: str) -> Iterator[Finding]:
        for vendor in draft.names(efi):
            copies = list(_copies(draft, f"{efi}/{vendor}", suffix))
            beside = [each for each in copies if each.name.casefold() != f"boot{suffix}.efi"]
            if vendor.casefold() != "boot" and beside:
                _write(draft, efi, beside)
                return
        yield self._finding(f"{efi} has a shim as its default loader, and nothing for it to start")

    def _others(
        self, draft: Draft, efi: str, vendors: list[str], chosen: str, suffix: str
    ) -> Iterator[Finding]:
        left = (each for each in vendors if each != chosen)
        others = [each for each in left if any(_copies(draft, f"{efi}/{each}", suffix))]
        if others:
            text = f"{efi} has loaders of {chosen} and {', '.join(others)}; {chosen}'s is started"
            yield self._finding(text, "the others need boot entries of their own")


def system_partitions(draft: Draft, guest: Guest) -> Iterator[str]:
    """The EFI directories of the EFI system partitions that are mounted below the root."""
    points = [each.point for each in guest.mounts if each.kind in _FILE_SYSTEMS]
    seen = set[str]()
    for point in (*points, *_USUAL_PLACES):
        efi = find(draft, point.rstrip("/"), "efi")
        is_point = efi in points or not draft.names(efi) or find(draft, efi, "efi")
        if efi and efi not in seen and not is_point:  # /boot/efi is no directory of /boot's
            seen.add(efi)
            yield efi


def find(draft: Draft, directory: str, path: str) -> str:
    """``path`` below ``directory`` in whatever case its names are, as FAT has it; '' if missing."""
    for part in path.split("/"):
        names = {name.casefold(): name for name in reversed(draft.names(directory or "/"))}
        if part.casefold() not in names:
            return ""
        directory = f"{directory}/{names[part.casefold()]}"
    return directory


def _vendors(draft: Draft, efi: str, guest: Guest) -> list[str]:
    """The directories with loaders, that of the guest's own distribution first."""
    own = _DIRECTORIES.get(guest.distribution.id, guest.distribution.id)

    def rank(name: str) -> tuple[int, str]:
        plain = name.casefold()
        if plain == own:
            return 0, plain
        known = _VENDORS.index(plain) + 1 if plain in _VENDORS else len(_VENDORS) + 1
        return known + (plain == _LAST_VENDOR), plain

    names = [name for name in draft.names(efi) if draft.is_directory(f"{efi}/{name}")]
    return sorted((name for name in names if name.casefold() != "boot"), key=rank)


def _copies(draft: Draft, vendor: str, suffix: str) -> Iterator[_Copy]:
    """What has to be in EFI/BOOT so that this vendor's loader starts; nothing if it has none."""
    if vendor.rpartition("/")[2].casefold() == _LAST_VENDOR:
        vendor = find(draft, vendor, "boot")
    named = [each.format(suffix) for each in _LOADERS] + (
        list(_MORE_LOADERS) if suffix == "x64" else []
    )
    loader = next((path for each in named if vendor and (path := find(draft, vendor, each))), "")
    if not loader:
        return
    name = loader.rpartition("/")[2].casefold()
    yield _Copy(loader, f"BOOT{suffix.upper()}.EFI")
    yield from _companions(draft, vendor, name, suffix)


def _companions(draft: Draft, vendor: str, loader: str, suffix: str) -> Iterator[_Copy]:
    if loader.startswith("shim"):
        # A shim starts what is beside it.  Not fbx64.efi: it would look for boot entries instead.
        wanted = {f"grub{suffix}.efi": f"grub{suffix}.efi", f"mm{suffix}.efi": f"mm{suffix}.efi"}
    else:
        wanted = {}
    if loader.startswith(("shim", "grub")):
        # Most builds have /EFI/VENDOR inside as the place of this file; some look beside them.
        wanted["grub.cfg"] = "grub.cfg"
    if loader == "grub.efi":
        wanted["grub.conf"] = f"BOOT{suffix.upper()}.conf"  # GRUB legacy names it after itself
    if loader == "elilo.efi":
        wanted["elilo.conf"] = "elilo.conf"
    for source, name in wanted.items():
        if path := find(draft, vendor, source):
            yield _Copy(path, name)


def _write(draft: Draft, efi: str, copies: Iterable[_Copy]) -> None:
    """Regular copies, FAT has no links.  What is there stays."""
    boot = find(draft, efi, "boot") or f"{efi}/BOOT"
    for copy in copies:
        if not find(draft, boot, copy.name):
            draft.write(f"{boot}/{copy.name}", draft.read(copy.source, _LOADER_MOST), mode=0o755)


def _is_shim(draft: Draft, path: str) -> bool:
    """By what all its versions say of themselves."""
    try:
        return b"UEFI SHIM" in draft.read(path, _LOADER_MOST)
    except (FileNotFoundError, GuestFileError):
        return False


FIXUPS: tuple[Fixup, ...] = (UefiFallback(),)
