"""Where kernel command lines stand in the files of boot loaders.  Pure.

A file is cut into text that nobody touches and Parts, which are (pieces of) command lines.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from p2v_sync.fixup.command_line import Dialect
from p2v_sync.fixup.lines import split_lines
from p2v_sync.fixup.shell_file import assignments

GRUBENV_SIZE = 1024
_GRUBENV_HEAD = "# GRUB Environment Block\n"


@dataclass(frozen=True)
class Entry:
    """What a command line is for.  ``kernel``: as the loader names it, '' in defaults."""

    file: str
    kernel: str = ""
    initrds: tuple[str, ...] = ()
    is_default: bool = False  # a setting from which later entries are made
    is_rescue: bool = False

    @property
    def has_initrd(self) -> bool:
        """Defaults are taken to be for kernels that have one."""
        return bool(self.initrds) or self.is_default


@dataclass(eq=False)
class Part:
    """A piece of a file that is (part of) a command line."""

    text: str
    dialect: Dialect = Dialect.KERNEL
    lead: str = ""  # goes before a text that has no blank in front
    quote: str = ""  # goes around a text that has blanks
    implied: str = ""  # what the text begins with and the file does not say

    def render(self) -> str:
        text = self.text.removeprefix(self.implied)
        quote = self.quote if any(each in text.strip() for each in " \t") else ""
        lead = self.lead if text and not text[0].isspace() else ""
        return f"{lead}{quote}{text}{quote}"


@dataclass(eq=False)
class Document:
    """A file of a boot loader."""

    path: str
    original: str
    _cuts: list[tuple[int, int, Part]] = field(default_factory=list)

    def cut(self, start: int, end: int, part: Part) -> Part:
        """Let ``part`` stand for that range; no two ranges overlap."""
        self._cuts.append((start, end, part))
        return part

    def text(self) -> str:
        """The file as it is with the parts as they are."""
        pieces, at = [], 0
        for start, end, part in sorted(self._cuts, key=lambda cut: cut[:2]):
            pieces += [self.original[at:start], part.render()]
            at = end
        return "".join(pieces) + self.original[at:]


Site = tuple[Entry, list[Part]]  # added tokens go to the last part


def nowhere() -> Part:
    """What is added to a site goes here when its parts have room for one value only."""
    return Part("")


# GRUB 2

_GRUB_COMMAND = re.compile(
    r"[ \t]*(?P<command>linux(?:16|efi)?|multiboot2?|module2?|initrd(?:16|efi)?|menuentry|submenu)"
    r"(?=[ \t])(?P<rest>.*)",
    re.DOTALL,
)
_GRUB_UNQUOTED_END = re.compile(r"(?:\"(?:[^\"\\]|\\.)*\"?|'[^']*'?|\\.|[^\"'\\;])*", re.DOTALL)
_KERNELOPTS = re.compile(
    r'^[ \t]*set[ \t]+(?:default_)?kernelopts="(?P<value>(?:[^"\\]|\\.)*)"', re.MULTILINE
)
_IS_RESCUE = re.compile(r"rescue|recovery|fallback|single", re.IGNORECASE)


@dataclass
class _Command:
    """A line of a loader's file, with where its arguments are in the text."""

    name: str
    start: int  # of the arguments
    arguments: str

    def split(self, dialect: Dialect) -> tuple[str, int]:
        """``(the first argument, where what is behind it begins)``; options are passed over."""
        for found in dialect.value.finditer(self.arguments):
            if not found[0].startswith("--"):
                return found[0], self.start + found.end()
        return "", self.start + len(self.arguments)

    @property
    def end(self) -> int:
        return self.start + len(self.arguments)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """``(start, line without its ending)``; a backslash at the end continues a line."""
    at = start = 0
    for line in split_lines(text):
        at += len(line)
        if not line.rstrip("\r\n").endswith("\\") or at == len(text):
            yield start, text[start:at].rstrip("\r\n")
            start = at


def _grub_commands(text: str) -> Iterator[_Command]:
    for start, line in _logical_lines(text):
        found = _GRUB_COMMAND.match(line)
        if found:
            until = _GRUB_UNQUOTED_END.match(found["rest"])
            arguments = until[0] if until else ""
            yield _Command(found["command"], start + found.start("rest"), arguments)


