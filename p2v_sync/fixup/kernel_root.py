"""F04, F06, F07: what a kernel is told about its root and its swap, now and after updates."""

import re
from collections.abc import Iterator

from p2v_sync.device.storage import Storage, Volume
from p2v_sync.fixup.boot_entries import change_command_lines
from p2v_sync.fixup.boot_formats import Entry
from p2v_sync.fixup.command_line import CommandLine
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.evidence import known_storage
from p2v_sync.fixup.guest import Family, Generator, Guest, LoaderKind
from p2v_sync.fixup.lines import map_lines
from p2v_sync.fixup.names import (
    depends_on_bus,
    has_unique_label,
    has_unique_uuid,
    is_perhaps_there,
    lasting_spec,
    resolve,
)
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity
from p2v_sync.fixup.shell_file import value_of, with_value

_BLACKLISTS = ("rd.driver.blacklist", "rdblacklist", "modprobe.blacklist", "module_blacklist")
_NEEDED = re.compile(r"virtio(_\w+)?|ahci|ata_piix|sd_mod|xen_(blk|net)front")
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_GPT_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NAMES_ONLY = re.compile(r"[ \t]*GRUB_DISABLE_(?:LINUX_)?UUID=[\"']?true\b")
_DEBCONF = "/var/cache/debconf/config.dat"
_RESUME = "/etc/initramfs-tools/conf.d/resume"


class KernelRoot:
    """F04: root=, resume=, cryptdevice= and module blacklists on all kernel command lines."""

    key = "F04-kernel-root"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        guest = context.guest
        change = _Change(known_storage(draft, guest, context.storage), guest)
        for problem in change_command_lines(draft, guest, change):
            yield Finding(self.key, Severity.WARNING, problem)
        for (severity, text), hint in change.said.items():
            yield Finding(self.key, severity, text, hint)
        kinds = {loader.kind for loader in guest.boot_loaders}
        if kinds == {LoaderKind.LILO}:
            yield Finding(
                self.key,
                Severity.DOWNGRADE,
                "LILO has the root's device number and the kernel's sectors in a map of its own",
                "run lilo in the virtual machine before its disks are put on another bus",
            )
        if LoaderKind.UKI in kinds:
            text = "unified kernel images carry their command line inside, which is left as it is"
            yield Finding(self.key, Severity.NOTE, text)


class _Change:
    """What is done to one command line; remembers what is to be said."""

    def __init__(self, storage: Storage, guest: Guest) -> None:
        self._storage = storage
        self._guest = guest
        self.said: dict[tuple[Severity, str], str] = {}

    def __call__(self, line: CommandLine, entry: Entry) -> None:
        for key in ("root", "real_root"):  # the second one: Gentoo's
            line.map(key, lambda value: self._root(value, entry))
        line.map("cryptdevice", self._cryptdevice)
        line.map("resume", self._resume)
        for key in _BLACKLISTS:
            line.map(key, _without_needed)

    def _root(self, value: str, entry: Entry) -> str:
        if not depends_on_bus(value):
            return value
        volume = resolve(value, self._storage)
        if volume is None:
            why = "nothing tells which volume that is"
        else:
            spec = self._root_spec(volume, entry)
            if spec is not None:
                return spec
            why = (
                f"{'its initramfs' if entry.has_initrd else 'without an initramfs it'} knows no "
                + ("other name")
            )
        where = entry.kernel or entry.file
        self.said[Severity.DOWNGRADE, f"{where} is started with root={value}: {why}"] = (
            f"the virtual machine needs a bus on which {value} is called so"
        )
        return value

    def _root_spec(self, volume: Volume, entry: Entry) -> str | None:
        storage, of = self._storage, self._guest.distribution
        if not entry.has_initrd:
            return _root_without_initrd(volume, entry, storage)
        generator = self._guest.generator
        if generator is Generator.MKINITRD_RH and of.family is Family.RHEL and 0 < of.major <= 4:
            return f"LABEL={volume.label}" if has_unique_label(volume, storage) else None
        if generator is Generator.OTHER and of.family is Family.DEBIAN and 0 < of.major <= 4:
            return None  # yaird, initrd-tools
        return self._with_udev(volume) or lasting_spec(volume, storage)

    def _with_udev(self, volume: Volume) -> str | None:
        """SLES' mkinitrd takes paths in all its versions, UUID= in some."""
        if not has_unique_uuid(volume, self._storage):
            return None
        if self._guest.generator is Generator.MKINITRD_SUSE:
            return f"/dev/disk/by-uuid/{volume.uuid}"
        return f"UUID={volume.uuid}"

    def _cryptdevice(self, value: str) -> str:
        """DEVICE:NAME[:OPTIONS] of mkinitcpio."""
        device, colon, rest = value.partition(":")
        if not depends_on_bus(device):
            return value
        volume = resolve(device, self._storage)
        if volume is None or not has_unique_uuid(volume, self._storage):
            text = f"cryptdevice={value} stays: nothing tells the UUID of {device}"
            self.said[Severity.DOWNGRADE, text] = (
                f"the virtual machine needs a bus on which {device} is called so"
            )
            return value
        return f"UUID={volume.uuid}{colon}{rest}"

    def _resume(self, value: str) -> str | None:
        volume = resolve(value, self._storage)
        is_named = value.startswith("/dev/") or "=" in value  # else a device number, or nonsense
        if is_named and not is_perhaps_there(value, self._storage):
            self.said[Severity.NOTE, f"resume={value} is removed: that is not copied"] = ""
            return None
        if not depends_on_bus(value):
            return value
        spec = self._with_udev(volume) if volume else None
        if spec is None:
            text = f"resume={value} stays: nothing tells a UUID for it"
            self.said[Severity.WARNING, text] = "at worst the boot waits for it"
        return spec or value


