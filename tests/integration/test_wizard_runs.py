"""Runs of ``p2v-sync wizard`` that asks nothing: what they leave at the host, and bad input.

Each bad input is one line with an exit code of its own, and fires the fail hook.
"""

import errno
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from p2v_sync.cli import main
from p2v_sync.errors import CowTooSmall, NetworkError
from p2v_sync.units import GIB, MIB
from p2v_sync.wizard import network
from p2v_sync.wizard.flow import DiskChoice, Situation
from tests.contract.lab import patterned, ram_directory
from tests.integration.cli import Lab, change
from tests.integration.sshd import login, make_key, needs_sshd, running_sshd

DEFAULTS = {"action": "sync", "name": "box", "network.mode": "none"}


class Server:
    """A machine with one disk, sda: a file, because a device's name is all that is known of it."""

    def __init__(self, directory: Path, lab: Lab, patch: pytest.MonkeyPatch) -> None:
        self.lab = lab
        self.disk = directory / "sda"
        self.disk.write_bytes(patterned(8))
        name = str(self.disk.relative_to("/dev")).replace("/", "!")
        self.situation = Situation(
            hostname="box", disks=(DiskChoice(name, 8 * MIB, ""),), memory=GIB, is_online=True
        )
        patch.setattr("p2v_sync.cli.wizard.read_situation", lambda: self.situation)
        patch.setattr("p2v_sync.wizard.live.MEDIUM_PRESEED", lab.root / "none")
        self.log = lab.root / "log"
        self.failed = lab.root / "failed"
        self._numbers = itertools.count()

    def preseed(self, answers: Mapping[str, str]) -> Path:
        """``login_token`` for login.token."""
        hook = f'hooks.fail = "echo $P2V_STATUS >{self.failed}"'
        given = {key.replace("_", ".", 1): value for key, value in answers.items()}
        values = {**DEFAULTS, "target": str(self.lab.out), **given}
        lines = [f'{key} = "{value}"' for key, value in values.items()]
        path = self.lab.root / f"site{next(self._numbers)}.toml"
        path.write_text("\n".join([*lines, hook, "auto = true", ""]))
        return path

    def run(self, **answers: str) -> None:
        self.failed.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("P2V_LOG", str(self.log))
            assert main(["wizard", "--preseed", str(self.preseed(answers))]) == 0
        assert not self.failed.exists()

    def fails(self, code: int, say: str, **answers: str) -> str:
        """What was said, the one complaint; the fail hook must have been told the same."""
        self.failed.unlink(missing_ok=True)
        arguments = ("wizard", "--preseed", self.preseed(answers))
        done = self.lab.fails(code, *arguments, say=say, P2V_LOG=str(self.log))
        assert self.failed.read_text() == f"{code}\n"
        return done.err

    def logs(self, job: str = "box") -> list[Path]:
        return sorted((self.lab.out / job).glob("p2v-sync-*.log"))

    def replica(self, job: str = "box") -> Path:
        return self.lab.out / job / "sda.img"


