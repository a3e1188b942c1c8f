"""``p2v-sync inspect``: what would be converted, and what is in the way."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from p2v_sync.device.attributes import clean
from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN, Storage
from p2v_sync.errors import FixupError
from p2v_sync.fixup import inspect as inspection
from p2v_sync.fixup.guest import BootLoader, Guest, Kernel
from p2v_sync.fixup.inspect.blockers import blockers, is_system
from p2v_sync.fixup.tree import Tree

_WIDTH = 15  # of the first column

Row = tuple[str, str]


@dataclass(frozen=True)
class Inspection:
    """All that is known before anything is changed."""

    guest: Guest
    storage: Storage
    machine: Machine

    def to_json(self) -> dict[str, Any]:
        return {
            "guest": self.guest.to_json(),
            "storage": self.storage.to_json(),
            "machine": self.machine.to_json(),
            "blockers": list(blockers(self.guest)),
        }


def inspect_directory(root: Path) -> Inspection:
    """Raises FixupError when there is no system."""
    machine = Machine()
    with Tree(root) as tree:
        guest = inspection.inspect(tree, NOTHING_KNOWN, machine)
    if not is_system(guest):
        raise FixupError(
            f"there is no system in {root}: no release file, no fstab, no kernel, no Windows",
            hint="name the directory where the guest's root file system is",
        )
    return Inspection(guest, NOTHING_KNOWN, machine)


@click.command("inspect")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="A directory with the guest's files.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def inspect(root: Path, as_json: bool) -> None:
    """Show what would be converted.  Nothing is written or run."""
    found = inspect_directory(root)
    for line in [json.dumps(found.to_json())] if as_json else format_guest(found.guest):
        click.echo(line)


def format_guest(guest: Guest) -> Iterator[str]:
    """Two columns; a label stands once beside all that it is for."""
    last = ""
    for label, text in _rows(guest):
        shown = clean(text.encode(errors="surrogateescape"))
        yield f"{label if label != last else '':<{_WIDTH}} {shown}".rstrip()
        last = label


def _rows(guest: Guest) -> Iterator[Row]:
    yield from _windows(guest) if guest.windows else _linux(guest)
    yield from _each("problem", guest.problems)
    yield from _each("in the way", blockers(guest))


def _each(label: str, texts: Iterable[str]) -> Iterator[Row]:
    return ((label, text) for text in texts)


def _windows(guest: Guest) -> Iterator[Row]:
    found = guest.windows
    if found is not None:
        yield "system", f"{found.name} {found.edition}".strip()
        yield "version", found.version or "unknown"
        yield "architecture", guest.architecture or "unknown"
        yield "firmware", _firmware(guest)
        yield "clock", found.clock or "unknown"
        yield "disk drivers", ", ".join(found.storage_drivers) or "unknown"
        yield "BitLocker", "yes" if found.has_bitlocker else "no"


def _firmware(guest: Guest) -> str:
    return guest.firmware.value.upper() if guest.firmware else "unknown"


def _linux(guest: Guest) -> Iterator[Row]:
    yield "system", guest.distribution.name or "unknown"
    yield "family", guest.distribution.family
    yield "architecture", guest.architecture or "unknown"
    yield "host name", guest.hostname or "-"
    yield "firmware", _firmware(guest)
    yield from _each("boot loader", map(_boot_loader, guest.boot_loaders))
    if entry := guest.default_entry:
        yield "boots", entry.title or entry.id
        yield "command line", entry.options or "-"
    yield from _each("kernel", map(_kernel, guest.kernels))
    yield "initramfs by", guest.generator
    yield "init", guest.init
    for mount in guest.mounts:
        device = f" = {mount.device}" if mount.device else ""
        yield "mount", f"{mount.point}  {mount.kind}  {mount.spec}{device}"
    yield "network", ", ".join(guest.networks) or "-"
    for interface in guest.interfaces:
        name = interface.name or "any name"
        yield "interface", f"{name}  {interface.mac or '-'}  {interface.config}"
    yield "SELinux", guest.selinux or "-"
    yield "storage", ", ".join(guest.uses) or "plain"


def _boot_loader(loader: BootLoader) -> str:
    entries = f"  (entries: {len(loader.entries)})" if loader.entries else ""
    return f"{loader.kind}  {loader.config}{entries}"


def _kernel(kernel: Kernel) -> str:
    marks = ((kernel.is_default, "default"), (kernel.is_rescue, "rescue"))
    said = ", ".join(mark for is_so, mark in marks if is_so)
    files = " + ".join(filter(None, (kernel.image, kernel.initramfs)))
    return f"{kernel.version}{f' ({said})' if said else ''}  {files}"
