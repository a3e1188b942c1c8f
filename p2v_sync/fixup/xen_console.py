"""The console that a paravirtual guest of Xen has: hvc0, and nothing else.

What is described for Xen is an HVM guest, which has a screen and a serial port, too; hvc0 is there
as well, and alone once somebody makes a PV or PVH guest of it.
"""

from collections.abc import Iterator

from p2v_sync.errors import FixupError
from p2v_sync.fixup.boot_entries import change_command_lines
from p2v_sync.fixup.boot_formats import Entry
from p2v_sync.fixup.command_line import CommandLine
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Guest
from p2v_sync.fixup.lines import is_comment, split_lines, with_block
from p2v_sync.fixup.plan import Context, Finding, Fixup, Hypervisor, Severity
from p2v_sync.fixup.services import runs_systemd

_CONSOLE = "hvc0"
_INITTAB = "/etc/inittab"
_GETTYS = ("/sbin/agetty", "/sbin/getty")
_JOB, _OTHER_JOB = "/etc/init/hvc0.conf", "/etc/init/tty1.conf"


class XenConsole:
    """Kernel messages and a login.  systemd has a login there by itself (getty-generator(8))."""

    key = "F35-xen-console"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        if context.target.hypervisor is not Hypervisor.XEN or not _has_driver(draft, context.guest):
            return
        problems = change_command_lines(draft, context.guest, _with_console)
        yield from (Finding(self.key, Severity.WARNING, text) for text in problems)
        if not runs_systemd(draft, context.guest):
            self._inittab(draft)
            _upstart(draft)

    def _inittab(self, draft: Draft) -> None:
        """The id is the name of the console: busybox takes it for that."""
        text = draft.text_or_empty(_INITTAB)
        rest = with_block(text, self.key, [])
        has_login = any(_CONSOLE in line for line in split_lines(rest) if not is_comment(line))
        getty = next(filter(draft.exists, _GETTYS), None)
        if text and getty and not has_login:
            login = f"{_CONSOLE}:2345:respawn:{getty} -L 9600 {_CONSOLE} vt100"
            draft.write(_INITTAB, with_block(text, self.key, [login]))


def _has_driver(draft: Draft, guest: Guest) -> bool:
    kernel = guest.default_kernel
    try:
        text = draft.text(kernel.config) if kernel is not None and kernel.config else ""
    except (FileNotFoundError, FixupError):
        return False
    return "\nCONFIG_HVC_XEN=y" in text


def _with_console(line: CommandLine, _entry: Entry) -> None:
    """Without any, a PV kernel takes hvc0 by itself, and an HVM one the screen, as it should."""
    if "console" in line:
        line.add(f"console={_CONSOLE}")


def _upstart(draft: Draft) -> None:
    """Red Hat's jobs see to it themselves; those of Debian's family are one for each console."""
    text = draft.text_or_empty(_OTHER_JOB)
    if text and not draft.exists(_JOB):
        draft.write(_JOB, text.replace("tty1", _CONSOLE))


FIXUPS: tuple[Fixup, ...] = (XenConsole(),)
