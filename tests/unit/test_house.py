"""The house (DESIGN §4): who may import whom.  The tables here are the documentation."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

from p2v_sync.errors import P2vError

ROOT = Path(__file__).parents[2]
SENDER, RECEIVER = ROOT / "p2v_sync", ROOT / "receiver" / "p2v_receiver"

# Bottom first.  A part imports from the rows above its own and from itself, never from siblings.
LAYERS = (
    ("errors", "units", "extent", "events"),
    ("records", "config"),
    ("run",),
    ("device", "state", "transport"),
    ("overlay",),
    ("engine", "fixup"),
    ("vm",),
    ("jobs", "cutover", "guest_disks", "inquiry"),
    ("convert",),
    ("demo", "wizard"),
    ("cli",),
    ("__main__",),
)
RECEIVER_LAYERS = (
    ("wire", "auth"),
    ("codec", "stream"),
    ("target",),
    ("manifest", "place"),
    ("delta", "machine"),
    ("qcow2",),
    ("apply",),
    ("store",),
    ("session", "cutover"),
    ("live",),
    ("serve",),
    ("listen",),
    ("__main__",),
)

# What of the receiver the sender may use.
SHARED = {"wire", "codec"}
SHARED_WITH_TRANSPORT = SHARED | {"auth", "stream"}

# The engine is stricter than its layer, and pure of everything that is outside the process.
ENGINE_MAY_USE = {"engine", "errors", "units", "extent", "events", "records"}
NOT_IN_ENGINE = {"os", "pathlib", "socket", "select", "ssl", "subprocess", "sqlite3", "fcntl"}

# Where alone a module may be imported; a name stands for everything below it too.
ONLY_IN = {
    "subprocess": {"p2v_sync.run", "p2v_receiver.machine"},
    "multiprocessing": set[str](),
    "sqlite_utils": {"p2v_sync.state"},
    "sqlite3": {"p2v_sync.state", "p2v_receiver.manifest"},
    "socket": {
        "p2v_sync.transport",
        "p2v_sync.demo",  # plays the link that breaks
        "p2v_receiver.stream",
        "p2v_receiver.listen",
        "p2v_receiver.__main__",
    },
    "ssl": {"p2v_sync.transport.tcp", "p2v_receiver.stream", "p2v_receiver.listen"},
    "select": {"p2v_sync.transport", "p2v_sync.demo", "p2v_receiver.stream"},
    "fcntl": {
        "p2v_sync.device",
        "p2v_sync.state.lock",
        "p2v_receiver.store",
        "p2v_receiver.target",
    },
    "cryptography": {"p2v_sync.transport.certificate"},
    "paramiko": {"p2v_sync.transport.ssh"},
    "click": {"p2v_sync.cli"},
    "tqdm": {"p2v_sync.cli.render"},
    "dialog": {"p2v_sync.wizard.screens"},
}
MAY_EXIT = {"p2v_sync.__main__", "p2v_receiver.__main__"}
MAY_IMPORT_LATE = {
    "p2v_receiver.codec": {"xxhash"},  # optional, and slow when it is not there
    "p2v_sync.cli.render": {"tqdm"},  # these two: a run that needs them not starts earlier
    "p2v_sync.transport.tcp": {"p2v_sync.transport.certificate"},
}
STARTS_A_PROCESS = re.compile("system|popen|fork(pty)?|exec[lv]p?e?|(posix_)?spawn[lv]?p?e?")


def part_of(name: str) -> str:
    """``p2v_sync.cli.sync`` → cli; what stands in the package itself has no layer."""
    part = [*name.split("."), "__init__"][1]
    return "__init__" if part == "__version__" else part


class Module(NamedTuple):
    name: str
    tree: ast.Module

    @property
    def part(self) -> str:
        return part_of(self.name)


class Import(NamedTuple):
    importer: Module
    imported: str

    def __str__(self) -> str:
        return f"{self.importer.name} imports {self.imported}"


def load(directory: Path) -> list[Module]:
    modules = []
    for path in sorted(directory.rglob("*.py")):
        parts = path.relative_to(directory.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        modules.append(Module(name, ast.parse(path.read_text(), str(path))))
    return modules


@cache
def modules() -> list[Module]:
    return load(SENDER) + load(RECEIVER)


def names_imported(module: Module, node: ast.AST) -> Iterator[str]:
    """``a.b`` for ``import a.b``, and ``a.b`` for ``from a import b``, relative or not."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = module.name.split(".")[: -node.level] if node.level else []
        start = ".".join([*base, *filter(None, [node.module])])
        yield from (f"{start}.{alias.name}" for alias in node.names)


