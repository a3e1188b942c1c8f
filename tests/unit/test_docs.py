"""The pages say what the code does: options, events, exit codes, files, the protocol's table."""

import ast
import re
import shutil
import subprocess
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from p2v_receiver import wire
from p2v_receiver.__main__ import _parser
from p2v_receiver.auth import DEFAULT_PORT
from p2v_receiver.listen import DIRECT_PORTS
from p2v_sync.cli import cli
from p2v_sync.cli.render import event_name
from p2v_sync.device.sysfs import Disk
from p2v_sync.errors import ConnectFailed, P2vError
from p2v_sync.events import Counters, Event
from p2v_sync.fixup.diff import plan_to_json
from p2v_sync.fixup.draft import Edit
from p2v_sync.fixup.plan import Finding, Plan, Severity
from p2v_sync.transport.direct import refused
from p2v_sync.wizard.settings import SETTINGS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SENDER_PAGE, RECEIVER_PAGE = DOCS / "p2v-sync.1.md", DOCS / "p2v-receiver.1.md"


def section(page: Path, title: str) -> str:
    """What stands under a heading, up to the next one of its level or a higher one."""
    level = title.count("#")
    parts = re.split(rf"^(#{{1,{level}}} .*)\n", page.read_text(), flags=re.MULTILINE)
    return parts[parts.index(title) + 1]


def emphasized(text: str) -> set[str]:
    return set(re.findall(r"(?<!\*)\*([a-z_]+)\*(?!\*)", text))


def definitions(text: str) -> dict[str, str]:
    """``**term**`` → what the lines after it say."""
    parts = re.split(r"^\*\*(\w+)\*\*\n:   ", text, flags=re.MULTILINE)
    # The last one ends where the paragraphs go on at the margin.
    return {
        term: re.split(r"\n\n(?=\S)", said)[0]
        for term, said in zip(*[iter(parts[1:])] * 2, strict=True)
    }


# Options.


def options_on(page: Path, command: str) -> set[str]:
    terms = re.findall(r"^(\*\*.*)\n:   ", section(page, f"## {command}"), flags=re.MULTILINE)
    return {name for term in terms for name in re.findall(r"\*\*\\(--[a-z-]+)\*\*", term)}


def options_of(command: click.Command) -> set[str]:
    named = {name for one in command.params for name in one.opts if isinstance(one, click.Option)}
    return {name for name in named if name.startswith("--")}


def leaf_commands(group: click.Group, start: str = "") -> dict[str, click.Command]:
    """``fixup plan`` for those in a group."""
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            found.update(leaf_commands(command, f"{start}{name} "))
        elif command is not None:
            found[f"{start}{name}"] = command
    return found


COMMANDS = leaf_commands(cli)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_each_command(name: str) -> None:
    assert options_on(SENDER_PAGE, name) == options_of(COMMANDS[name])


def test_the_options_before_the_command() -> None:
    assert options_on(SENDER_PAGE, "p2v-sync") == options_of(cli) | {"--help"}


def test_the_choices_of_each_option() -> None:
    text = section(SENDER_PAGE, "## sync")
    for option in COMMANDS["sync"].params:
        if isinstance(option.type, click.Choice):
            choices = "|".join(f"**{choice}**" for choice in option.type.choices)
            assert f"**\\{option.opts[0]}** {choices}\n" in text


def test_the_options_of_the_receiver() -> None:
    parser = _parser()
    (listen,) = (
        action.choices["listen"]
        for action in parser._actions
        if isinstance(action, _SubParsersAction)
    )
    assert options_on(RECEIVER_PAGE, "listen") == long_options(listen)
    assert options_on(RECEIVER_PAGE, "p2v-receiver") == long_options(parser)
    for page in (SENDER_PAGE, RECEIVER_PAGE):
        assert f"default is {DEFAULT_PORT}" in page.read_text() or (
            f"default port is {DEFAULT_PORT}" in page.read_text()
        )


def test_the_ports_of_the_direct_data_path() -> None:
    ports = f"{DIRECT_PORTS[0]} to {DIRECT_PORTS[-1]}"
    assert ports in str(refused(ConnectFailed("")))
    for page in (SENDER_PAGE, ROOT / "README.md", ROOT / "receiver" / "PROTOCOL.md"):
        assert ports in re.sub(r"\s+", " ", page.read_text()), page


def long_options(parser: ArgumentParser) -> set[str]:
    names = (name for action in parser._actions for name in action.option_strings)
    return {name for name in names if name.startswith("--")}


# What programs read.


