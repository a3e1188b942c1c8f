"""All fix-ups of a catalogue, one after the other, into one plan."""

import logging
from collections.abc import Iterable, Sequence

from p2v_sync.errors import P2vError
from p2v_sync.fixup.draft import Draft, Edit
from p2v_sync.fixup.manifest import MANIFEST, Done, Manifest, Run
from p2v_sync.fixup.plan import Context, Finding, Fixup, Plan, Severity
from p2v_sync.fixup.tree import Tree

_MOST_FINDINGS = 200  # of one fix-up
_ROOM_HINT = "make room there on the physical machine"
_log = logging.getLogger(__name__)


def make_plan(tree: Tree, context: Context, fixups: Iterable[Fixup]) -> Plan:
    """What all of ``fixups`` would do, in their order.  Writes nothing, and raises nothing.

    One that fails leaves no edits and a warning.  A FATAL finding ends it: the plan has no edits.
    """
    draft = Draft(tree)
    findings: list[Finding] = []
    for fixup in fixups:
        findings += _plan_one(fixup, draft, context)
        if any(finding.severity is Severity.FATAL for finding in findings):
            return Plan((), _said_once(findings))
    edits = draft.edits()
    if edits and not _has_room_for_manifest(draft, edits):
        text = f"there is too little room for {MANIFEST} in the guest: nothing of it is changed"
        return Plan(
            (), _said_once([*findings, Finding("room", Severity.DOWNGRADE, text, _ROOM_HINT)])
        )
    return Plan(edits, _said_once(findings))


def _has_room_for_manifest(draft: Draft, edits: Sequence[Edit]) -> bool:
    """It is written first of all, with what was in the files before."""
    run = Run("", tuple(Done.of(edit, None) for edit in edits))
    return draft.room(MANIFEST) >= len(Manifest((run,)).to_bytes())


class _NoRoomError(Exception):
    """What a fix-up drafted does not fit.  Drops it."""


def _plan_one(fixup: Fixup, draft: Draft, context: Context) -> list[Finding]:
    try:
        with draft.of(fixup.key):
            findings = _not_too_many(list(fixup.plan(draft, context)))
            if path := draft.overfilled():
                raise _NoRoomError(path)
            return findings
    except _NoRoomError as error:
        text = f"the file system of {error} in the guest is too full for what it needs"
        return [Finding(fixup.key, Severity.DOWNGRADE, text, _ROOM_HINT)]
    except P2vError as error:
        return [Finding(fixup.key, Severity.WARNING, error.message, error.hint or "")]
    except Exception as error:  # noqa: BLE001
        # A guest can be strange in ways that nobody thought of.
        _log.warning("%s failed", fixup.key, exc_info=error)
        return [
            Finding(
                fixup.key,
                Severity.WARNING,
                f"crashed, and changes nothing: {type(error).__name__}: {error}",
                "a fault in p2v-sync; the other fix-ups are not concerned",
            )
        ]


def _not_too_many(findings: list[Finding]) -> list[Finding]:
    """A guest's files may be made to say anything any number of times."""
    left = len(findings) - _MOST_FINDINGS
    if left <= 0:
        return findings
    # The worst first: what they amount to must not be cut off.
    order = list(reversed(Severity))
    worst = sorted(findings, key=lambda finding: order.index(finding.severity))
    more = Finding(findings[0].fixup, Severity.NOTE, f"{left} more findings are not shown")
    return [*worst[:_MOST_FINDINGS], more]


def _said_once(findings: list[Finding]) -> list[Finding]:
    """Several fix-ups may stumble over the same file."""
    said = {(each.severity, each.text): each for each in reversed(findings)}
    return [each for each in findings if said[each.severity, each.text] is each]