@cache
def imports() -> list[Import]:
    return [
        Import(module, name)
        for module in modules()
        for node in ast.walk(module.tree)
        for name in names_imported(module, node)
    ]


def is_below(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def ours(package: str, *, by: str = "") -> Iterator[tuple[Import, str]]:
    """Imports of ``package`` (by ``by``), each with the part that is imported."""
    for found in imports():
        if is_below(found.importer.name, by or package) and is_below(found.imported, package):
            yield found, part_of(found.imported)


@pytest.mark.parametrize(
    ("package", "layers"), [("p2v_sync", LAYERS), ("p2v_receiver", RECEIVER_LAYERS)]
)
def test_imports_point_downwards(package: str, layers: tuple[tuple[str, ...], ...]) -> None:
    layer = {part: number for number, row in enumerate(layers) for part in row}
    layer["__init__"] = -1
    unknown = {module.part for module in modules() if is_below(module.name, package)} - {*layer}
    assert not unknown, "give them a place in the table"
    for found, part in ours(package):
        importer = found.importer.part
        assert part == importer or layer[part] < layer[importer], str(found)


def test_the_receiver_is_on_its_own() -> None:
    for found in imports():
        if is_below(found.importer.name, "p2v_receiver"):
            top = found.imported.split(".")[0]
            late = MAY_IMPORT_LATE.get(found.importer.name, set())
            assert top in sys.stdlib_module_names | {"p2v_receiver"} | late, str(found)


def test_what_the_sender_shares_with_the_receiver() -> None:
    for found, part in ours("p2v_receiver", by="p2v_sync"):
        in_transport = found.importer.part == "transport"
        allowed = SHARED_WITH_TRANSPORT if in_transport else SHARED
        assert part in allowed | {"__init__"}, str(found)


def test_the_engine_is_pure() -> None:
    for found, part in ours("p2v_sync", by="p2v_sync.engine"):
        assert part in ENGINE_MAY_USE | {"__init__"}, str(found)
    for found in imports():
        if found.importer.part == "engine":
            assert found.imported.split(".")[0] not in NOT_IN_ENGINE, str(found)


@pytest.mark.parametrize("banned", ONLY_IN)
def test_each_outside_thing_has_its_place(banned: str) -> None:
    for found in imports():
        if is_below(found.imported, banned):
            assert any(is_below(found.importer.name, place) for place in ONLY_IN[banned]), str(
                found
            )


def test_processes_are_started_and_ended_in_their_places() -> None:
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                where = f"{module.name}:{node.lineno}: {name}"
                assert not (node.value.id == "os" and STARTS_A_PROCESS.fullmatch(node.attr)), where
                assert name not in ("sys.exit", "os._exit") or module.name in MAY_EXIT, where


def test_imports_are_at_the_top() -> None:
    for module in modules():
        functions = (node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef))
        for node in chain.from_iterable(map(ast.walk, functions)):
            for name in names_imported(module, node):
                allowed = MAY_IMPORT_LATE.get(module.name, set())
                where = f"{module.name}: {ast.unparse(node)}"
                assert any(is_below(name, each) for each in allowed), where


def test_modules_are_named_by_what_they_are() -> None:
    parts = {part for module in modules() for part in module.name.split(".")}
    assert not parts & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_each_error_has_an_exit_code_of_its_own() -> None:
    classes, found = [P2vError], []
    while classes:
        found.append(classes.pop())
        classes += found[-1].__subclasses__()
    codes = sorted(error.exit_code for error in found)
    assert codes == sorted({*codes})
    assert not {0, 1, 2} & {*codes}, "success, a bug and wrong usage"