def test_the_fields_of_each_event() -> None:
    text = section(SENDER_PAGE, "## Events of sync and verify")
    said = definitions(text)
    events = {event_name_of(kind): {one.name for one in fields(kind)} for kind in leaves(Event)}
    assert {*said} == {*events}
    for name, text_of_it in said.items():
        assert emphasized(text_of_it) == events[name] - {"disk"}, name
    counters = text[text.index("\n*counters* is an object") :]
    assert emphasized(counters) == {one.name for one in fields(Counters)} | {"counters"}


def leaves(base: type[Event]) -> list[type[Event]]:
    return base.__subclasses__()


def event_name_of(kind: type[Event]) -> str:
    return event_name(object.__new__(kind))


@pytest.mark.parametrize(
    ("module", "title"),
    [("status", "## Objects of status"), ("overlay", "## Objects of overlay status")],
)
def test_the_fields_of_status(module: str, title: str) -> None:
    tree = ast.parse((ROOT / "p2v_sync" / "cli" / f"{module}.py").read_text())
    (function,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "_as_json"
    )
    (keys,) = (node.keys for node in ast.walk(function) if isinstance(node, ast.Dict))
    said = emphasized(section(SENDER_PAGE, title))
    assert said == {key.value for key in keys if isinstance(key, ast.Constant)}


def test_the_fields_of_disks() -> None:
    said = emphasized(section(SENDER_PAGE, "## Objects of disks"))
    assert said == {one.name for one in fields(Disk)}


def test_the_parameters_of_the_live_cd() -> None:
    text = (DOCS / "livecd.md").read_text()
    _, _, rest = text.partition("<!-- settings -->")
    rows = [line.split("|")[1:4] for line in rest.partition("<!-- /settings -->")[0].splitlines()]
    said = [tuple(cell.strip() for cell in row) for row in rows if row][2:]
    assert said == [
        (
            "preseed only" if one.is_secret else f"`{one.parameter}`",
            f"`{one.key}`",
            one.meaning,
        )
        for one in SETTINGS.values()
    ]


def test_the_fields_of_a_plan() -> None:
    edit = Edit("/x", None, None, ())
    record = plan_to_json(Plan([edit], [Finding("F", Severity.NOTE, "")]))
    said = emphasized(section(SENDER_PAGE, "## The object of fixup plan and fixup apply"))
    assert said == {*record, *record["edits"][0], *record["findings"][0]}


def test_the_exit_codes() -> None:
    said = definitions(section(SENDER_PAGE, "# EXIT STATUS"))
    named = {int(code): text.split("*")[1] for code, text in said.items() if text[0] == "*"}
    assert {*said} - {str(code) for code in named} == {"0", "1", "2"}
    assert named == {error.exit_code: error.__name__ for error in every_error()}


def every_error() -> Iterator[type[P2vError]]:
    """All but the base, which is never raised itself."""
    classes = P2vError.__subclasses__()
    while classes:
        yield classes[-1]
        classes = classes[:-1] + classes.pop().__subclasses__()


# The protocol.


def format_transitions() -> str:
    """``wire.TRANSITIONS`` as the table in PROTOCOL.md."""
    lines = ["| in state | the | may send | and is then in |", "|---|---|---|---|"]
    for state, rules in wire.TRANSITIONS.items():
        ways: dict[tuple[str, str], list[str]] = {}
        for (role, kind), after in rules.items():
            ways.setdefault((role, after.name), []).append(kind.name)
        for (role, after_name), kinds in ways.items():
            lines.append(f"| {state.name} | {role} | {', '.join(kinds)} | {after_name} |")
    return "\n".join(lines)


def test_the_table_of_the_protocol() -> None:
    path = ROOT / "receiver" / "PROTOCOL.md"
    if path.exists():
        _, begun, rest = path.read_text().partition("<!-- transitions -->")
        table, ended, _ = rest.partition("<!-- /transitions -->")
        assert (begun, ended) != ("", ""), "the table stands between two marks"
        assert table.strip() == format_transitions()


# The pages themselves.


@pytest.mark.real_parts
@pytest.mark.parametrize("page", [SENDER_PAGE, RECEIVER_PAGE], ids=lambda page: page.name)
def test_the_man_page_is_built_and_clean(page: Path, tmp_path: Path) -> None:
    for program in ("make", "pandoc", "groff"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")
    argv = ["make", "-s", "-C", str(ROOT), "man", f"DIST={tmp_path}"]
    subprocess.run(argv, check=True, timeout=60)
    roff = tmp_path / "man" / page.stem
    argv = ["groff", "-man", "-t", "-Tutf8", "-P-cbou", "-ww", str(roff)]
    shown = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    assert shown.stderr == ""
    assert "EXIT STATUS" in shown.stdout
