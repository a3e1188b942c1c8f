"""Several paths to a disk are one in the virtual machine."""

from collections.abc import Iterator

from p2v_sync.fixup.boot_entries import change_command_lines
from p2v_sync.fixup.boot_formats import Entry
from p2v_sync.fixup.command_line import CommandLine
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Family, Generator, Guest
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity
from p2v_sync.fixup.services import disable, is_started, services

_DAEMONS = ("multipathd", "multipath-tools", "multipath-tools-boot", "boot.multipath")


class Multipath:
    """Neither the initramfs nor the system puts maps over disks that have one path."""

    key = "F09-multipath"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        guest = context.guest
        present = [name for name in services(draft, guest) if name in _DAEMONS]
        is_used = any(is_started(draft, guest, name) for name in present)
        if not is_used and "multipath" not in guest.uses:
            return
        parameter = _parameter(guest)

        def change(line: CommandLine, _entry: Entry) -> None:
            if parameter:
                name, equals, value = parameter.partition("=")
                line.set(name, value if equals else None)

        problems = change_command_lines(draft, guest, change)
        yield from (Finding(self.key, Severity.WARNING, text) for text in problems)
        for name in present:
            disable(draft, guest, name)
        yield Finding(self.key, Severity.NOTE, "multipath is off: each disk has one path now")


def _parameter(guest: Guest) -> str:
    """dracut.cmdline(7); initramfs-tools' script of multipath-tools-boot."""
    if guest.generator is Generator.DRACUT:
        is_first = guest.distribution.family is Family.RHEL and guest.distribution.major == 6
        return "rd_NO_MULTIPATH" if is_first else "rd.multipath=0"
    return "multipath=off" if guest.generator is Generator.INITRAMFS_TOOLS else ""


FIXUPS: tuple[Fixup, ...] = (Multipath(),)
