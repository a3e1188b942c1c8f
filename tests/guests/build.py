r"""Guests as one text file each: what is in it is easier to see, and to change, than a tree.

A line ``=== PATH …`` begins a file, and its text follows.  In place of text:

    === PATH/                    an empty directory
    === PATH -> TARGET           a symbolic link
    === PATH empty               an empty file; ``mkdir`` a directory above is made by itself
    === PATH elf MACHINE         a program (x86_64, i686, aarch64)
    === PATH bzimage VERSION     a kernel
    === PATH uki VERSION OPTIONS a unified kernel image
    === PATH pe MACHINE          a program of Windows
    === PATH hive                a registry hive: lines ``KEY|NAME=VALUE``, 'dword:N' for a number
    === PATH bytes TEXT          TEXT itself, with Python's escapes

``=== storage`` and ``=== machine`` have the JSON of Storage and Machine.
"""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN, Storage
from p2v_sync.fixup.guest import Guest
from p2v_sync.fixup.inspect import inspect
from p2v_sync.fixup.tree import Tree

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.guest"))


@dataclass(frozen=True)
class Built:
    """A guest's tree, and what is known of the machine it is from."""

    root: Path
    storage: Storage
    machine: Machine

    def inspected(self) -> Guest:
        with Tree(self.root) as tree:
            return inspect(tree, self.storage, self.machine)


def build(name: str, root: Path) -> Built:
    """Write the guest of that name below ``root``."""
    return write((HERE / f"{name}.guest").read_text(), root)


def write(text: str, root: Path) -> Built:
    storage, machine = NOTHING_KNOWN, Machine()
    root.mkdir(parents=True, exist_ok=True)
    for record in text.split("\n=== ")[0 if text.startswith("=== ") else 1 :]:
        head, _, body = record.removeprefix("=== ").partition("\n")
        if head == "storage":
            storage = Storage.from_json(json.loads(body))
        elif head == "machine":
            machine = Machine.from_json(json.loads(body))
        else:
            _write_file(root, head, f"{body}\n" if body and not body.endswith("\n") else body)
    return Built(root, storage, machine)


def _write_file(root: Path, head: str, body: str) -> None:
    name, _, rest = head.partition(" ")
    path = root / name.lstrip("/")
    if name.endswith("/"):
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, _, argument = rest.partition(" ")
    if kind == "->":
        os.symlink(argument, path)
        return
    makers: dict[str, Callable[[], bytes]] = {
        "": lambda: body.encode(),
        "empty": lambda: b"",
        "elf": lambda: elf(argument),
        "bzimage": lambda: bzimage(argument),
        "uki": lambda: unified(*argument.split(" ", 1)),
        "pe": lambda: pe(argument),
        "hive": lambda: hive(body),
        "bytes": lambda: argument.encode().decode("unicode_escape").encode("latin-1"),
    }
    path.write_bytes(makers[kind]())


def elf(machine: str) -> bytes:
    """The first bytes of a program."""
    number, width = {"x86_64": (62, 2), "i686": (3, 1), "aarch64": (183, 2)}[machine]
    return b"\x7fELF" + bytes([width, 1, 1]) + bytes(9) + struct.pack("<HH", 2, number) + bytes(44)


def bzimage(version: str) -> bytes:
    """A kernel's set-up header (Documentation/arch/x86/boot.rst), and its version."""
    image = bytearray(0x400)
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)  # + 0x200
    text = f"{version} (builder@host) #1 SMP\0".encode()
    image[0x300 : 0x300 + len(text)] = text
    return bytes(image)


def pe(machine: str, sections: dict[str, bytes] | None = None) -> bytes:
    """A program for Windows or UEFI."""
    number = {"x86_64": 0x8664, "i686": 0x14C}[machine]
    held = sections or {}
    header = b"MZ" + bytes(58) + struct.pack("<I", 64)
    header += b"PE\0\0" + struct.pack("<HHIIIHH", number, len(held), 0, 0, 0, 0, 0)
    at = len(header) + 40 * len(held)
    table, contents = b"", b""
    for name, data in held.items():
        table += struct.pack("<8sIIII16x", name.encode(), len(data), 0, len(data), at)
        at += len(data)
        contents += data
    return header + table + contents


def unified(version: str, options: str = "") -> bytes:
    return pe(
        "x86_64",
        {".linux": bzimage(version), ".uname": version.encode(), ".cmdline": options.encode()},
    )


# A registry hive


@dataclass
class _Key:
    keys: dict[str, "_Key"] = field(default_factory=dict)
    values: dict[str, str | int] = field(default_factory=dict)


def hive(text: str) -> bytes:
    """From lines ``KEY|NAME=VALUE``."""
    root = _Key()
    for line in text.splitlines():
        path, _, value = line.partition("|")
        key = root
        for part in filter(None, path.split("\\")):
            key = key.keys.setdefault(part, _Key())
        name, _, said = value.partition("=")
        if name:
            key.values[name] = int(said[6:]) if said.startswith("dword:") else said
    cells = _Cells()
    at = cells.key("ROOT", root)
    return b"regf" + bytes(0x20) + struct.pack("<I", at) + bytes(0x1000 - 0x28) + cells.data


class _Cells:
    def __init__(self) -> None:
        self.data = b"hbin" + bytes(28)

    def add(self, content: bytes) -> int:
        at = len(self.data)
        padded = content + bytes(-(len(content) + 4) % 8)
        self.data += struct.pack("<i", -(len(padded) + 4)) + padded
        return at

    def key(self, name: str, key: _Key) -> int:
        children = [self.key(*each) for each in sorted(key.keys.items())]
        pairs = b"".join(struct.pack("<II", at, 0) for at in children)
        listed = self.add(b"lf" + struct.pack("<H", len(children)) + pairs) if children else 0
        values = [self.value(*each) for each in key.values.items()]
        value_list = self.add(struct.pack(f"<{len(values)}I", *values)) if values else 0
        head = bytearray(76)
        struct.pack_into("<2sH", head, 0, b"nk", 0x20)
        struct.pack_into("<I4xI", head, 0x14, len(children), listed)
        struct.pack_into("<II", head, 0x24, len(values), value_list)
        struct.pack_into("<H", head, 0x48, len(name))
        return self.add(bytes(head) + name.encode())

    def value(self, name: str, value: str | int) -> int:
        if isinstance(value, int):
            length, data, kind = 4 | 0x80000000, struct.pack("<I", value), 4
        else:
            raw = f"{value}\0".encode("utf-16-le")
            length, data, kind = len(raw), struct.pack("<I", self.add(raw)), 1
        head = struct.pack("<2sHI4sIHH", b"vk", len(name), length, data, kind, 1, 0)
        return self.add(head + name.encode())


def golden(name: str) -> Any:
    """What inspection said when a person last looked at it."""
    return json.loads((HERE / f"{name}.json").read_text())


def as_golden(guest: Guest) -> str:
    return json.dumps(guest.to_json(), indent=1) + "\n"