def grub_cfg(document: Document) -> Iterator[Site]:
    """``linux`` lines, ``module`` lines of Xen, and ``set kernelopts``, of a grub.cfg."""
    yield from _grub_entries(document, list(_grub_commands(document.original)))
    # What BLS entries use when grubenv has nothing.
    for found in _KERNELOPTS.finditer(document.original):
        part = document.cut(*found.span("value"), Part(found["value"], Dialect.SHELL))
        yield Entry(document.path, is_default=True), [part]


def _grub_entries(document: Document, commands: list[_Command]) -> Iterator[Site]:
    title = ""
    for number, command in enumerate(commands):
        before = commands[number - 1].name if number else ""
        if command.name in ("menuentry", "submenu"):
            title = command.arguments
        elif _starts_linux(command, before):
            path, start = command.split(Dialect.SHELL)
            text = document.original[start : command.end]
            part = document.cut(start, command.end, Part(text, Dialect.SHELL, lead=" "))
            initrds = _initrds(commands, number + 1, Dialect.SHELL)
            yield Entry(document.path, path, initrds, is_rescue=_rescue(title, path)), [part]


def _starts_linux(command: _Command, before: str) -> bool:
    """A ``module`` is the kernel when it follows the hypervisor, else its initrd."""
    if command.name.startswith("module"):
        return before.startswith("multiboot")
    return command.name.startswith("linux")


def _initrds(commands: list[_Command], at: int, dialect: Dialect) -> tuple[str, ...]:
    """Those that follow each other from ``at`` on."""
    found: list[str] = []
    while at < len(commands) and commands[at].name.startswith(("initrd", "module")):
        command, at = commands[at], at + 1
        found += [each for each in dialect.value.findall(command.arguments) if each[:2] != "--"]
    return tuple(found)


def _rescue(*texts: str) -> bool:
    return any(_IS_RESCUE.search(text) for text in texts)


# Boot Loader Specification: GRUB of RHEL 8 and later, systemd-boot

_BLS_LINE = re.compile(r"^(title|linux|initrd|options)[ \t]+(.*)$", re.MULTILINE)


def bls(document: Document, kernelopts: Part | None) -> Iterator[Site]:
    """``options`` lines of an entry.  ``kernelopts``: what its ``$kernelopts`` stands for."""
    found = list(_BLS_LINE.finditer(document.original))
    said = {
        key: [each[2].strip() for each in found if each[1] == key] for key in ("linux", "initrd")
    }
    if not said["linux"]:
        return
    parts = [document.cut(*each.span(2), Part(each[2])) for each in found if each[1] == "options"]
    if kernelopts is not None and any("$kernelopts" in each.text for each in parts):
        parts.append(kernelopts)
    if parts:
        initrds = tuple(path for line in said["initrd"] for path in line.split())
        is_rescue = _rescue(document.path, *(each[2] for each in found if each[1] == "title"))
        yield Entry(document.path, said["linux"][-1], initrds, is_rescue=is_rescue), parts


def grubenv(document: Document) -> Part | None:
    """The value of ``kernelopts`` in GRUB's environment block."""
    if not document.original.startswith(_GRUBENV_HEAD):
        return None
    found = re.search(r"^kernelopts=(.*)$", document.original, re.MULTILINE)
    return document.cut(*found.span(1), Part(found[1])) if found else None


def padded_grubenv(text: str) -> str | None:
    """The block at the size that GRUB demands, which writes it in place; None: no room."""
    text = text.rstrip("#")
    return text.ljust(GRUBENV_SIZE, "#") if len(text) <= GRUBENV_SIZE else None


# GRUB of old

_LEGACY_COMMAND = re.compile(
    r"[ \t]*(?P<command>title|kernel|initrd|module)(?:[ \t]*=[ \t]*|[ \t]+)(?P<rest>.*)"
)
_DEBIAN_KOPT = re.compile(r"^# (?:xen)?kopt(?:_[^=\s]*)?=(.*?)\r?$", re.MULTILINE)
_HYPERVISOR = re.compile(r"/xen[^/]*\.gz$|/xen[^/]*$")


def menu_lst(document: Document) -> Iterator[Site]:
    """``kernel`` lines (``module`` below Xen), and Debian's ``# kopt=``, which makes new ones."""
    for found in _DEBIAN_KOPT.finditer(document.original):
        yield Entry(document.path, is_default=True), [document.cut(*found.span(1), Part(found[1]))]
    commands = list(_legacy_commands(document.original))
    title = ""
    for number, command in enumerate(commands):
        if command.name == "title":
            title = command.arguments
        elif _is_legacy_linux(command, commands[number - 1] if number else None):
            path, start = command.split(Dialect.KERNEL)
            text = document.original[start : command.end]
            part = document.cut(start, command.end, Part(text, lead=" "))
            initrds = _initrds(commands, number + 1, Dialect.KERNEL)
            yield Entry(document.path, path, initrds, is_rescue=_rescue(title, path)), [part]


