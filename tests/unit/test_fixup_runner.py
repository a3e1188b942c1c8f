"""Running a catalogue: one that fails harms no other, one that is fatal ends it all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.errors import GuestFileError
from p2v_sync.fixup.catalogue import FIXUPS
from p2v_sync.fixup.diff import format_edit, format_plan, plan_to_json, printable
from p2v_sync.fixup.draft import Appended, Content, Directory, Draft, Edit, Link, State
from p2v_sync.fixup.guest import Guest
from p2v_sync.fixup.plan import Context, Finding, Fixup, Plan, Severity
from p2v_sync.fixup.runner import make_plan
from p2v_sync.fixup.tree import Tree

CONTEXT = Context(Guest(), NOTHING_KNOWN, Machine())


class Says:
    """Writes a file of its name, then says or raises something."""

    def __init__(self, key: str, what: Severity | Exception | None = None) -> None:
        self.key = key
        self._what = what

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context
        draft.write(f"/{self.key}", "x")
        if isinstance(self._what, Exception):
            raise self._what
        if self._what is not None:
            yield Finding(self.key, self._what, "said")


def planned(root: Path, *fixups: Fixup) -> Plan:
    with Tree(root) as tree:
        return make_plan(tree, CONTEXT, fixups)


def paths(plan: Plan) -> list[str]:
    return [edit.path for edit in plan.edits]


def test_one_that_crashes_leaves_a_warning_and_no_edits(tmp_path: Path) -> None:
    plan = planned(tmp_path, Says("a"), Says("b", KeyError("x")), Says("c"))
    assert paths(plan) == ["/a", "/c"]
    (finding,) = plan.findings
    assert (finding.fixup, finding.severity) == ("b", Severity.WARNING)
    assert finding.text == "crashed, and changes nothing: KeyError: 'x'"


def test_an_error_that_explains_itself_is_not_called_a_crash(tmp_path: Path) -> None:
    plan = planned(tmp_path, Says("a", GuestFileError("/x is strange", hint="look")))
    assert plan.findings == [Finding("a", Severity.WARNING, "/x is strange", "look")]


def test_what_is_fatal_ends_it_without_any_edit(tmp_path: Path) -> None:
    plan = planned(tmp_path, Says("a"), Says("b", Severity.FATAL), Says("c", Severity.NOTE))
    assert plan.is_fatal
    assert paths(plan) == []
    assert [finding.fixup for finding in plan.findings] == ["b"]


def test_what_several_say_is_said_once(tmp_path: Path) -> None:
    plan = planned(tmp_path, Says("a", Severity.NOTE), Says("b", Severity.NOTE))
    assert [finding.fixup for finding in plan.findings] == ["a"]


class Chatters:
    key = "x"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context
        for number in range(1000):
            yield Finding(self.key, Severity.NOTE, str(number))
        draft.write("/late", "x")
        yield Finding(self.key, Severity.DOWNGRADE, "worst")


def test_findings_are_cut_off_behind_the_worst(tmp_path: Path) -> None:
    plan = planned(tmp_path, Chatters())
    assert paths(plan) == ["/late"]
    assert plan.is_downgraded
    assert len(plan.findings) == 201
    assert plan.findings[-1].text == "801 more findings are not shown"


def test_a_downgrade_is_not_fatal(tmp_path: Path) -> None:
    plan = planned(tmp_path, Says("a", Severity.DOWNGRADE))
    assert (plan.is_downgraded, plan.is_fatal, paths(plan)) == (True, False, ["/a"])


def test_keys_are_unique_and_hibernation_comes_first() -> None:
    keys = [fixup.key for fixup in FIXUPS]
    assert len(keys) == len({*keys})
    assert keys[0] == "F65-hibernated"
    assert keys[-1] == "F99-leftovers"


# How a plan looks


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (Content(b"a\nb"), Content(b"a\r\nb\n"), [
            "--- a/x", "+++ b/x", "@@ -1,2 +1,2 @@", "-a", "-b", "\\ No newline at end of file",
            "+a", "+b"]),
        (None, Content(b"a\n"), ["--- /dev/null", "+++ b/x", "@@ -0,0 +1 @@", "+a"]),
        (Content(b"a", 0o644), Content(b"a", 0o600), ["--- a/x", "+++ b/x", "mode 0644 -> 0600"]),
        (Content(b"a\0"), Content(b"ab\0"), ["file of 2 bytes becomes file of 3 bytes"]),
        (Appended(9), Appended(9, b"xy"), ["append 2 bytes to file of 9 bytes"]),
        (None, Link("../a"), ["new link to ../a"]),
        (Link("a"), Link("b"), ["link to a becomes link to b"]),
        (Link("a"), None, ["remove link to a"]),
        (None, Directory(), ["new directory, mode 0755"]),
    ],
)  # fmt: skip
def test_an_edit_as_a_diff(before: State, after: State, lines: list[str]) -> None:
    edit = Edit("/x", before, after, ("F1", "F2"))
    assert list(format_edit(edit)) == ["# /x [F1, F2]", *lines]


def test_a_renaming_is_said_in_words() -> None:
    state = Content(b"data")
    edits = [Edit("/etc/a", state, None, ("F1",)), Edit("/etc/b", None, state, ("F1",))]
    assert list(format_plan(Plan(edits, []))) == ["# /etc/a [F1]", "rename to /etc/b"]


def test_a_guest_does_not_control_the_terminal() -> None:
    edit = Edit("/\x1b[2J", None, Content(b"\x1b]0;x\x07\n"), ("F1",))
    text = "\n".join(format_plan(Plan([edit], [Finding("F1", Severity.NOTE, "\x1b\x9b")])))
    assert not {"\x1b", "\x07", "\x9b"} & {*text}
    assert printable("a\tb\xe4") == "a\tb\xe4"


def test_json_has_digests_of_whole_files() -> None:
    edit = Edit("/x", None, Content(b""), ("F1",))
    record = plan_to_json(Plan([edit], [Finding("F1", Severity.WARNING, "t", "h")]))
    assert record["edits"][0]["before"] is None
    assert record["edits"][0]["after"].startswith("e3b0c442")
    assert record["findings"] == [{"fixup": "F1", "severity": "warning", "text": "t", "hint": "h"}]
    assert (record["fatal"], record["downgraded"], record["warnings"]) == (False, False, 1)
