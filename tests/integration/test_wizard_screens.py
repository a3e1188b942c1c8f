"""The wizard's screens as somebody sees them: real dialog(1) on a terminal of 80x24."""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from p2v_sync import jobs
from p2v_sync.config import SyncConfig
from p2v_sync.wizard.answers import parse_preseed
from p2v_sync.wizard.settings import Value
from tests.contract.lab import patterned, ram_directory
from tests.integration.sshd import login, needs_sshd, running_sshd

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0

pytestmark = [
    *(
        pytest.mark.skipif(shutil.which(each) is None, reason=f"needs the program {each}")
        for each in ("dialog", "tmux")
    ),
    pytest.mark.timeout(900),  # a page takes seconds where the machine is busy
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

    def wait_until_gone(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text in (screen := self.screen()):
            assert time.monotonic() < deadline, f"still {text!r} on\n{screen}"
            time.sleep(0.1)

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


def start(script: str, directory: Path, terminals: list[Terminal], **environ: str) -> Terminal:
    (directory / "talk.py").write_text(script)
    path = f"{ROOT}:{ROOT / 'receiver'}"
    settings = " ".join(f"{key}={value}" for key, value in {"PYTHONPATH": path, **environ}.items())
    command = f"cd {directory} && env {settings} {sys.executable} talk.py"
    terminals.append(terminal := Terminal(command, directory))
    return terminal


def answers_in(directory: Path) -> dict[str, Value]:
    answers = parse_preseed((directory / "answers.toml").read_bytes(), "answers.toml")
    return {key: answer.value for key, answer in answers.items()}


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
values = converse(Screens(), {}, lambda *_: found, check)
open("answers.toml", "w").write(format_preseed(values))
print("\\n\\n\\nall is answered")
"""


def test_all_kinds_of_pages_by_keys(tmp_path: Path, terminals: list[Terminal]) -> None:
    terminal = start(CONVERSATION, tmp_path, terminals)
    terminal.wait_for("How does this machine reach the host?", "Leave")
    terminal.keys("Enter")
    terminal.wait_for("Where does the copy go?", "Back")
    terminal.keys("h:/wrong", "Enter")
    terminal.wait_for("no such host")
    terminal.keys("Enter")
    terminal.wait_for("Where does the copy go?")
    terminal.keys("C-u", "tcp://h:7720", "Enter")
    terminal.wait_for("python3 p2v-receiver.pyz listen --port 7720 --dir")
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
    terminal.wait_for("all is answered")
    assert answers_in(tmp_path) == {
        "network.mode": "none",
        "target": "tcp://h:7720",
        "login.token": "secret",
        "disks": ("sda",),
        "action": "sync",
        "name": "web01",
        "post": "poweroff",
    }


def test_a_vlan_of_a_bond_by_keys(tmp_path: Path, terminals: list[Terminal]) -> None:
    two = CONVERSATION.replace('("eno1", "link up"),', '("eno1", "link up"), ("eno2", "no link"),')
    terminal = start(two, tmp_path, terminals)
    terminal.wait_for("How does this machine reach the host?")
    terminal.keys("s", "Enter")
    terminal.wait_for("joined to one", "[ ] eno1  link up")
    terminal.keys("Space", "Enter")
    terminal.wait_for("must be two interfaces or more")
    terminal.keys("Enter")
    terminal.wait_for("joined to one")
    terminal.keys("Space", "Down", "Space", "Enter")
    terminal.wait_for("VLAN")
    terminal.keys("7", "Enter")
    terminal.wait_for("address and prefix")
    terminal.keys("192.0.2.7/24", "Enter")
    terminal.wait_for("the router")
    terminal.keys("Enter")
    terminal.wait_for("name servers")
    terminal.keys("Enter")
    terminal.wait_for("Where does the copy go?")


SESSION = """
import pathlib
from p2v_sync.wizard import live
from p2v_sync.wizard.answers import format_preseed
from p2v_sync.wizard.flow import DiskChoice, Situation
from p2v_sync.wizard.screens import Screens

disk = pathlib.Path("DISK")
name = str(disk.relative_to("/dev")).replace("/", "!")
found = Situation(hostname="box", disks=(DiskChoice(name, disk.stat().st_size, "a file"),),
                  is_online=True)
values = live.Session(live.Given({}), lambda: found, Screens).values()
open("answers.toml", "w").write(format_preseed(values))
print("\\n\\n\\nall is answered")
"""


@pytest.fixture
def disk() -> Iterator[Path]:
    with ram_directory() as directory:
        if not directory.is_relative_to("/dev"):
            pytest.skip("needs /dev/shm")
        path = directory / "sda"
        path.write_bytes(patterned(4))
        yield path


def copy(disk: Path, target: Path, state: Path) -> None:
    config = SyncConfig((disk,), str(target), state, job="box", verify="none")
    jobs.sync(config, lambda _: None, None)


class TestTheHost:
    pytestmark = needs_sshd

    def test_its_key_the_password_and_what_it_has_of_this_machine(
        self,
        tmp_path: Path,
        terminals: list[Terminal],
        disk: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        target = tmp_path / "target"
        copy(disk, target, tmp_path / "state")
        with (
            running_sshd(tmp_path / "sshd", monkeypatch) as sshd,
            login("p2v-screens", "/bin/sh", tmp_path / "home", password="swordfish") as user,
        ):
            sshd.known_hosts.unlink()
            sshd.authorized.write_text("")
            script = SESSION.replace("DISK", str(disk))
            terminal = start(script, tmp_path, terminals, HOME=str(sshd.home))
            address = f"ssh://{user}@127.0.0.1:{sshd.port}{target}"
            accept_host_key(terminal, address)
            type_password(terminal)
            go_on(terminal)
        values = answers_in(tmp_path)
        assert (values["action"], values["name"], values["target"]) == ("sync", "box", address)


def accept_host_key(terminal: Terminal, address: str) -> None:
    """After a No, which is what Enter alone means: whoever does not read does not agree."""
    terminal.wait_for("How does this machine reach the host?")
    terminal.keys("Enter")
    terminal.wait_for("Where does the copy go?")
    terminal.keys(address, "Enter")
    terminal.wait_for("is not known", "SHA256:", "Is that right")
    terminal.keys("Enter")
    terminal.wait_for("was not accepted")
    terminal.keys("Enter")
    terminal.wait_for("Where does the copy go?", "/target")
    terminal.keys("Enter")
    terminal.wait_for("SHA256:", "Is that right")
    terminal.keys("y")


def type_password(terminal: Terminal) -> None:
    """The second time right."""
    terminal.wait_for("Password of")
    terminal.keys("wrong")
    terminal.wait_for("Password of", "*****")
    assert "wrong" not in terminal.screen()
    terminal.keys("Enter")
    terminal.wait_until_gone("*****")
    terminal.wait_for("Password of")
    terminal.keys("swordfish", "Enter")


def go_on(terminal: Terminal) -> None:
    """With what the host has of this machine, which each page says."""
    terminal.wait_for("Which disks are copied?", "Back")
    terminal.keys("Enter")
    terminal.wait_for("What shall be done?", "box of this machine", "sda: pass 1, complete")
    terminal.keys("Enter")
    terminal.wait_for("Name of the job", "sda: pass 1, complete")
    terminal.keys("Enter")
    terminal.wait_for("What happens when all went well?")
    terminal.keys("Enter")
    terminal.wait_for("Start", "sda: pass 1, complete")
    terminal.keys("Enter")
    terminal.wait_for("all is answered")


def test_a_name_that_is_another_machines(
    tmp_path: Path, terminals: list[Terminal], disk: Path
) -> None:
    target = tmp_path / "target"
    copy(disk, target, tmp_path / "state")
    disk.write_bytes(Random(2).randbytes(disk.stat().st_size))
    terminal = start(SESSION.replace("DISK", str(disk)), tmp_path, terminals)
    terminal.wait_for("How does this machine reach the host?")
    terminal.keys("Enter")
    terminal.wait_for("Where does the copy go?")
    terminal.keys(str(target), "Enter")
    terminal.wait_for("Which disks are copied?", "Back")
    terminal.keys("Enter")
    terminal.wait_for("What shall be done?", "Last sync")
    terminal.keys("s", "Enter")
    terminal.wait_for("Name of the job", "is another machine's", "box-2")
    terminal.keys("C-u", "box", "Enter")
    terminal.wait_for("That won't do", "another name")
    terminal.keys("Enter")
    terminal.wait_for("Name of the job")
    terminal.keys("C-u", "other", "Enter")
    terminal.wait_for("What happens when all went well?")
    assert not (target / "other").exists(), "nothing is made before the summary"
