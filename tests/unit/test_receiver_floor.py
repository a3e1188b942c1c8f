"""What lets the receiver be shipped anywhere: Python 3.6, and few bytes."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from p2v_sync.transport.bootstrap import bare, build_bundle
from tests.conftest import OLDEST_PYTHON
from tests.unit.test_house import MAY_IMPORT_LATE, RECEIVER, is_below, modules

BUNDLE_MOST = 40 * 1024  # compressed: it goes over the link at each connection

# Every stdlib name that the receiver uses, looked up by the interpreter that may not know it.
LOOK_UP = """
import importlib, json, sys
for module, name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
        if name and not hasattr(sys.modules[module], name):
            importlib.import_module(module + "." + name)
    except ImportError:
        print(module, name)
"""

Names = Iterator[tuple[str, str]]


def imported_names(tree: ast.Module) -> Names:
    optional = {*chain.from_iterable(MAY_IMPORT_LATE.values())}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module not in optional:
            yield from ((str(node.module), alias.name) for alias in node.names)


def attributes(tree: ast.Module) -> Names:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr


def asked_for(tree: ast.Module) -> Names:
    """``hasattr(os, "preadv")``: what there is another way for."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Name("hasattr"), args=[ast.Name(module), ast.Constant(str(name))]
            ):
                yield module, name


def stdlib_names_used() -> Names:
    for module in modules():
        if is_below(module.name, "p2v_receiver"):
            names = {*imported_names(module.tree)}
            yield from names
            plain = {name for name, inner in names if not inner}
            used = {*attributes(module.tree)} - {*asked_for(module.tree)}
            yield from ((name, inner) for name, inner in used if name in plain)


@pytest.mark.real_parts
def test_it_needs_nothing_newer_than_its_floor() -> None:
    names = sorted({*stdlib_names_used()})
    assert {("ssl", "SSLContext"), ("typing", "Any"), ("sqlite3", "")} <= {*names}
    argv = [OLDEST_PYTHON, "-I", "-S", "-c", LOOK_UP, json.dumps(names)]
    answer = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    assert answer.stdout == "", f"{OLDEST_PYTHON} does not have them"


@pytest.mark.real_parts
def test_it_starts_on_the_oldest_python() -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import p2v_receiver.__main__ as m; "
    argv = [OLDEST_PYTHON, "-I", "-S", "-B", "-c", code + "m.main()", str(RECEIVER.parent)]
    answer = subprocess.run(
        [*argv, "--version"], check=True, capture_output=True, text=True, timeout=60
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", answer.stdout)
    assert answer.stderr == ""


@pytest.mark.parametrize("path", sorted(RECEIVER.glob("*.py")), ids=lambda path: path.name)
def test_it_is_written_in_python_3_6(path: Path) -> None:
    ast.parse(path.read_text(), str(path), feature_version=(3, 6))


def test_it_is_small_enough_to_be_shipped_each_time() -> None:
    assert len(build_bundle("/directory", "ready")) < BUNDLE_MOST


def code_of(source: str) -> list[tuple[int, str]]:
    """What each statement of a module does and where it stands; docstrings count as empty."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    statements = (node for node in ast.walk(tree) if isinstance(node, ast.stmt))
    return [(node.lineno, ast.dump(node)) for node in statements]


@pytest.mark.parametrize("path", sorted(RECEIVER.glob("*.py")), ids=lambda path: path.name)
def test_what_is_shipped_does_the_same_in_the_same_lines(path: Path) -> None:
    source = path.read_text()
    shipped = bare(source)
    assert code_of(shipped) == code_of(source)
    assert len(shipped) < len(source)
