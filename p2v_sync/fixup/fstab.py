"""F01, F02: what /etc/fstab and mount units name by its bus, and what is not there."""

import re
from collections.abc import Generator, Iterator
from typing import NamedTuple

from p2v_sync.device.storage import Storage, Volume
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.evidence import known_storage
from p2v_sync.fixup.guest import Family, Guest, Init
from p2v_sync.fixup.lines import (
    body,
    comment_out,
    ending,
    fields,
    is_comment,
    replace_field,
    split_lines,
)
from p2v_sync.fixup.names import (
    depends_on_bus,
    has_unique_label,
    has_unique_uuid,
    is_perhaps_there,
    lasting_spec,
    resolve,
)
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity

FSTAB = "/etc/fstab"
_UNITS = ("/etc/systemd/system/*.mount", "/etc/systemd/system/*.swap")
_VITAL = ("/", "/usr", "/boot")
_NEVER_NOFAIL = (*_VITAL, "/var", "/boot/efi", "/efi")
_REMOVABLE = ("iso9660", "udf", "udf,iso9660", "iso9660,udf")
_OCTAL = re.compile(r"\\([0-7]{3})")
_WHAT = re.compile(r"^(What[ \t]*=[ \t]*)(\S+)([ \t]*\r?)$", re.MULTILINE)
_EXT = ("ext2", "ext3", "ext4", "ext4dev")


class FstabLine(NamedTuple):
    """One mount or swap space of fstab, unescaped."""

    spec: str
    point: str
    kind: str
    options: tuple[str, ...]

    @classmethod
    def parse(cls, line: str) -> "FstabLine | None":
        """None for comments and what is no line of fstab."""
        said = fields(line)
        if is_comment(line) or len(said) < 3:
            return None
        spec, point, kind = (_unescape(each) for each in said[:3])
        tag, equals, value = spec.partition("=")
        spec = f"{tag}={value.strip(_QUOTES)}" if equals else spec.strip(_QUOTES)
        return cls(spec, point, kind, tuple(said[3].split(",")) if len(said) > 3 else ())

    @property
    def is_removable(self) -> bool:
        return self.kind in _REMOVABLE or bool(re.match(r"/dev/(fd\d|sr\d|cdrom|dvd)", self.spec))

    @property
    def is_device(self) -> bool:
        """Of this machine, and not made up."""
        by_tag = self.spec.partition("=")[0].upper() in ("UUID", "LABEL", "PARTUUID", "PARTLABEL")
        is_named = by_tag or (self.spec.startswith("/dev/") and not self.is_removable)
        made_up = self.spec.startswith(("/dev/shm", "/dev/loop", "/dev/ram", "/dev/zram"))
        is_local = not {"_netdev", "bind", "rbind"} & {*self.options}
        return is_named and is_local and not made_up


_QUOTES = "\"'"


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def matches_kind(volume: Volume, kind: str) -> bool:
    """Whether fstab's type can be the volume's: else it is another one than it was."""
    same = {volume.kind, kind} <= {*_EXT} or volume.kind == kind
    return same or kind == "auto" or not volume.kind or (volume.kind, kind) == ("ntfs", "ntfs-3g")


class FstabNames:
    """F01: names that a bus gives become UUIDs."""

    key = "F01-fstab"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        storage = known_storage(draft, context.guest, context.storage)
        if draft.exists(FSTAB):
            lines = []
            for line in split_lines(draft.text(FSTAB)):
                lines.append((yield from self._line(line, storage, context.guest)))
            draft.write(FSTAB, "".join(lines))
        for pattern in _UNITS:
            for path in draft.glob(pattern):
                yield from self._unit(draft, path, storage)

    def _line(self, line: str, storage: Storage, guest: Guest) -> Generator[Finding, None, str]:
        said = FstabLine.parse(line)
        if said is None or said.is_removable or not depends_on_bus(said.spec):
            return line
        volume = resolve(said.spec, storage)
        if volume is None:
            if said.point in _VITAL or not storage.is_complete:
                yield self._finding(said, "nothing tells which volume that is")
            return line  # else F02's
        if not matches_kind(volume, said.kind):
            yield self._finding(said, f"what is called so now is no {said.kind} ({volume.kind})")
            return line
        spec = _spec_for(volume, said, storage, guest)
        if spec is None:
            yield self._finding(said, "it has no UUID or label of its own")
            return line
        return replace_field(line, 0, spec)

    def _finding(self, said: FstabLine, why: str) -> Finding:
        text = f"{FSTAB} mounts {said.spec} on {said.point}: {why}"
        if said.kind == "swap":
            text = f"{FSTAB} has {said.spec} for swap: {why}"
        if said.point in _VITAL:
            hint = f"the virtual machine needs a bus on which {said.spec} is called so"
            return Finding(self.key, Severity.DOWNGRADE, text, hint)
        return Finding(self.key, Severity.WARNING, text, "name it by UUID when the machine runs")

    def _unit(self, draft: Draft, path: str, storage: Storage) -> Iterator[Finding]:
        text = draft.text(path)
        found = _WHAT.search(text)
        if found is None or not depends_on_bus(found[2]):
            return
        volume = resolve(found[2], storage)
        if volume is None or not has_unique_uuid(volume, storage):
            why = "nothing tells its UUID"
        elif path.endswith(".swap"):
            why = "a swap unit is named after its device, so it is left as it is"
        else:
            start, end = found.span(2)
            # A path, because only that makes old systemd wait for the device.
            draft.write(path, f"{text[:start]}/dev/disk/by-uuid/{volume.uuid}{text[end:]}")
            return
        yield Finding(self.key, Severity.WARNING, f"{path} is for {found[2]}: {why}")