def _legacy_commands(text: str) -> Iterator[_Command]:
    for start, line in _logical_lines(text):
        found = _LEGACY_COMMAND.match(line)
        if found:
            yield _Command(found["command"], start + found.start("rest"), found["rest"])


def _is_legacy_linux(command: _Command, before: _Command | None) -> bool:
    if command.name == "kernel":
        return not _HYPERVISOR.search(command.split(Dialect.KERNEL)[0])
    if command.name != "module" or before is None or before.name != "kernel":
        return False
    return bool(_HYPERVISOR.search(before.split(Dialect.KERNEL)[0]))


# SYSLINUX, EXTLINUX, U-Boot

_SYSLINUX_LINE = re.compile(
    r"^[ \t]*(label|kernel|linux|initrd|append)[ \t]+(.*)$", re.MULTILINE | re.IGNORECASE
)


def extlinux(document: Document) -> Iterator[Site]:
    """``append`` lines; one before all labels is for those that have none."""
    sections: list[list[re.Match[str]]] = [[]]
    for found in _SYSLINUX_LINE.finditer(document.original):
        if found[1].lower() == "label":
            sections.append([])
        sections[-1].append(found)
    for number, section in enumerate(sections):
        said = {found[1].lower(): found for found in section}
        if "append" not in said:
            continue
        line = said["append"]
        part = document.cut(*line.span(2), Part(line[2]))
        kernel = said.get("linux") or said.get("kernel")
        inside = re.findall(r"(?:^|\s)initrd=(\S+)", line[2])
        initrds = [*inside, *([said["initrd"][2].strip()] if "initrd" in said else [])]
        label = said["label"][2] if "label" in said else ""
        yield (
            Entry(
                document.path,
                kernel[2].strip() if kernel else "",
                tuple(initrds),
                is_default=number == 0,
                is_rescue=_rescue(label),
            ),
            [part],
        )


# ELILO

_ELILO_LINE = re.compile(
    r"^[ \t]*(?:image[ \t]*=[ \t]*(?P<image>\S+)|initrd[ \t]*=[ \t]*(?P<initrd>\S+)"
    r'|append[ \t]*=[ \t]*"(?P<append>[^"\n]*)"|root[ \t]*=[ \t]*"?(?P<root>[^\s"]+))',
    re.MULTILINE,
)


def elilo(document: Document) -> Iterator[Site]:
    """``append`` and ``root`` of each image, and those above all images."""
    sections: list[list[re.Match[str]]] = [[]]
    for found in _ELILO_LINE.finditer(document.original):
        if found["image"]:
            sections.append([])
        sections[-1].append(found)
    for number, section in enumerate(sections):
        parts = [
            # A setting of its own, which becomes root= on the command line.
            document.cut(*found.span("root"), Part(f"root={found['root']}", implied="root="))
            for found in section
            if found["root"]
        ]
        parts += [
            document.cut(*found.span("append"), Part(found["append"]))
            for found in section
            if found["append"] is not None
        ]
        if parts and all(part.implied for part in parts):
            parts.append(nowhere())
        said = {found.lastgroup: found for found in section}
        if parts:
            kernel = said["image"]["image"] if "image" in said else ""
            initrds = (said["initrd"]["initrd"],) if "initrd" in said else ()
            yield Entry(document.path, kernel, initrds, is_default=number == 0), parts


# Settings from which entries are made


def plain(document: Document) -> Iterator[Site]:
    """/etc/kernel/cmdline: the whole file; lines that begin with # are comments."""
    found = re.search(r"^(?!#)[^\r\n]*\S[^\r\n]*", document.original, re.MULTILINE)
    if found:
        yield Entry(document.path, is_default=True), [document.cut(*found.span(), Part(found[0]))]


def settings(
    document: Document, is_one: Callable[[str], bool], implied: str = ""
) -> Iterator[tuple[str, Part]]:
    """``(name, value)`` of shell variables for which ``is_one(name)``."""
    for found in assignments(document.original):
        if is_one(found.name):
            quote = "" if found.is_quoted else '"'
            part = Part(implied + found.value, Dialect.SHELL, quote=quote, implied=implied)
            yield found.name, document.cut(found.start, found.end, part)
