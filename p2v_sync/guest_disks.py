"""The guest on its overlays: found, mounted, inspected, planned for and fixed up.

Composition of ``overlay`` (devices) and ``fixup`` (files); the disks themselves are never mounted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from p2v_sync.device.machine import Machine
from p2v_sync.device.machine_facts import read_machine
from p2v_sync.device.storage import Storage
from p2v_sync.errors import FixupError, OverlayError
from p2v_sync.fixup import apply as application
from p2v_sync.fixup.catalogue import FIXUPS
from p2v_sync.fixup.crypttab import CRYPTTAB, with_opened_names
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Guest
from p2v_sync.fixup.identity import believed_clock
from p2v_sync.fixup.initramfs import regenerate
from p2v_sync.fixup.initramfs.drivers import states
from p2v_sync.fixup.inspect import inspect
from p2v_sync.fixup.inspect.blockers import is_system
from p2v_sync.fixup.inspect.reader import Reader
from p2v_sync.fixup.mounting import mount_guest
from p2v_sync.fixup.plan import Context, Plan, Severity, Target
from p2v_sync.fixup.roots import find_roots, volume_name
from p2v_sync.fixup.runner import make_plan
from p2v_sync.fixup.tree import Tree
from p2v_sync.overlay.luks import VARIABLE, Keys
from p2v_sync.overlay.mounting import OverlayMounter
from p2v_sync.overlay.snapshot import (
    MOUNTS,
    Overlay,
    check_untouched,
    check_usable,
    create_overlays,
    list_overlays,
    remove_overlays,
)
from p2v_sync.overlay.stack import assembled


@dataclass(frozen=True)
class Look:
    """What was seen of a guest.  ``problems``: of its disks and mounts, a line each."""

    guest: Guest
    storage: Storage
    machine: Machine
    problems: tuple[str, ...] = ()

    def context(self, target: Target) -> Context:
        return Context(self.guest, self.storage, self.machine, target)


@contextmanager
def overlays_over(disks: Sequence[Path]) -> Iterator[list[Overlay]]:
    """Those that the disks have; else new ones, which are removed after the ``with``.

    Raises OverlayError and what ``create_overlays`` raises.
    """
    names = [str(disk) for disk in disks]
    try:
        there = list_overlays(names)
    except OverlayError:
        there = []
    if there:
        yield there
        return
    made = create_overlays(disks)
    try:
        yield made
    finally:
        remove_overlays([overlay.disk for overlay in made])


def _completed(guest: Guest, tree: Tree) -> Guest:
    """With the drivers of each kernel, by its modules and initramfs, and the clock's base."""
    draft = Draft(tree)
    kernels = tuple(
        replace(kernel, drivers=states(draft, kernel, guest)[0]) for kernel in guest.kernels
    )
    return replace(guest, kernels=kernels, rtc=guest.rtc or believed_clock(draft))


def look_at_directory(tree: Tree, storage: Storage, machine: Machine) -> Look:
    """A guest whose files are below one directory.

    Raises FixupError when there is no system, or this kernel has no openat2(2).
    """
    guest = inspect(tree, storage, machine)
    if not is_system(guest):
        raise FixupError(
            f"there is no system in {tree.root}: no release file, no fstab, no kernel, no Windows",
            hint="name the directory where the guest's root file system is",
        )
    return Look(_completed(guest, tree), storage, machine)


