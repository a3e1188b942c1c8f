"""Fix-ups on whole trees, a folder each: tests/fixups/KEY/CASE/{tree/,facts.json,expected.diff}.

``facts.json``: ``storage`` and ``machine`` as for ``--facts``, ``guest`` with fields of Guest, and
``links``: {path: target}.  KEY is a fix-up's key up to the dash (F01), or ``all``.  With
P2V_WRITE_EXPECTED=1 in the environment the expected diffs are written anew.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN, Storage
from p2v_sync.fixup.apply import apply, revert
from p2v_sync.fixup.catalogue import FIXUPS
from p2v_sync.fixup.diff import format_plan
from p2v_sync.fixup.guest import (
    BootLoader,
    Distribution,
    Family,
    Firmware,
    Generator,
    Guest,
    Init,
    Interface,
    LoaderKind,
    Mount,
    NetworkStack,
)
from p2v_sync.fixup.plan import Context, Plan
from p2v_sync.fixup.runner import make_plan
from p2v_sync.fixup.tree import Tree

CASES = sorted(Path(__file__).parents[1].glob("fixups/*/*/facts.json"))
WRITE = "P2V_WRITE_EXPECTED" in os.environ

Picture = dict[str, tuple[int, bytes | str | None]]


def picture(root: Path) -> Picture:
    """All there is below ``root``: permissions, and bytes, target or None."""
    found: Picture = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        what = path.readlink().as_posix() if path.is_symlink() else None
        if path.is_file() and not path.is_symlink():
            found[path.relative_to(root).as_posix()] = mode, path.read_bytes()
        else:
            found[path.relative_to(root).as_posix()] = mode, what
    return found


def guest_of(record: dict[str, Any]) -> Guest:
    family, name, version = record.get("distribution", ["other", "", ""])
    return Guest(
        distribution=Distribution(Family(family), name, version),
        boot_loaders=tuple(
            BootLoader(LoaderKind(kind), config, tuple(entries))
            for kind, config, entries in record.get("boot_loaders", ())
        ),
        generator=Generator(record.get("generator", "other")),
        init=Init(record.get("init", "unknown")),
        is_hibernated=bool(record.get("is_hibernated")),
        architecture=record.get("architecture", ""),
        firmware=Firmware(record["firmware"]) if "firmware" in record else None,
        mounts=tuple(Mount(*each) for each in record.get("mounts", ())),
        interfaces=tuple(
            Interface(name, mac, NetworkStack(stack), config)
            for name, mac, stack, config in record.get("interfaces", ())
        ),
        uses=tuple(record.get("uses", ())),
    )


def context_of(facts: dict[str, Any]) -> Context:
    storage = Storage.from_json(facts["storage"]) if "storage" in facts else NOTHING_KNOWN
    machine = Machine.from_json(facts.get("machine", {}))
    return Context(guest_of(facts.get("guest", {})), storage, machine)


def build(case: Path, facts: dict[str, Any], root: Path) -> None:
    shutil.copytree(case / "tree", root)
    for path, target in facts.get("links", {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)


def planned(root: Path, context: Context, key: str) -> Plan:
    wanted = [each for each in FIXUPS if key == "all" or each.key.startswith(f"{key}-")]
    assert wanted, f"no fix-up is called {key}"
    with Tree(root) as tree:
        return make_plan(tree, context, wanted)


@pytest.mark.parametrize("case", CASES, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_a_tree(case: Path, tmp_path: Path) -> None:
    facts = json.loads(case.read_text())
    root, key, expected = tmp_path / "root", case.parts[-3], case.parent / "expected.diff"
    build(case.parent, facts, root)
    before, context = picture(root), context_of(facts)
    plan = planned(root, context, key)
    assert picture(root) == before, "a plan writes nothing"
    text = "".join(f"{line}\n" for line in format_plan(plan))
    if WRITE:
        expected.write_text(text, encoding="latin-1")
    assert text == expected.read_text(encoding="latin-1")
    with Tree(root) as tree:
        apply(tree, plan.edits)
    assert not planned(root, context, key).edits, "applied to what it made, it makes nothing"
    if plan.edits:
        with Tree(root) as tree:
            revert(tree)
    assert picture(root) == before


def test_there_are_trees() -> None:
    families = {json.loads(case.read_text())["guest"]["distribution"][0] for case in CASES}
    assert families >= {"debian", "rhel", "suse", "arch"}
