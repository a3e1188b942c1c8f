"""What GRUB 2 and GRUB of old (0.97) would boot by default."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from p2v_sync.fixup.guest import BootEntry
from p2v_sync.fixup.inspect.locate import Locator
from p2v_sync.fixup.inspect.reader import Reader, shown
from p2v_sync.units import MIB

_CONFIG_MOST = 8 * MIB
_ENTRY = re.compile(r"(menuentry|submenu)\s+('[^']*'|\"[^\"]*\"|\S+)(.*)")
_ID = re.compile(r"(?:--id[ =]|menuentry_id_option\s+)\s*(?:'([^']*)'|\"([^\"]*)\"|(\S+))")
_DEFAULT = re.compile(r"^\s*set\s+default=[\"']?([^\"'\n]*)", re.MULTILINE)
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_LEGACY = re.compile(r"(\w+)(?:\s*=|\s)(.*)")
_SET = re.compile(r"^\s*set\s+(\w+)=\"([^\"\n]*)\"", re.MULTILINE)


@dataclass
class _Item:
    """A menu entry with its commands, or a submenu with its items."""

    title: str = ""
    id: str = ""
    is_menu: bool = False
    commands: list[str] = field(default_factory=list)
    items: list["_Item"] = field(default_factory=list)


def grubenv(reader: Reader, config: str) -> Mapping[str, str]:
    """The environment block beside a configuration, or in its usual places."""
    beside = f"{config.rpartition('/')[0]}/grubenv"
    path = reader.first_file("/boot/grub2/grubenv", "/boot/grub/grubenv", beside)
    pairs = (line.partition("=") for line in reader.lines(path)) if path else ()
    return {key: value for key, separator, value in pairs if separator}


def variables(reader: Reader, config: str) -> Mapping[str, str]:
    """What entries of the Boot Loader Specification may refer to ($kernelopts)."""
    text = reader.text(config, _CONFIG_MOST)
    return {**dict(_SET.findall(text)), **grubenv(reader, config)}


def expanded(text: str, values: Mapping[str, str]) -> str:
    """``$kernelopts quiet`` → what the kernel is given.  Unknown ones are empty."""
    return " ".join(_VARIABLE.sub(lambda match: values.get(match[1], ""), text).split())


def default_of(reader: Reader, config: str) -> str:
    """What ``set default`` comes to: an index, an id or a title, or several with > between."""
    said = _DEFAULT.findall(reader.text(config, _CONFIG_MOST))
    chosen: str = said[-1].strip() if said else "0"
    if "saved_entry" in chosen:
        chosen = grubenv(reader, config).get("saved_entry", "0")
    return chosen if chosen and "$" not in chosen else "0"


def grub2_entry(reader: Reader, config: str, locator: Locator) -> BootEntry | None:
    """The default entry of a grub.cfg; None when there is none at all."""
    items = _menu(reader.text(config, _CONFIG_MOST))
    item = _Item()
    for part in f"{default_of(reader, config)}>0".split(">"):
        if not items:
            break
        item = _chosen(items, part.strip())
        items = item.items if item.is_menu else []
    if not item.title or item.is_menu:
        return None
    entry = _entry(item, config, locator)
    return replace(entry, options=expanded(entry.options, variables(reader, config)))


def _chosen(items: list[_Item], wanted: str) -> _Item:
    """The first item when what was wanted is not there, as GRUB does it."""
    for item in items:
        if wanted in (item.id, item.title):
            return item
    number = int(wanted) if wanted.isdecimal() and len(wanted) < 9 else 0
    return items[number if number < len(items) else 0]


def _menu(text: str) -> list[_Item]:
    """The items of the outermost menu.  Braces end their lines, as grub-mkconfig writes them."""
    top = _Item(is_menu=True)
    stack = [top]
    for line in text.splitlines():
        stripped = line.strip()
        if stripped == "}":
            del stack[max(1, len(stack) - 1) :]
        elif match := _ENTRY.match(stripped):
            item = _item_of(match)
            stack[-1].items.append(item)
            stack.append(item)
        elif stripped.endswith("{"):
            stack.append(_Item())  # a function
        elif stripped and not stripped.startswith("#"):
            stack[-1].commands.append(stripped)
    return top.items


def _item_of(match: re.Match[str]) -> _Item:
    found = _ID.search(match[3])
    id_ = next(filter(None, found.groups()), "") if found else ""
    return _Item(match[2].strip("'\""), id_, is_menu=match[1] == "submenu")


def _words(commands: list[str]) -> Iterator[tuple[str, str, str]]:
    """Command, its file, the rest; without options of the command itself."""
    for command in commands:
        name, *words = command.split() or [""]
        while words and words[0].startswith("--"):
            words.pop(0)
        if words:
            yield name, words[0], " ".join(words[1:])


def _entry(item: _Item, config: str, locator: Locator) -> BootEntry:
    kernel, initramfs, options, hypervisor = "", "", "", ""
    modules = []
    for name, file, rest in _words(item.commands):
        if name in ("linux", "linux16", "linuxefi"):
            kernel, options = file, rest
        elif name in ("initrd", "initrd16", "initrdefi"):
            initramfs = f"{file} {rest}".split()[-1]  # microcode comes before it
        elif name in ("multiboot", "multiboot2", "kernel"):
            hypervisor = file
        elif name in ("module", "module2"):
            modules.append((file, rest))
    if hypervisor and modules:
        (kernel, options), *others = modules
        initramfs = others[-1][0] if others else ""
    return BootEntry(
        shown(item.id),
        shown(item.title),
        locator.find(kernel, config),
        locator.find(initramfs, config),
        options,
        locator.find(hypervisor, config),
    )


def legacy_entry(reader: Reader, config: str, locator: Locator) -> BootEntry | None:
    """The default entry of a menu.lst; None when there is none at all."""
    default, items = "0", list[_Item]()
    for line in reader.lines(config):
        name, rest = _legacy_words(line)
        if name == "title":
            items.append(_Item(rest))
        elif items:
            items[-1].commands.append(f"{name} {rest}")
        elif name == "default":
            default = rest
    if not items:
        return None
    if default == "saved":
        default = next(reader.lines("/boot/grub/default"), "0")
    return _legacy(_chosen(items, default), config, locator)


def _legacy_words(line: str) -> tuple[str, str]:
    """``default=0`` and ``default 0`` are the same."""
    match = _LEGACY.match(line)
    return (match[1].lower(), match[2].strip()) if match else ("", "")


def _legacy(item: _Item, config: str, locator: Locator) -> BootEntry:
    """``kernel`` is the kernel, or Xen, which has the kernel as its first module."""
    has_modules = any(command.startswith("module ") for command in item.commands)
    if not has_modules:
        item.commands = [
            f"linux {command.removeprefix('kernel ')}" if command.startswith("kernel ") else command
            for command in item.commands
        ]
    return _entry(item, config, locator)
