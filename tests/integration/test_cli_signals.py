"""Ctrl-C, SIGTERM and kill -9, at either end; the same command goes on.

Kills at random moments are in tests/torture/test_kill.py.
"""

import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from p2v_sync.units import MIB
from tests.integration.cli import BIN, Lab, Running, assert_equal, stop_when

STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_stop_says_that_nothing_is_lost_and_how_to_go_on(
    lab: Lab, number: signal.Signals, code: int
) -> None:
    image = lab.noise("my disk.img", size=8 * MIB)
    running = lab.start("sync", image, lab.out, "--rate", "2M")
    running.until_it_says("begins")
    time.sleep(0.5)
    running.signal(number)
    began = time.monotonic()
    done = running.wait(code)
    assert time.monotonic() - began < 10
    first, second = done.err.splitlines()[-2:]
    assert first == "p2v-sync: interrupted: nothing is lost"
    assert second == f"  go on with: p2v-sync sync '{image}' {lab.out} --rate 2M"
    assert "failed" not in done.err
    disk = lab.status()
    assert (disk["state"], disk["running"], disk["last_error"]) == ("interrupted", False, None)
    # The line that was said is a command.
    again = lab.p2v(*shlex.split(second.removeprefix("  go on with: p2v-sync "))[:-2])
    assert "initial pass 1 resumes" in again.err
    assert_equal(image, lab.out / "my_disk" / "my_disk.img")


def test_ctrl_c_in_the_background_of_a_script(lab: Lab) -> None:
    image = lab.noise(size=8 * MIB)
    script = f'p2v-sync sync "{image}" "{lab.out}" --rate 1M & sleep 2; kill -INT $!; wait $!'
    running = Running(
        ["bash", "-c", script.replace("p2v-sync", str(BIN / "p2v-sync"), 1)],
        lab.root / "script",
        lab.environ(),
    )
    done = running.wait(130)
    assert "nothing is lost" in done.err


def test_ctrl_c_during_verify(lab: Lab) -> None:
    image = lab.noise(size=64 * MIB)
    lab.sync(image, "--verify", "none")
    running = lab.start("verify", "noise")
    time.sleep(0.9)
    running.signal(signal.SIGINT)
    running.process.wait(20)
    assert running.process.returncode in (0, 130, -2)
    assert "Traceback" not in running.err or running.process.returncode == -2
    lab.p2v("verify", "noise")


def test_kill_9_of_the_sender_to_a_directory(lab: Lab) -> None:
    image = lab.noise(size=24 * MIB)
    running = lab.start("sync", image, lab.out, "--json", "--rate", "3M")
    running.until(lambda: "checkpoint_done" in running.out)
    durable = lab.status()["done"]
    assert durable > 0
    (receiver,) = running.children()
    running.kill()
    disk = lab.status()
    assert (disk["state"], disk["running"]) == ("interrupted", False)
    done = lab.sync(image)
    assert is_over(receiver), "the receiver outlives its sender"
    assert done.named("pass_started")[0]["resumed"]
    (finished,) = done.named("pass_finished")
    assert finished["counters"]["same"] >= durable
    assert finished["counters"]["sent"] <= 24 * MIB - durable
    assert finished["number"] == 1
    assert_equal(image, lab.replica("noise"))


def test_kill_9_of_the_receiver_in_a_directory(lab: Lab) -> None:
    image = lab.noise(size=16 * MIB)
    running = lab.start("sync", image, lab.out, "--json", "--rate", "4M")
    stop_when(running, 0.3)
    (receiver,) = running.children()
    os.kill(receiver, signal.SIGKILL)
    done = running.wait()
    assert len(done.named("reconnecting")) == 1
    assert [event["resumed"] for event in done.named("pass_started")] == [False, True]
    assert len(done.named("pass_finished")) == 1
    assert_equal(image, lab.replica("noise"))


def is_over(pid: int) -> bool:
    """Gone, or waiting only for the init process to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("how", ["--plaintext", "tls"])
def test_kill_9_of_the_listener(lab: Lab, how: str) -> None:
    """Started again on the same port with the same token: the same run goes on."""
    image, token = lab.noise(size=16 * MIB), lab.root / "token"
    options: list[str | Path] = ["--token-file", token, *([how] if how != "tls" else [])]
    listener = lab.listen(*options)
    running = lab.start(
        "sync", image, listener.url, "--json", "--rate", "4M", "--token-file", token
    )
    stop_when(running, 0.3)
    listener.kill()
    running.until(lambda: "reconnecting" in running.out)
    lab.listen(*options, "--port", str(listener.port))
    done = running.wait()
    reasons = [event["reason"] for event in done.named("reconnecting")]
    assert 1 <= len(reasons) <= 6
    assert len(done.named("pass_finished")) == 1
    assert done.err == ""
    assert_equal(image, lab.replica("noise"))


def test_a_receiver_that_never_comes_back_is_given_up(lab: Lab) -> None:
    image, listener = lab.noise(size=16 * MIB), lab.listen()
    running = lab.start(
        "sync", image, listener.url, "--rate", "4M", "--retry-for", "2s", P2V_TOKEN=listener.token
    )
    running.until_it_says("begins")
    time.sleep(0.5)
    listener.kill()
    done = running.wait(31)
    assert "next try in 1.0 s, nothing is lost" in done.err
    assert done.complaints == [done.err.splitlines()[-2]]


def test_kill_9_just_before_the_end_of_every_pass(lab: Lab) -> None:
    """The last checkpoint, the end record and the verification are the busiest moments."""
    image = lab.noise(size=4 * MIB)
    for delay in (0.0, 0.02, 0.05, 0.1):
        running = lab.start("sync", image, lab.out, "--json")
        running.until(lambda running=running: "pass_started" in running.out)  # type: ignore[misc]
        time.sleep(delay)
        running.kill()
    lab.sync(image)
    assert_equal(image, lab.replica("noise"))
