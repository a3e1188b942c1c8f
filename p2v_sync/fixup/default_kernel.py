"""The kernel that starts by default is not one for Xen's first domain.

Such a machine was a virtual machine's host, or ran RHEL 5's kernel-xen.  Entries stay, only another
one is the default.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from p2v_sync.fixup.boot_formats import padded_grubenv
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import BootLoader, LoaderKind
from p2v_sync.fixup.lines import body, split_lines
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity
from p2v_sync.fixup.shell_file import value_of, with_value

_HYPERVISOR = re.compile(r"/xen[^/\s]*(\.gz|\.efi)?(\s|$)")
_LEGACY_DEFAULT = re.compile(
    r"^(?P<start>[ \t]*default(?:[ \t]*+=[ \t]*+|[ \t]++))(?P<value>\S+)", re.MULTILINE
)
_ENTRY = re.compile(
    r"""^\s*(?P<kind>menuentry|submenu)\s+(?P<quote>['"])(?P<title>.*?)(?P=quote)"""
)
_ID = re.compile(r"""\$menuentry_id_option\s+['"]([^'"]+)['"]""")
_GRUB2_DEFAULT = re.compile(
    r'^(?P<start>[ \t]*set[ \t]+default=")(?P<value>[^"$]*)(?=")', re.MULTILINE
)
_SAVED = re.compile(r"^saved_entry=(.*)$", re.MULTILINE)
_IS_RESCUE = re.compile(r"rescue|recovery|fallback|single", re.IGNORECASE)
_DEFAULTS = "/etc/default/grub"


@dataclass
class _Entry:
    """``names``: what a default may call it: number, title, id, each with those above it."""

    title: str
    names: tuple[str, ...] = ()
    lines: list[str] = field(default_factory=list)

    @property
    def starts_xen(self) -> bool:
        """By ``kernel`` of GRUB legacy, multiboot and chainloader of GRUB 2."""
        words = ("kernel", "multiboot", "multiboot2", "xen_hypervisor", "chainloader")
        return any(
            line.split()[:1] and line.split()[0] in words and _HYPERVISOR.search(line)
            for line in self.lines
        )

    @property
    def is_usual(self) -> bool:
        """Xen's entries have modules, no initrd."""
        commands = {line.split()[0] for line in self.lines if line.split()}
        has_initrd = any(each.startswith("initrd") for each in commands)
        return has_initrd and not _IS_RESCUE.search(self.title)


class DefaultKernel:
    """Linux itself starts, where Xen did."""

    key = "F34-default-kernel"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        for loader in context.guest.boot_loaders:
            text = draft.text_or_empty(loader.config) if loader.config else ""
            if loader.kind is LoaderKind.GRUB_LEGACY:
                yield from self._legacy(draft, loader, text)
            elif loader.kind in (LoaderKind.GRUB2, LoaderKind.GRUB2_BLS):
                yield from self._grub2(draft, loader, text)

    def _findings(self, chosen: _Entry | None, old: _Entry) -> Finding:
        if chosen is None:
            return Finding(
                self.key,
                Severity.WARNING,
                f"all boot entries start Xen, as {old.title} does",
                "install a kernel without Xen, or let the host nest virtual machines",
            )
        text = f"{chosen.title} starts by default, no longer Xen ({old.title})"
        return Finding(self.key, Severity.NOTE, text)

    def _legacy(self, draft: Draft, loader: BootLoader, text: str) -> Iterator[Finding]:
        entries = _legacy_entries(text)
        found = _LEGACY_DEFAULT.search(text)
        name = found["value"] if found else "0"
        old = next((each for each in entries if name in each.names), None)
        if old is None or not old.starts_xen:
            return
        chosen = next((each for each in entries if each.is_usual), None)
        if chosen and found:
            value = chosen.names[0]
            draft.write(loader.config, text[: found.start("value")] + value + text[found.end() :])
        elif chosen:
            draft.write(loader.config, f"default={chosen.names[0]}\n{text}")
        kernels = draft.text_or_empty("/etc/sysconfig/kernel")
        if chosen and (value_of(kernels, "DEFAULTKERNEL") or "") == "kernel-xen":
            draft.write("/etc/sysconfig/kernel", with_value(kernels, "DEFAULTKERNEL", "kernel"))
        yield self._findings(chosen, old)

    def _grub2(self, draft: Draft, loader: BootLoader, text: str) -> Iterator[Finding]:
        entries = _grub2_entries(text)
        grubenv = f"{loader.config.rpartition('/')[0]}/grubenv"
        environment = draft.text_or_empty(grubenv)
        saved = _SAVED.search(environment)
        names = [found["value"] for found in _GRUB2_DEFAULT.finditer(text)]
        names += [saved[1]] if saved and "${saved_entry}" in text else []
        old = next((e for name in names for e in entries if name in e.names and e.starts_xen), None)
        if old is None:
            return
        chosen = next((each for each in entries if each.is_usual), None)
        if chosen:
            name = chosen.names[-1]
            new = _GRUB2_DEFAULT.sub(
                lambda each: (
                    each["start"] + (name if each["value"] in old.names else each["value"])
                ),
                text,
            )
            draft.write(loader.config, new)
            if saved and saved[1] in old.names:
                changed = environment[: saved.start(1)] + name + environment[saved.end(1) :]
                draft.write(grubenv, padded_grubenv(changed) or environment)
            self._persist(draft, name)
        yield self._findings(chosen, old)

    @staticmethod
    def _persist(draft: Draft, name: str) -> None:
        """Also when the guest makes its grub.cfg again; numbers may mean other entries then."""
        defaults = draft.text_or_empty(_DEFAULTS)
        if defaults and value_of(defaults, "GRUB_DEFAULT") != "saved":
            draft.write(_DEFAULTS, with_value(defaults, "GRUB_DEFAULT", name))


def _legacy_entries(text: str) -> list[_Entry]:
    entries = list[_Entry]()
    for line in map(body, split_lines(text)):
        words = line.split(None, 1)
        if words[:1] == ["title"]:
            entries.append(_Entry("".join(words[1:]), (str(len(entries)),)))
        elif entries:
            entries[-1].lines.append(line)
    return entries


def _grub2_entries(text: str) -> list[_Entry]:
    """Entries of submenus, too; names that stand above others come first, joined by ``>``."""
    entries = list[_Entry]()
    above: list[tuple[str, ...]] = []  # the names of the submenus that are open
    blocks = list[str]()  # what each open brace belongs to
    counts = [0]
    for line in map(body, split_lines(text)):
        found = _ENTRY.match(line)
        if found:
            own = _names(line, found["title"], counts[-1])
            counts[-1] += 1
            names = _joined(above, own)
            if found["kind"] == "menuentry":
                entries.append(_Entry(found["title"], names))
            else:
                above.append(own)
                counts.append(0)
            blocks.append(found["kind"])
        elif line.strip() == "}" and blocks:
            if blocks.pop() == "submenu":
                above.pop()
                counts.pop()
        elif line.rstrip().endswith("{"):
            blocks.append("")
        elif "menuentry" in blocks:
            entries[-1].lines.append(line)
    return entries


def _names(line: str, title: str, number: int) -> tuple[str, ...]:
    found = _ID.search(line)
    return (str(number), title, found[1]) if found else (str(number), title)


def _joined(above: list[tuple[str, ...]], own: tuple[str, ...]) -> tuple[str, ...]:
    """The same kind of name on each level: numbers, titles, and ids where all have them."""
    levels = [*above, own]
    kinds = min(len(each) for each in levels)
    return tuple(">".join(level[kind] for level in levels) for kind in range(kinds))


FIXUPS: tuple[Fixup, ...] = (DefaultKernel(),)
