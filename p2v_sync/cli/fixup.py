"""``p2v-sync fixup``: what would make a guest boot as a virtual machine, done and taken back."""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from p2v_sync.cli.ask import volume_keys
from p2v_sync.cli.options import (
    PATH,
    check_guest,
    disks_argument,
    key_files_option,
    root_option,
)
from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN, Storage
from p2v_sync.errors import ConfigError
from p2v_sync.fixup import apply as application
from p2v_sync.fixup.diff import format_finding, format_plan, plan_to_json, printable
from p2v_sync.fixup.plan import Bus, Finding, Hypervisor, Plan, Severity, Target
from p2v_sync.fixup.tree import Tree
from p2v_sync.guest_disks import (
    Look,
    check_possible,
    fix_disks,
    look_at_directory,
    overlays_over,
    plan_disks,
    plan_for,
)
from p2v_sync.overlay.snapshot import list_overlays
from p2v_sync.units import MIB

_FACTS_MOST = 16 * MIB

_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@dataclass(frozen=True)
class _Asked:
    """What plan and apply have in common.  Either ``disks`` or ``root``."""

    disks: tuple[Path, ...]
    root: Path | None
    facts: Path | None
    target: Target
    key_files: tuple[Path, ...]


def _guest_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command(asked, …)`` with the options that say which guest, and what it becomes."""

    @wraps(command)  # with its own options
    def run(disks: tuple[Path, ...], root: Path | None, facts: Path | None, **others: Any) -> None:
        check_guest(disks, root)
        target = Target(Hypervisor(others.pop("target")), Bus(others.pop("bus")))
        command(_Asked(disks, root, facts, target, others.pop("key_files")), **others)

    for option in (
        click.option(
            "--bus",
            type=click.Choice([bus.value for bus in Bus]),
            default=Bus.AUTO.value,
            help="What the virtual machine's disks are connected to.",
        ),
        click.option(
            "--target",
            type=click.Choice([each.value for each in Hypervisor]),
            default=Hypervisor.KVM.value,
            help="What will run the virtual machine.",
        ),
        click.option(
            "--facts",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="With --root: the guest's disks and machine, as inspect --json says them.",
        ),
        key_files_option,
        root_option,
        disks_argument,
    ):
        run = option(run)
    return run


@contextmanager
def _in_directory(asked: _Asked, root: Path) -> Iterator[tuple[Tree, Plan]]:
    """The guest's files, and the plan for them."""
    storage, machine = _read_facts(asked.facts) if asked.facts else (NOTHING_KNOWN, Machine())
    with Tree(root) as tree:
        yield tree, plan_for(tree, look_at_directory(tree, storage, machine), asked.target)


def _plan(asked: _Asked) -> Plan:
    if asked.root is not None:
        with _in_directory(asked, asked.root) as (_, plan):
            return plan
    keys = volume_keys(asked.key_files)
    with overlays_over(asked.disks) as overlays:
        look, plan = plan_disks(overlays, asked.target, keys)
    return _with_problems(plan, look)


def _apply(asked: _Asked) -> Plan:
    run = uuid.uuid4().hex
    if asked.root is not None:
        with _in_directory(asked, asked.root) as (tree, plan):
            check_possible(plan)
            application.apply(tree, plan.edits, run)
            return plan
    # Not on ones that would be gone a moment later.
    overlays = list_overlays([str(disk) for disk in asked.disks])
    look, plan = fix_disks(overlays, asked.target, volume_keys(asked.key_files), run)
    return _with_problems(plan, look)


def _with_problems(plan: Plan, look: Look) -> Plan:
    """What was found out about the disks is worth knowing too."""
    said = [Finding("disks", Severity.WARNING, problem) for problem in look.problems]
    return Plan(plan.edits, [*said, *plan.findings])


def _read_facts(path: Path) -> tuple[Storage, Machine]:
    try:
        with path.open("rb") as file:
            record = json.loads(file.read(_FACTS_MOST))
        storage = Storage.from_json(record["storage"]) if "storage" in record else NOTHING_KNOWN
        return storage, Machine.from_json(record.get("machine", {}))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} has no facts about a guest: {type(error).__name__}: {error}",
            hint="it is made by: p2v-sync inspect --json",
        ) from error


@click.group()
def fixup() -> None:
    """Plan, apply or take back what makes a guest boot as a virtual machine."""


@fixup.command("plan")
@_guest_options
@_as_json
def plan_command(asked: _Asked, as_json: bool) -> None:
    """Show every change as a diff, and what is worth knowing; nothing is written."""
    plan = _plan(asked)
    if as_json:
        click.echo(json.dumps(plan_to_json(plan)))
        return
    for line in format_plan(plan):
        click.echo(line)
    click.echo(_summary(plan))


@fixup.command("apply")
@_guest_options
@_as_json
def apply_command(asked: _Asked, as_json: bool) -> None:
    """Carry the plan out in DIR, or on the overlays of the disks; never on the disks."""
    plan = _apply(asked)
    if as_json:
        click.echo(json.dumps(plan_to_json(plan)))
        return
    for edit in plan.edits:
        click.echo(printable(f"{edit.path} [{', '.join(edit.fixups)}]"))
    _say(plan.findings)
    click.echo(_summary(plan))


@fixup.command("revert")
@click.option(
    "--root",
    type=PATH,
    required=True,
    metavar="DIR",
    help="The directory where the guest's root file system is.",
)
def revert_command(root: Path) -> None:
    """Restore what apply changed in DIR, byte for byte, as its record there says."""
    with Tree(root) as tree:
        paths = application.revert(tree)
    for path in dict.fromkeys(paths):
        click.echo(printable(path))
    click.echo(f"reverted: {_count(len(set(paths)), 'change')}")


def _say(findings: Sequence[Finding]) -> None:
    for finding in findings:
        for line in format_finding(finding):
            click.echo(line)


def _summary(plan: Plan) -> str:
    warnings = sum(each.severity is Severity.WARNING for each in plan.findings)
    text = f"{_count(len(plan.edits), 'change')}, {_count(warnings, 'warning')}"
    if plan.is_fatal:
        return "no fix-ups are possible"
    if plan.is_downgraded:
        return f"{text}; the virtual machine needs hardware that the guest knows (SATA or IDE)"
    return text


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
