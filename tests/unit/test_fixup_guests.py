"""All fix-ups together, on whole guests: done once is done, and taken back is as before."""

import os
import stat
from pathlib import Path

import pytest

from p2v_sync.fixup.apply import apply, revert
from p2v_sync.fixup.catalogue import FIXUPS
from p2v_sync.fixup.diff import format_plan
from p2v_sync.fixup.plan import Bus, Hypervisor, Plan, Target
from p2v_sync.fixup.tree import Tree
from p2v_sync.guest_disks import look_at_directory, plan_for
from tests.guests.build import NAMES, Built, build

TARGETS = [Target(), Target(Hypervisor.XEN), Target(Hypervisor.PROXMOX, Bus.SCSI)]


def plan(built: Built, target: Target) -> Plan:
    with Tree(built.root) as tree:
        return plan_for(tree, look_at_directory(tree, built.storage, built.machine), target)


def picture(root: Path) -> dict[str, tuple[int, str | bytes]]:
    """Path → mode and content of all there is."""
    found: dict[str, tuple[int, str | bytes]] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        content: str | bytes = b""
        if stat.S_ISLNK(mode):
            content = os.readlink(path)
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (mode, content)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.hypervisor)
def test_once_is_enough_and_can_be_taken_back(name: str, target: Target, tmp_path: Path) -> None:
    built = build(name, tmp_path / "guest")
    before = picture(built.root)
    first = plan(built, target)
    assert picture(built.root) == before, "a plan writes nothing"
    assert not [finding for finding in first.findings if "crashed" in finding.text]
    with Tree(built.root) as tree:
        apply(tree, first.edits)
    again = plan(built, target)
    assert [*format_plan(Plan(again.edits, ()))] == []
    if not first.edits:
        return
    with Tree(built.root) as tree:
        revert(tree)
    assert picture(built.root) == before


def test_there_is_a_fixup_of_each_number_once() -> None:
    keys = [fixup.key for fixup in FIXUPS]
    assert len(keys) == len({*keys})
    assert all(key[0] in "FW" and key[1:3].isdigit() for key in keys)
