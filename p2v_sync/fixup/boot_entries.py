"""The kernel command lines of all boot entries, and of the settings that later ones are made from.

One change is applied to all of them.  Never to LILO, which has its own in a map of sectors, and to
unified kernel images, which carry theirs inside.
"""

import posixpath
from collections.abc import Callable, Iterator

from p2v_sync.errors import FixupError
from p2v_sync.fixup import boot_formats
from p2v_sync.fixup.boot_formats import GRUBENV_SIZE, Document, Entry, Part, Site
from p2v_sync.fixup.command_line import CommandLine
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import BootLoader, Guest, LoaderKind

Change = Callable[[CommandLine, Entry], None]

_OF_CONFIG = {
    LoaderKind.GRUB2: boot_formats.grub_cfg,
    LoaderKind.GRUB2_BLS: boot_formats.grub_cfg,
    LoaderKind.GRUB_LEGACY: boot_formats.menu_lst,
    LoaderKind.EXTLINUX: boot_formats.extlinux,
    LoaderKind.ELILO: boot_formats.elilo,
}

_GRUB_DEFAULTS = "/etc/default/grub"
_GRUB_DROP_INS = "/etc/default/grub.d/*.cfg"
_GRUB_NAME = "GRUB_CMDLINE_LINUX"
_PLAIN = ("/etc/kernel/cmdline", "/etc/kernel/cmdline.d/*.conf")
_ALPINE = "/etc/update-extlinux.conf"
_CUSTOM = ("/etc/grub.d/4*_custom",)  # entries that grub-mkconfig copies as they are
# Each variable is a command line of its own.
_WHOLE = {
    "/etc/sysconfig/bootloader": ("DEFAULT_APPEND", "FAILSAFE_APPEND", "XEN_KERNEL_APPEND"),
    _ALPINE: ("default_kernel_opts",),
}


def change_command_lines(draft: Draft, guest: Guest, change: Change) -> list[str]:
    """Let ``change`` edit each command line of ``guest``, and the settings behind them.

    ``change`` must be idempotent; it may see a piece that several entries share more than once.
    Returns what could not be changed, a line each; what it raises goes through.
    """
    files = _Files(draft)
    for entry, parts in _sites(files, guest):
        line = _line(parts)
        change(line, entry)
        for part, text in zip(parts, line.parts(), strict=True):
            part.text = text
    files.write()
    return files.problems


def command_lines(draft: Draft, guest: Guest) -> list[tuple[Entry, CommandLine]]:
    """All of them, to be looked at."""
    return [(entry, _line(parts)) for entry, parts in _sites(_Files(draft), guest)]


def _line(parts: list[Part]) -> CommandLine:
    return CommandLine(*(part.text for part in parts), dialects=[part.dialect for part in parts])


class _Files:
    """The files that were read, each once."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.problems: list[str] = []
        self._documents: dict[str, Document | None] = {}

    def open(self, path: str) -> Document | None:
        """None when there is none, or it can't be read."""
        if path not in self._documents:
            self._documents[path] = self._read(path)
        return self._documents[path]

    def is_open(self, path: str) -> bool:
        return path in self._documents

    def _read(self, path: str) -> Document | None:
        try:
            return Document(path, self.draft.text(path))
        except FileNotFoundError:
            return None
        except FixupError as error:
            self.problems.append(f"{error.message}: its command lines stay as they are")
            return None

    def glob(self, pattern: str) -> Iterator[Document]:
        """Those that are not open yet."""
        for path in self.draft.glob(pattern):
            document = None if self.is_open(path) else self.open(path)
            if document is not None:
                yield document

    def write(self) -> None:
        for document in self._documents.values():
            if document is None or (text := document.text()) == document.original:
                continue
            if posixpath.basename(document.path) == "grubenv":
                padded = boot_formats.padded_grubenv(text)
                if padded is None:
                    self.problems.append(
                        f"{document.path} has no room: it is {GRUBENV_SIZE} bytes, always"
                    )
                    continue
                text = padded
            self.draft.write(document.path, text)


def _sites(files: _Files, guest: Guest) -> Iterator[Site]:
    for loader in guest.boot_loaders:
        parser = _OF_CONFIG.get(loader.kind)
        if parser is not None and loader.config and not files.is_open(loader.config):
            document = files.open(loader.config)
            yield from parser(document) if document is not None else ()
        if loader.entries:
            yield from _bls(files, loader)
        if loader.kind in (LoaderKind.GRUB2, LoaderKind.GRUB2_BLS):
            for pattern in (f"{posixpath.dirname(loader.config)}/custom.cfg", *_CUSTOM):
                for document in files.glob(pattern):
                    yield from boot_formats.grub_cfg(document)
    yield from _defaults(files)


def _bls(files: _Files, loader: BootLoader) -> Iterator[Site]:
    kernelopts = _kernelopts(files, loader)
    for path in loader.entries:
        document = None if files.is_open(path) else files.open(path)
        if document is not None:
            yield from boot_formats.bls(document, kernelopts)


def _kernelopts(files: _Files, loader: BootLoader) -> Part | None:
    if loader.kind is not LoaderKind.GRUB2_BLS:
        return None
    for path in (f"{posixpath.dirname(loader.config)}/grubenv", "/boot/grub2/grubenv"):
        document = None if files.is_open(path) else files.open(path)
        part = boot_formats.grubenv(document) if document is not None else None
        if part is not None:
            return part
    return None


def _defaults(files: _Files) -> Iterator[Site]:
    yield from _grub_defaults(files, _GRUB_DEFAULTS, _GRUB_DROP_INS)
    if not files.draft.is_link("/etc/sysconfig/grub"):  # the same file, where it is new enough
        yield from _grub_defaults(files, "/etc/sysconfig/grub", "")
    for path, names in _WHOLE.items():
        document = files.open(path)
        for _, part in boot_formats.settings(document, names.__contains__) if document else ():
            yield Entry(path, is_default=True), [part]
    document = files.open(_ALPINE)
    for _, part in boot_formats.settings(document, "root".__eq__, "root=") if document else ():
        yield Entry(_ALPINE, is_default=True), [part, boot_formats.nowhere()]
    for pattern in _PLAIN:
        for document in files.glob(pattern):
            yield from boot_formats.plain(document)


def _grub_defaults(files: _Files, main: str, drop_ins: str) -> Iterator[Site]:
    """All variables together: what is in one need not be added to another."""
    document = files.open(main)
    if document is None:
        return
    documents = [document, *(files.glob(drop_ins) if drop_ins else ())]
    found = [
        (name, part)
        for each in documents
        for name, part in boot_formats.settings(each, lambda name: name.startswith(_GRUB_NAME))
    ]
    if found:
        found.sort(key=lambda each: _fitness(*each))
        yield Entry(main, is_default=True), [part for _, part in found]


def _fitness(name: str, part: Part) -> int:
    """New tokens go to what is fittest: used for all entries, and not replaced by a drop-in."""
    if name == _GRUB_NAME:
        return 2 if _GRUB_NAME in part.text else 3
    return 1 if name == f"{_GRUB_NAME}_DEFAULT" else 0