@pytest.fixture
def server(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with ram_directory() as directory:
        if not directory.is_relative_to("/dev"):
            pytest.skip("needs /dev/shm")
        yield Server(directory, lab, monkeypatch)


# What is left at the host.


def test_the_log_goes_beside_the_images(server: Server) -> None:
    server.run()
    assert server.replica().read_bytes() == server.disk.read_bytes()
    (log,) = server.logs()
    assert "sda: initial pass 1 complete" in log.read_text()
    assert "all went well" in log.read_text()


def test_the_log_of_a_failure_too(server: Server) -> None:
    server.fails(80, "the hook post: sh failed with status 1", hooks_post="false")
    (log,) = server.logs()
    assert "failed with status 80" in log.read_text()


def test_a_log_that_can_not_be_sent_changes_nothing(server: Server) -> None:
    """And what is asked before the run is no job after which ``--once`` ends."""
    server.run()
    change(server.disk, 4 * MIB, b"changed")
    listener = server.lab.listen("--once")
    until_it_has_ended = f"while test -e /proc/{listener.pid}/exe; do sleep 0.1; done"
    server.run(target=listener.url, login_token=listener.token, hooks_post=until_it_has_ended)
    assert server.replica().read_bytes() == server.disk.read_bytes()
    assert len(server.logs()) == 1
    log = server.log.read_text()
    assert "the log can't be sent" in log
    assert "sent 4.0 KiB" in log
    assert "compared block by block" not in log, "what was asked leaves the image as it was"


def test_the_ledger_is_where_the_preseed_says(server: Server) -> None:
    state = server.lab.root / "ledger"
    server.run(state=str(state))
    assert server.lab.status("--state", state)["job"] == "box"


# Two machines.


def test_p10_the_second_machine_of_a_name_is_refused_before_anything_is_written(
    server: Server,
) -> None:
    server.run()
    first = server.disk.read_bytes()
    before = {each.name: each.read_bytes() for each in server.replica().parent.glob("sda.[im]*")}
    server.disk.write_bytes(Random(2).randbytes(8 * MIB))
    ledger = str(server.lab.root / "ledger")  # of the second machine
    said = server.fails(47, "another machine's", state=ledger)
    assert "give this machine's job another name" in said
    assert len(server.logs()) == 1, "it is no log of that machine's"
    after = {each.name: each.read_bytes() for each in server.replica().parent.glob("sda.[im]*")}
    assert before == after
    server.run(name="box-2", state=ledger)
    assert server.replica("box-2").read_bytes() == server.disk.read_bytes()
    assert server.replica().read_bytes() == first


# Bad input.


def test_no_disks(server: Server) -> None:
    server.situation = replace(server.situation, disks=())
    server.fails(14, "no disk that could be copied")


def test_no_network(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2v_sync.wizard.live.interface_names", list)
    server.fails(38, "no network interface", network_mode="dhcp")


def test_no_answer_by_dhcp(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in (
        ("ip", "exit 0"),
        ("dhclient", "echo 'No DHCPOFFERS received.' >&2; exit 2"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("p2v_sync.wizard.live.interface_names", lambda: ["eno1"])
    server.fails(38, "no DHCP server answered on eno1", network_mode="dhcp")


def test_a_dhcp_client_that_never_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, script in (("ip", "exit 0"), ("dhclient", "exec sleep 600")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(network, "_DHCP_WITHIN_S", 1.0)
    with pytest.raises(NetworkError, match="no DHCP server answered on eno1"):
        network.bring_up({"network.mode": "dhcp"}, ["eno1"])


def test_a_receiver_that_is_not_there(server: Server) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    says = r"Connection refused\s+is p2v-receiver listen running there"
    server.fails(31, says, target=f"tcp://127.0.0.1:{port}", login_token="x")


def test_a_receiver_that_is_full(server: Server, cleanup: ExitStack, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", str(small)], check=True)
    cleanup.callback(subprocess.run, ["umount", str(small)], check=True)
    server.fails(41, "(?i)no space left|full", target=str(small))


def test_a_wrong_token(server: Server) -> None:
    listener = server.lab.listen()
    server.fails(33, "does not accept the token", target=listener.url, login_token="wrong")


def test_too_little_memory_for_the_overlay(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: object, **__: object) -> None:
        raise CowTooSmall("128.0 MiB do not fit into 64.0 MiB of free memory", hint="--cow-dir")

    monkeypatch.setattr("p2v_sync.convert.create_overlays", create)
    server.fails(79, "do not fit into .* of free memory", action="convert")


def test_a_disk_that_dies_midway(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def read(fd: int, buffers: Sequence[memoryview], offset: int, *flags: int) -> int:
        is_it = os.readlink(f"/proc/self/fd/{fd}") == str(server.disk)
        if is_it and offset >= 4 * MIB and server.replica().exists():
            raise OSError(errno.ENXIO, "No such device or address")
        return preadv(fd, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", read)
    server.fails(13, "is gone: the disk no longer answers")
    (log,) = server.logs()
    assert "failed with status 13" in log.read_text(), "although it can't be read any more"


def test_a_typo_is_named_with_its_line(server: Server) -> None:
    said = server.fails(6, r"site\d+\.toml:5: there is no taget", taget="h:/d")
    assert "did you mean target?" in said


def test_a_stick_that_is_not_there(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2v_sync.wizard.stick._APPEARS_WITHIN_S", 0.0)
    server.fails(60, "there is no /dev/p2v-none", state="/dev/p2v-none")


class TestAnSshHost:
    pytestmark = needs_sshd

    def test_a_key_that_is_not_known_and_a_login_that_is_not_let_in(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with (
            running_sshd(tmp_path / "sshd", monkeypatch) as sshd,
            login("p2v-wizard", "/bin/sh", tmp_path / "home") as user,
        ):
            target = f"ssh://{user}@127.0.0.1:{sshd.port}{server.lab.out}"
            key = sshd.known_hosts.read_text().strip()
            sshd.known_hosts.unlink()
            said = server.fails(37, "key of .* is not known: ssh-ed25519 SHA256:", target=target)
            assert "compare it" in said
            stranger = str(make_key(tmp_path / "stranger"))
            given = {"target": target, "login_host_key": key}
            server.fails(33, "did not let us in", login_identity=stranger, **given)
            server.run(**given)
            assert server.replica().read_bytes() == server.disk.read_bytes()
            assert len(server.logs()) == 1