def _root_without_initrd(volume: Volume, entry: Entry, storage: Storage) -> str | None:
    """The kernel itself knows PARTUUID=: of GPT since 2.6.37, of MBR since 3.8."""
    found = _VERSION.search(entry.kernel)
    version = tuple(int(part or 0) for part in found.groups()) if found else (0,)
    since = (2, 6, 37) if _GPT_ID.fullmatch(volume.part_uuid) else (3, 8)
    others = [each for each in storage if each.part_uuid == volume.part_uuid]
    if volume.part_uuid and len(others) == 1 and version >= since:
        return f"PARTUUID={volume.part_uuid}"
    return None


def _without_needed(value: str) -> str | None:
    """A blacklist without what the virtual machine's disks and network need."""
    names = value.split(",")
    kept = [name for name in names if not _NEEDED.fullmatch(name.replace("-", "_"))]
    return ",".join(kept) or (None if names != kept else value)


class LoaderDefaults:
    """F06: what the next grub-mkconfig or grub-pc upgrade would do wrong."""

    key = "F06-loader-defaults"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context  # the command lines there are F04's
        for path in ("/etc/default/grub", *draft.glob("/etc/default/grub.d/*.cfg")):
            if draft.is_file(path):
                text = draft.text(path)
                draft.write(
                    path,
                    map_lines(text, lambda line: None if _NAMES_ONLY.match(line) else line),
                )
        yield from self._debconf(draft)

    def _debconf(self, draft: Draft) -> Iterator[Finding]:
        if not draft.is_file(_DEBCONF):
            return
        entry = re.search(
            r"^Name: grub-pc/install_devices\n(?:.+\n){0,20}?Value: *(/dev/\S.*)$",
            draft.text(_DEBCONF),
            re.MULTILINE,
        )
        if entry and any(depends_on_bus(each.strip(" ,")) for each in entry[1].split()):
            yield Finding(
                self.key,
                Severity.WARNING,
                f"the next upgrade of grub-pc will ask where it belongs: {entry[1]} will be gone",
                "in the virtual machine: dpkg-reconfigure grub-pc",
            )


class ResumeDevice:
    """F07: the swap space in which initramfs-tools looks for a hibernated system."""

    key = "F07-resume"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        if not draft.is_file(_RESUME):
            return
        old = draft.text(_RESUME)
        value = value_of(old, "RESUME") or ""
        if value in ("", "none", "auto"):
            return
        storage = known_storage(draft, context.guest, context.storage)
        volume = resolve(value, storage)
        if not is_perhaps_there(value, storage):
            new = "none"
            yield Finding(self.key, Severity.NOTE, f"{_RESUME}: {value} is not copied: none then")
        elif not depends_on_bus(value):
            return
        elif volume is not None and has_unique_uuid(volume, storage):
            new = f"UUID={volume.uuid}"
        else:
            text = f"{_RESUME} names {value}: nothing tells a UUID for it"
            yield Finding(self.key, Severity.WARNING, text, "at worst the boot waits for it")
            return
        draft.write(_RESUME, with_value(old, "RESUME", new))
        # Where the initramfs has its copy.
        draft.want_in_initramfs("/conf/conf.d/resume", draft.read(_RESUME))


FIXUPS: tuple[Fixup, ...] = (KernelRoot(), LoaderDefaults(), ResumeDevice())
