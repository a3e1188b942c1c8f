"""Software RAID: arrays are put together by their superblocks, wherever the members are.

Fake RAID (IMSM, DDF) is copied as the assembled volume: its own data stay behind the volume's end.
"""

import re
from collections.abc import Iterator

from p2v_sync.device.storage import Storage
from p2v_sync.fixup.boot_entries import change_command_lines
from p2v_sync.fixup.boot_formats import Entry
from p2v_sync.fixup.command_line import CommandLine
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Family, Generator, Guest
from p2v_sync.fixup.lines import comment_out, map_lines
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity

_CONFIGS = ("/etc/mdadm/mdadm.conf", "/etc/mdadm.conf")
_FAKE = re.compile(r"metadata=(imsm|ddf)\b|\bcontainer=", re.IGNORECASE)
_FAKE_MEMBERS = ("isw_raid_member", "ddf_raid_member")
_UUID = re.compile(r"\bUUID=([0-9A-Fa-f:]+)", re.IGNORECASE)
_DEVICES = re.compile(r"(?<![ \t])[ \t]++devices=\S+", re.IGNORECASE)


class Md:
    """Arrays are looked for on all disks; volumes of fake RAID are plain disks now."""

    key = "F10-md"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        is_plain = _fake_raid_is_plain(context.storage)
        fakes = set[str]()
        for path in _CONFIGS:
            text = draft.text_or_empty(path)
            if not text or (path == _CONFIGS[1] and draft.is_link(path)):
                continue
            new = map_lines(text, lambda line: _changed(line, fakes, is_plain=is_plain))
            if new != text:
                draft.write(path, new)
            if comment_out("") in new:
                draft.want_in_initramfs(path, new.encode("latin-1"))
        if is_plain and (fakes or _has_commented_fakes(draft)):
            yield from self._parameters(draft, context.guest, fakes)

    def _parameters(self, draft: Draft, guest: Guest, fakes: set[str]) -> Iterator[Finding]:
        wanted = _no_fake_raid(guest)

        def change(line: CommandLine, _entry: Entry) -> None:
            line.map("rd.md.uuid", lambda value: None if _plain(value) in fakes else value)
            for token in wanted:
                line.add(token)

        problems = change_command_lines(draft, guest, change)
        yield from (Finding(self.key, Severity.WARNING, text) for text in problems)
        text = "the RAID of the mainboard's firmware is one plain disk in the virtual machine"
        yield Finding(self.key, Severity.NOTE, text)


def _changed(line: str, fakes: set[str], *, is_plain: bool) -> str | None:
    words = line.split()
    keyword = words[0].upper() if words else ""
    if keyword == "DEVICE" and any(word.startswith("/dev/") for word in words[1:]):
        return f"{comment_out(line)}\nDEVICE partitions"
    if keyword != "ARRAY":
        return line
    if is_plain and _FAKE.search(line):
        fakes.update(map(_plain, _UUID.findall(line)))
        return None
    # Without its UUID nothing else would say which array it is.
    if _DEVICES.search(line) and _UUID.search(line):
        return f"{comment_out(line)}\n{_DEVICES.sub('', line)}"
    return line


def _fake_raid_is_plain(storage: Storage) -> bool:
    kinds = {volume.kind for volume in storage}
    return storage.is_complete and not kinds.intersection(_FAKE_MEMBERS)


def _has_commented_fakes(draft: Draft) -> bool:
    text = "\n".join(map(draft.text_or_empty, _CONFIGS))
    return any(_FAKE.search(line) for line in re.findall(r"^#p2v# (.*)$", text, re.MULTILINE))


def _plain(uuid: str) -> str:
    return re.sub(r"[^0-9a-f]", "", uuid.lower())


def _no_fake_raid(guest: Guest) -> tuple[str, ...]:
    """dracut.cmdline(7)."""
    if guest.generator is not Generator.DRACUT:
        return ()
    is_first = guest.distribution.family is Family.RHEL and guest.distribution.major == 6
    return ("rd_NO_DM", "rd_NO_MDIMSM") if is_first else ("rd.md.imsm=0", "rd.dm=0")


FIXUPS: tuple[Fixup, ...] = (Md(),)