def _spec_for(volume: Volume, said: FstabLine, storage: Storage, guest: Guest) -> str | None:
    if said.kind == "swap" and _is_old(guest):  # swapon(8) before util-linux 2.13
        return f"LABEL={volume.label}" if has_unique_label(volume, storage) else None
    spec = lasting_spec(volume, storage)
    if spec is not None and spec.startswith("PARTUUID=") and guest.init is not Init.SYSTEMD:
        return None  # mount(8) since util-linux 2.21
    return spec


def _is_old(guest: Guest) -> bool:
    """RHEL 4, Debian 3 and their like."""
    of = guest.distribution
    newest = {Family.RHEL: 4, Family.DEBIAN: 3, Family.SUSE: 9}.get(of.family, 0)
    return 0 < of.major <= newest


class AbsentDevices:
    """F02: what is not among the copied disks must not keep the guest from booting."""

    key = "F02-nofail"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        if not context.storage.is_complete or not draft.exists(FSTAB):
            return
        lines = []
        encrypted = _names_of_crypttab(draft)
        for line in split_lines(draft.text(FSTAB)):
            said = FstabLine.parse(line)
            if said is None or said.spec in encrypted or not _is_absent(said, context.storage):
                lines.append(line)
                continue
            lines.append((yield from self._line(line, said, draft, context.guest)))
        draft.write(FSTAB, "".join(lines))

    def _line(
        self, line: str, said: FstabLine, draft: Draft, guest: Guest
    ) -> Generator[Finding, None, str]:
        where = "swap" if said.kind == "swap" else said.point
        text = f"{FSTAB}: {said.spec} ({where}) is not among the copied disks"
        if said.point in _NEVER_NOFAIL:
            hint = "copy the disk that it is on, too"
            yield Finding(self.key, Severity.WARNING, text, hint)
            return line
        yield Finding(self.key, Severity.WARNING, text, "the guest is told to start without it")
        options = _nofail(draft, guest)
        if options is None:
            return comment_out(line)
        if len(fields(line)) == 3:
            return f"{body(line).rstrip()} defaults,{options}{ending(line)}"
        # "defaults" may stay: it says nothing.
        return replace_field(line, 3, ",".join([*said.options, options]))


def _names_of_crypttab(draft: Draft) -> set[str]:
    if not draft.is_file("/etc/crypttab"):
        return set()
    lines = split_lines(draft.text("/etc/crypttab"))
    return {f"/dev/mapper/{fields(line)[0]}" for line in lines if not is_comment(line)}


def _is_absent(said: FstabLine, storage: Storage) -> bool:
    if {"noauto", "nofail", "nobootwait"} & {*said.options} or not said.is_device:
        return False
    return not is_perhaps_there(said.spec, storage)


def _nofail(draft: Draft, guest: Guest) -> str | None:
    """The options that say so to this guest; None: it knows none."""
    if guest.init is Init.SYSTEMD:
        return "nofail,x-systemd.device-timeout=10s"
    if draft.exists("/sbin/mountall"):  # Ubuntu's upstart
        return "nobootwait"
    newest = {Family.RHEL: 5, Family.DEBIAN: 5, Family.SUSE: 10}.get(guest.distribution.family, 0)
    # nofail: util-linux 2.16
    return None if 0 < guest.distribution.major <= newest else "nofail"


FIXUPS: tuple[Fixup, ...] = (FstabNames(), AbsentDevices())
