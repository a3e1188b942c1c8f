"""``p2v-sync inspect``: what would be converted, and what is in the way."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from p2v_sync.cli.ask import volume_keys
from p2v_sync.cli.options import check_guest, disks_argument, key_files_option, root_option
from p2v_sync.device.attributes import clean
from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.guest import BootLoader, Guest, Kernel
from p2v_sync.fixup.inspect.blockers import blockers
from p2v_sync.fixup.tree import Tree
from p2v_sync.guest_disks import Look, inspect_disks, look_at_directory, overlays_over

_WIDTH = 15  # of the first column

Row = tuple[str, str]


def to_json(look: Look) -> dict[str, Any]:
    """What ``fixup plan --facts`` reads."""
    return {
        "guest": look.guest.to_json(),
        "storage": look.storage.to_json(),
        "machine": look.machine.to_json(),
        "problems": list(look.problems),
        "blockers": list(blockers(look.guest)),
    }


@click.command("inspect")
@disks_argument
@root_option
@key_files_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def inspect(
    disks: tuple[Path, ...], root: Path | None, key_files: tuple[Path, ...], as_json: bool
) -> None:
    """Show what would be converted.  Nothing is written or run."""
    check_guest(disks, root)
    if root is not None:
        with Tree(root) as tree:
            look = look_at_directory(tree, NOTHING_KNOWN, Machine())
    else:
        keys = volume_keys(key_files)
        with overlays_over(disks) as overlays:
            look = inspect_disks(overlays, keys)
    if as_json:
        click.echo(json.dumps(to_json(look)))
        return
    for line in format_guest(look.guest):
        click.echo(line)
    for problem in look.problems:
        click.echo(f"{'problem':<{_WIDTH}} {clean(problem.encode(errors='surrogateescape'))}")


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
