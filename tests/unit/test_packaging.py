"""What is delivered: the pinned lock file, and the receiver as one file."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from p2v_receiver import __version__
from tests.conftest import OLDEST_PYTHON

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.txt").read_text()


def test_the_lock_file_has_all_that_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[<>=~!]", requirement)[0] for requirement in asked}
    assert names <= {line.partition("==")[0] for line in LOCK.splitlines() if "==" in line}


def test_the_lock_file_is_pinned_and_good_everywhere() -> None:
    lines = [line.split("#")[0].strip() for line in LOCK.splitlines()]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in lines if line)
    assert "/" not in LOCK, "no hosts and no paths"


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    argv = ["make", "-s", "-C", str(ROOT), "pyz", f"DIST={directory}", f"PYTHON={sys.executable}"]
    subprocess.run(argv, check=True, timeout=60)
    return directory / "p2v-receiver.pyz"


@pytest.mark.real_parts
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--version"], 0, f"{__version__}\n"),
        (["listen", "--dir", "/dev/null/none"], 1, "p2v-receiver: --dir /dev/null/none: there is"),
        (["listen"], 2, "usage: p2v-receiver"),
    ],
)
def test_the_receiver_as_one_file(pyz: Path, arguments: list[str], status: int, said: str) -> None:
    argv = [OLDEST_PYTHON, str(pyz), *arguments]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, (done.stdout + done.stderr)[: len(said)]) == (status, said)
