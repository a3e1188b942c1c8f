"""The serial console is on the virtual machine's only serial port.

A service processor's console is often ttyS1.  Where that is missing and named last, /dev/console
is nothing, and old systems stop there; see the kernel's admin-guide/serial-console.
"""

import re
from collections.abc import Iterator

from p2v_sync.fixup.boot_entries import change_command_lines
from p2v_sync.fixup.boot_formats import Entry
from p2v_sync.fixup.command_line import CommandLine
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.lines import body, map_lines, split_lines, with_block
from p2v_sync.fixup.plan import Context, Finding, Fixup, Hypervisor, Severity

_HIGH_PORT = re.compile(r"ttyS[1-9]\d*")
_PORT = "ttyS0"
_UPSTART = "/etc/init"
_WANTS = "/etc/systemd/system/getty.target.wants"
_INITTAB = "/etc/inittab"
_SECURETTY = "/etc/securetty"


class SerialConsole:
    """Kernel messages and logins of any serial port are on the first one."""

    key = "F35-console"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        ports = set[str]()

        def change(line: CommandLine, _entry: Entry) -> None:
            for name in ("console", "earlyprintk"):
                line.map(name, lambda value: _on_first_port(value, ports))

        problems = change_command_lines(draft, context.guest, change)
        yield from (Finding(self.key, Severity.WARNING, text) for text in problems)
        self._inittab(draft)
        self._upstart(draft)
        self._systemd(draft)
        self._securetty(draft, context.target.hypervisor)
        if ports:
            names = ", ".join(sorted(ports))
            text = f"the serial console on {names} is on the virtual machine's first port now"
            yield Finding(self.key, Severity.NOTE, text, "give it a serial port")

    @staticmethod
    def _inittab(draft: Draft) -> None:
        text = draft.text_or_empty(_INITTAB)
        if not text:
            return
        lines = [body(line) for line in split_lines(text)]
        has_login = any(re.search(rf"\b{_PORT}\b", line) for line in lines if _is_active(line))

        def change(line: str) -> str | None:
            nonlocal has_login
            if not _is_active(line) or not _HIGH_PORT.search(line):
                return line
            if has_login:
                return None
            has_login = True
            return _HIGH_PORT.sub(_PORT, line)

        new = map_lines(text, change)
        if new != text:
            draft.write(_INITTAB, new)

    @staticmethod
    def _upstart(draft: Draft) -> None:
        """A job for each port: ttyS1.conf, and the like."""
        for path in draft.glob(f"{_UPSTART}/*ttyS[1-9].conf"):
            to = _HIGH_PORT.sub(_PORT, path)
            text = draft.text_or_empty(path)
            if draft.exists(to):
                draft.rename(path, f"{path}.p2v")
            elif text:
                draft.rename(path, to)
                draft.write(to, _HIGH_PORT.sub(_PORT, text))

    @staticmethod
    def _systemd(draft: Draft) -> None:
        """A login that was switched on by hand would be waited for."""
        for path in draft.glob(f"{_WANTS}/serial-getty@ttyS[1-9].service"):
            to = _HIGH_PORT.sub(_PORT, path)
            if draft.is_link(path):
                target = draft.readlink(path)
                draft.remove(path)
                if not draft.is_link(to) and not draft.exists(to):
                    draft.symlink(to, _HIGH_PORT.sub(_PORT, target))

    def _securetty(self, draft: Draft, hypervisor: Hypervisor) -> None:
        """Where root may log in at all: also on the virtual machine's consoles."""
        text = draft.text_or_empty(_SECURETTY)
        if not text.strip():
            return  # nowhere, and that is meant
        rest = with_block(text, self.key, [])
        there = {line.strip() for line in rest.splitlines()}
        wanted = [_PORT, *(["hvc0", "xvc0"] if hypervisor is Hypervisor.XEN else ["hvc0"])]
        missing = [name for name in wanted if name not in there]
        new = with_block(text, self.key, missing)
        if new != text:
            draft.write(_SECURETTY, new)


def _on_first_port(value: str, seen: set[str]) -> str:
    """``ttyS1,115200n8`` → ``ttyS0,115200n8``; also ``serial,ttyS1`` of earlyprintk."""
    seen.update(_HIGH_PORT.findall(value))
    return _HIGH_PORT.sub(_PORT, value)


def _is_active(line: str) -> bool:
    return line.count(":") >= 3 and not line.lstrip().startswith("#")


FIXUPS: tuple[Fixup, ...] = (SerialConsole(),)