@contextmanager
def mounted(
    overlays: Sequence[Overlay], keys: Keys, *, writable: bool
) -> Iterator[tuple[Tree, Look]]:
    """The guest of these disks, mounted inside the ``with`` and taken down after it.

    ``keys``: for what is encrypted.  Raises FixupError when there is none or its root can't be
    mounted, OverlayError, CommandError.
    """
    machine = read_machine(disks={overlay.disk for overlay in overlays})
    ids = {disk.name: [f"disk/{each}" for each in disk.ids] for disk in machine.disks}
    point = MOUNTS / "guest"
    point.mkdir(parents=True, exist_ok=True)
    with assembled(overlays, ids=ids, keys=keys) as assembly:
        mounter = OverlayMounter(assembly.storage)
        try:
            storage = assembly.storage
            roots = find_roots(storage, mounter, point)
            problems = [*assembly.problems, *roots.problems]
            if roots.chosen is None:
                raise FixupError(
                    "no operating system was found on "
                    + ", ".join(str(overlay.origin) for overlay in overlays)
                    + "".join(f"; {problem}" for problem in problems[:3]),
                    hint=_hint_without_system(storage),
                )
            for other in roots.others:
                where = volume_name(other.volume)
                problems.append(f"another system, on {where}, is copied and not converted")
            problems += mount_guest(roots.chosen, storage, mounter, point, writable=writable)
            with Tree(point) as tree:
                storage = with_opened_names(storage, Reader(tree).text(CRYPTTAB))
                look = look_at_directory(tree, storage, machine)
                yield tree, replace(look, problems=tuple(problems))
        except BaseException:
            with suppress(FixupError):  # what went wrong counts
                mounter.unmount_all()
            raise
        mounter.unmount_all()


def _hint_without_system(storage: Storage) -> str:
    """What to do when no system was found."""
    hint = "the disks can be copied all the same, with --no-fixups"
    if any(volume.kind == "crypto_LUKS" for volume in storage):
        return f"give the key of what is encrypted, with --key-file FILE or {VARIABLE}; {hint}"
    return hint


def plan_for(tree: Tree, look: Look, target: Target) -> Plan:
    """What all fix-ups would do.  Writes nothing."""
    return make_plan(tree, look.context(target), FIXUPS)


def check_possible(plan: Plan) -> None:
    """Raises FixupError for a guest that must not be touched."""
    for finding in plan.findings:
        if finding.severity is Severity.FATAL:
            hint = finding.hint or "it can be copied all the same, with --no-fixups"
            raise FixupError(finding.text, hint=hint)


def inspect_disks(overlays: Sequence[Overlay], keys: Keys) -> Look:
    """Look at the guest; nothing is written, not even to the overlays."""
    with mounted(overlays, keys, writable=False) as (_, look):
        return look


def plan_disks(overlays: Sequence[Overlay], target: Target, keys: Keys) -> tuple[Look, Plan]:
    """Look, and plan; nothing is written, not even to the overlays."""
    with mounted(overlays, keys, writable=False) as (tree, look):
        plan = plan_for(tree, look, target)
        return look, regenerate.announced(Draft(tree), look.context(target), plan)


def fix_disks(
    overlays: Sequence[Overlay], target: Target, keys: Keys, run: str
) -> tuple[Look, Plan]:
    """Plan and apply on the overlays.  ``run``: what the guest's record calls this application.

    Raises FixupError, OverlayFull when the changes did not fit (nothing of them may be used then).
    """
    with mounted(overlays, keys, writable=True) as (tree, look):
        plan = plan_for(tree, look, target)
        check_possible(plan)
        application.apply(tree, plan.edits, run)
        new = regenerate.regenerate_all(tree, look.context(target), lambda: _room(overlays))
        if new:
            # The drivers are elsewhere now, and other files may have to go in again.
            look = replace(
                look_at_directory(tree, look.storage, look.machine), problems=look.problems
            )
            again = plan_for(tree, look, target)
            application.apply(tree, again.edits, run)
            plan = regenerate.replanned(plan, again, new)
    for overlay in overlays:
        check_usable(overlay)
        check_untouched(overlay)
    return look, plan


def _room(overlays: Sequence[Overlay]) -> int:
    """Bytes that a new file may have: that much again goes into the old one, if it is put back, and
    into what the file system writes besides."""
    usages = [check_usable(overlay) for overlay in overlays]
    return min(usage.total - usage.used for usage in usages) // 3
