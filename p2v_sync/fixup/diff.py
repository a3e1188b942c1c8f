"""A plan for people (unified diffs) and for programs (JSON)."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from p2v_sync.fixup.draft import Appended, Content, Directory, Edit, Link, State, renames_in
from p2v_sync.fixup.lines import split_lines
from p2v_sync.fixup.manifest import digest
from p2v_sync.fixup.plan import Finding, Plan, Severity

_UNPRINTABLE = re.compile(r"[^\t\x20-\x7e\xa0-\xff]")


def format_plan(plan: Plan) -> Iterator[str]:
    """Lines without their ends: each edit, then each finding."""
    renames = renames_in(plan.edits)
    for edit in plan.edits:
        if edit.path in renames:
            yield _heading(edit)
            yield printable(f"rename to {renames[edit.path]}")
        elif edit.path not in renames.values():
            yield from format_edit(edit)
    for finding in plan.findings:
        yield from format_finding(finding)


def format_finding(finding: Finding) -> Iterator[str]:
    yield printable(f"{finding.severity.value}: {finding.text} [{finding.fixup}]")
    if finding.hint:
        yield printable(f"    {finding.hint}")


def format_edit(edit: Edit) -> Iterator[str]:
    """``# path [fix-ups]``, then a diff, or a sentence for what is no text."""
    yield _heading(edit)
    before, after = _text(edit.before), _text(edit.after)
    if before is None or after is None or edit.after is None:
        yield printable(_in_words(edit.before, edit.after))
        return
    yield printable("--- " + ("/dev/null" if edit.before is None else f"a{edit.path}"))
    yield printable(f"+++ b{edit.path}")
    # Without the two lines of headings that it would make itself.
    for number, line in enumerate(difflib.unified_diff(before, after)):
        if number >= 2:
            yield printable(line.removesuffix("\n").removesuffix("\r"))
            if not line.endswith("\n"):
                yield "\\ No newline at end of file"
    yield from _mode(edit)


def _heading(edit: Edit) -> str:
    return printable(f"# {edit.path} [{', '.join(edit.fixups)}]")


def _mode(edit: Edit) -> Iterator[str]:
    match edit.before, edit.after:
        case (Content(mode=old), Content(mode=new)) if old != new:
            yield f"mode {old:04o} -> {new:04o}"


def _text(state: State) -> list[str] | None:
    """Lines; none for what is not there, None for what is no text."""
    if state is None:
        return []
    if isinstance(state, Content) and b"\0" not in state.data:
        return split_lines(state.data.decode("latin-1"))
    return None


def _in_words(before: State, after: State) -> str:
    match before, after:
        case _, None:
            return f"remove {_name(before)}"
        case None, _:
            return f"new {_name(after)}"
        case Appended(), Appended(data=data):
            return f"append {len(data)} bytes to {_name(before)}"
    return f"{_name(before)} becomes {_name(after)}"


def _name(state: State) -> str:
    match state:
        case Content(data):
            return f"file of {len(data)} bytes"
        case Appended(length, data):
            return f"file of {length + len(data)} bytes"
        case Link(target):
            return f"link to {target}"
        case Directory(mode):
            return f"directory, mode {mode:04o}"
    return "nothing"


def printable(text: str) -> str:
    """A guest's text for a terminal: what would control that becomes ``\\x1b``."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """``edits`` (a diff each, and digests), ``findings``, and what they amount to."""
    return {
        "edits": [
            {
                "path": edit.path,
                "fixups": list(edit.fixups),
                "before": _digest(edit.before),
                "after": _digest(edit.after),
                "diff": "\n".join(format_edit(edit)) + "\n",
            }
            for edit in plan.edits
        ],
        "findings": [
            {**finding._asdict(), "severity": finding.severity.value} for finding in plan.findings
        ],
        "fatal": plan.is_fatal,
        "downgraded": plan.is_downgraded,
        "warnings": sum(each.severity is Severity.WARNING for each in plan.findings),
    }


def _digest(state: State) -> str | None:
    """SHA-256 of a file that is changed as a whole."""
    return digest(state.data) if isinstance(state, Content) else None
