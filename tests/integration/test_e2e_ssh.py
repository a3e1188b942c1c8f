"""The whole tool against a real sshd, in the forms that a user types."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_sync.units import MIB
from tests.integration.cli import Lab, assert_equal, change, stop_when
from tests.integration.sshd import Sshd, make_key, needs_sshd, running_sshd

pytestmark = needs_sshd


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    with running_sshd(tmp_path / "sshd", monkeypatch) as server:
        yield server


def test_a_url_and_what_it_means_next_time(lab: Lab, sshd: Sshd) -> None:
    image = lab.image()
    url = f"ssh://root@127.0.0.1:{sshd.port}{lab.out}"
    assert lab.sync(image, target=url).err == ""
    assert_equal(image, lab.replica("web"))
    change(image, 100, b"changed")
    (finished,) = lab.sync(image, "--verify", "full", target=url).named("pass_finished")
    assert 0 < finished["counters"]["sent"] <= 256 * 1024
    assert_equal(image, lab.replica("web"))
    lab.p2v("verify", "web")
    assert lab.status()["target"] == url


def test_host_colon_directory_by_way_of_the_config(lab: Lab, sshd: Sshd) -> None:
    image = lab.image(size=MIB)
    sshd.config.write_text(f"Host xen1\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User root\n")
    lab.sync(image, target=f"xen1:{lab.out}")
    (finished,) = lab.sync(image, target=f"root@xen1:{lab.out}").named("pass_finished")
    assert finished["counters"]["sent"] == 0
    assert_equal(image, lab.replica("web"))


def test_kill_9_of_either_end(lab: Lab, sshd: Sshd) -> None:
    image = lab.noise(size=16 * MIB)
    url = f"ssh://root@127.0.0.1:{sshd.port}{lab.out}"
    running = lab.start("sync", image, url, "--json", "--rate", "4M")
    stop_when(running, 0.3)
    running.kill()
    running = lab.start("sync", image, url, "--json", "--rate", "4M")
    stop_when(running, 0.6)
    lock = lab.replica("noise").with_suffix(".lock").read_text()
    receiver = int(lock.split('"pid": ')[1].split(",")[0].rstrip("}"))
    assert f"{os.getpid()}" != str(receiver)
    os.kill(receiver, signal.SIGKILL)
    done = running.wait()
    assert len(done.named("reconnecting")) == 1
    assert done.named("pass_finished")[0]["number"] == 1
    assert_equal(image, lab.replica("noise"))


def test_refusals(lab: Lab, sshd: Sshd) -> None:
    image = lab.image(size=MIB)
    url = f"ssh://root@127.0.0.1:{sshd.port}{lab.out}"
    to = ("sync", image, url)
    known = sshd.known_hosts.read_text()
    sshd.known_hosts.write_text("")
    lab.fails(37, *to, say=r"host key.*\n  ")
    sshd.know_host(make_key(lab.root / "another"))
    lab.fails(37, *to, say=r"HOST KEY .* HAS CHANGED.*\n  ")
    sshd.known_hosts.write_text(known)
    lab.fails(33, *to, "--identity", make_key(lab.root / "stranger"), say="root")
    lab.fails(3, "sync", image, f"root@127.0.0.1:{sshd.port}/x", say="a port or a directory")
    lab.fails(3, "sync", image, "root@127.0.0.1:", say="no directory is named")
    lab.fails(44, "sync", image, f"ssh://root@127.0.0.1:{sshd.port}/nope/x", say="there is no dir")
    assert list(lab.out.iterdir()) == []
    sshd.stop()
    lab.fails(31, *to, say="refused")
    sshd.start()
    lab.sync(image, target=url)
