"""The wizard's screens as somebody sees them: real dialog(1) on a terminal of 80x24."""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_sync.wizard.answers import parse_preseed

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0

pytestmark = [
    pytest.mark.skipif(shutil.which(each) is None, reason=f"needs the program {each}")
    for each in ("dialog", "tmux")
]


class Terminal:
    """A terminal of 80x24 in which ``command`` runs."""

    def __init__(self, command: str, directory: Path) -> None:
        self._tmux = ("tmux", "-S", str(directory / "tmux"), "-f", "/dev/null")
        self._run("new-session", "-d", "-x", "80", "-y", "24", command)
        self._run("set-option", "remain-on-exit", "on")

    def _run(self, *arguments: str) -> str:
        argv = [*self._tmux, *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def wait_for(self, *texts: str) -> str:
        """The screen, once all of ``texts`` are on it: a page is not drawn at once."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(text in (screen := self.screen()) for text in texts):
            assert time.monotonic() < deadline, f"no {texts!r} on\n{screen}"
            time.sleep(0.1)
        return screen

    def keys(self, *names: str) -> None:
        self._run("send-keys", *names)

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("kill-server")


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    try:
        yield opened
    finally:
        for terminal in opened:
            terminal.close()


CONVERSATION = """
from p2v_sync.wizard.answers import format_preseed
from p2v_sync.wizard.conversation import converse
from p2v_sync.wizard.flow import DiskChoice, Situation
from p2v_sync.wizard.screens import Screens

disks = (DiskChoice("sda", 4 << 30, "4.0 GiB ST4000NM0033 Z1Z0AB12 ext4+swap"),
         DiskChoice("sdb", 2 << 30, "2.0 GiB ST2000NM0033 Z1Z0AB34 xfs"))
found = Situation(hostname="web01", disks=disks, interfaces=(("eno1", "link up"),),
                  is_online=True, memory=8 << 30, cpus=4)
check = lambda key, values: "no such host" if values.get("target") == "h:/wrong" else ""
values = converse(Screens(), {}, found, check)
open("answers.toml", "w").write(format_preseed(values))
print("written")
"""


def test_all_kinds_of_pages_by_keys(tmp_path: Path, terminals: list[Terminal]) -> None:
    (tmp_path / "talk.py").write_text(CONVERSATION)
    python = f"cd {tmp_path} && PYTHONPATH={ROOT}:{ROOT / 'receiver'} {sys.executable} talk.py"
    terminals.append(terminal := Terminal(python, tmp_path))
    terminal.wait_for("How does this machine reach the host?", "Leave")
    terminal.keys("Enter")
    terminal.wait_for("Where does the copy go?", "Back")
    terminal.keys("h:/wrong", "Enter")
    terminal.wait_for("no such host")
    terminal.keys("Enter")
    terminal.wait_for("Where does the copy go?")
    terminal.keys("C-u", "tcp://h:7720", "Enter")
    terminal.wait_for("The token that")
    terminal.keys("secret", "Enter")
    screen = terminal.wait_for("Which disks are copied?", "[*] sda  4.0 GiB ST4000NM0033", "Back")
    assert "secret" not in screen
    terminal.keys("Down", "Space", "Enter")
    terminal.wait_for("What shall be done?")
    terminal.keys("Escape")  # back, and what was chosen is still chosen
    terminal.wait_for("Which disks are copied?", "[ ] sdb")
    terminal.keys("Enter")
    terminal.wait_for("What shall be done?")
    terminal.keys("s", "Enter")
    terminal.wait_for("Name of the job", "web01")
    terminal.keys("Enter")
    terminal.wait_for("What happens when all went well?")
    terminal.keys("p", "Enter")
    terminal.wait_for("Start", "sda (4.0 GiB)")
    terminal.keys("Enter")
    terminal.wait_for("written")
    answers = parse_preseed((tmp_path / "answers.toml").read_bytes(), "answers.toml")
    assert {key: answer.value for key, answer in answers.items()} == {
        "network.mode": "none",
        "target": "tcp://h:7720",
        "login.token": "secret",
        "disks": ("sda",),
        "action": "sync",
        "name": "web01",
        "post": "poweroff",
    }
