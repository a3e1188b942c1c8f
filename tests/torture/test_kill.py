"""SIGKILL at any moment, of the sender, the receiver or sshd's processes: nothing is lost.

Real processes over every transport, several jobs at once.  A killed receiver or sshd is noticed by
the sender, which goes on by itself; a killed sender is started again with the same command.
"""

import contextlib
import hashlib
import os
import random
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2v_sync.units import GIB, KIB, MIB
from tests.conftest import LONG, Tell
from tests.integration.cli import Lab, Listener, Running, assert_equal, fill, progress
from tests.integration.sshd import Sshd, needs_sshd

pytestmark = [*needs_sshd, pytest.mark.timeout(3600 if LONG else 180)]

# A run's first checkpoint comes after a second (engine/copy.py), and hardly one lives to see a
# later one: what a second lets through is the least that can be called a checkpoint's worth.
CHECKPOINT_S = 1.0
SHOWN_EVERY_S = 0.25  # how old a killed run's last figures may be
PATIENCE_S = 300.0 if LONG else 60.0
GIVEN_UP = (31, 32, 34)  # ConnectFailed, PeerLost, BootstrapFailed


class Arena:
    """One job over one transport, and who can be killed in it."""

    transport = "local"

    def __init__(self, lab: Lab, name: str, size: int, rate: int) -> None:
        self.lab = lab
        self.name, self.size, self.rate = name, size, rate
        self.chance = random.Random(name)
        self.image = lab.noise(f"{name}.img", size=size, seed=len(name))
        self.checksum = _sha256(self.image)
        self.passes, self.due = 1, size
        self.kills: Counter[str] = Counter()
        self.sent = 0
        self.lost_sight = 0  # bytes that killed runs may have sent after their last figures
        self.running = self.start()

    @property
    def target(self) -> str:
        return str(self.lab.out)

    @property
    def options(self) -> tuple[str | Path, ...]:
        return ()

    @property
    def environ(self) -> dict[str, str]:
        return {}

    def start(self) -> Running:
        command = ("sync", self.image, self.target, "--json", *self.options)
        return self.lab.start(*command, "--rate", str(self.rate), **self.environ)

    def sent_by_run(self) -> int:
        return max((event["counters"]["sent"] for event in progress(self.running)), default=0)

    def go_on(self) -> None:
        """The run ended by itself.

        One that never had a session gives up at once when its receiver is killed: it can't know
        that the address is right.  Any other has outrun its killers.
        """
        if "pass_started" not in self.running.out:
            self.running.wait(self.running.process.returncode)
            assert self.running.process.returncode in GIVEN_UP, self.running.err
            self.running = self.start()
        else:
            self.running.wait()
            self.next_pass()

    def next_pass(self) -> None:
        """The source changes, all but what a disk is known by."""
        self.sent += self.sent_by_run()
        assert _sha256(self.image) == self.checksum, "P1: the source was changed"
        length = self.size - 2 * MIB
        fill(self.image, self.chance, MIB, length)
        self.checksum = _sha256(self.image)
        self.passes, self.due = self.passes + 1, self.due + length
        self.running = self.start()

    # Killing

    def torment(self, kills: int) -> None:
        """Kill so often, at random moments."""
        while self.kills.total() < kills:
            # A new sender takes the longest to start.
            victim = self.chance.choice(["sender", *self.others(), *self.others()])
            self.wait_for_a_moment(victim)
            if self.running.process.poll() is not None:
                self.go_on()
            elif self.strike(victim):
                self.kills[victim] += 1
        self.running.kill()
        self.note_sent()

    def wait_for_a_moment(self, victim: str) -> None:
        """Some time after blocks began to flow, or anywhere: in the greeting, say.

        A receiver mostly dies after a checkpoint, so that its sender does not wait ever longer
        before it comes back.
        """
        if self.chance.random() < 0.2:
            time.sleep(self.chance.uniform(0.0, 0.7))
            return
        words, so_far = ("checkpoint_done", "") if victim != "sender" else ("progress", self.out())
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.out().removeprefix(so_far):
            if self.running.process.poll() is not None:
                return
            assert time.monotonic() < deadline, f"it does not go on: {self.running.out}"
            time.sleep(0.05)
        time.sleep(self.chance.uniform(0.0, 0.4))

    def out(self) -> str:
        """What was said since the last session began or ended."""
        return re.split(r'"event": "(?:pass_started|reconnecting)"', self.running.out)[-1]

    def strike(self, victim: str) -> bool:
        """False when there is no such process just now."""
        if victim != "sender":
            return self.kill(victim)
        self.running.kill()
        self.note_sent()
        self.running = self.start()
        return True

    def note_sent(self) -> None:
        # Killed while it read back what it had written: the next run makes another pass.
        self.passes += '"pass_finished"' in self.running.out
        self.sent += self.sent_by_run()
        self.lost_sight += int(SHOWN_EVERY_S * self.rate)

    def others(self) -> list[str]:
        return ["receiver"]

    def kill(self, victim: str) -> bool:
        del victim
        receivers = self.running.children()
        for receiver in receivers:
            _kill(receiver)
        return bool(receivers)

    # The end

    def finish(self) -> None:
        done = self.lab.sync(
            self.image, *self.options, "--verify", "full", target=self.target, **self.environ
        )
        (finished,) = done.named("pass_finished")
        # Another pass only behind one that was complete when its sender died, so it sends nothing.
        begun_anew = finished["number"] - self.passes
        assert begun_anew == 0 or (begun_anew, finished["counters"]["sent"]) == (1, 0)
        self.sent += finished["counters"]["sent"]
        replica = self.lab.replica(self.image.stem)
        assert_equal(self.image, replica)
        assert _sha256(self.image) == self.checksum, "P1: the source was changed"
        with contextlib.closing(sqlite3.connect(replica.with_suffix(".manifest"))) as manifest:
            assert manifest.execute("pragma integrity_check").fetchone() == ("ok",)

    @property
    def resent(self) -> int:
        return self.sent + self.lost_sight - self.due

    def close(self) -> None:
        self.running.end()


class TcpArena(Arena):
    transport = "tcp"

    def __init__(self, lab: Lab, name: str, size: int, rate: int) -> None:
        self.token = lab.root / f"{name}.token"
        self.listener: Listener = lab.listen("--token-file", self.token)
        super().__init__(lab, name, size, rate)

    @property
    def target(self) -> str:
        return self.listener.url

    @property
    def options(self) -> tuple[str | Path, ...]:
        return "--token-file", self.token

    def kill(self, victim: str) -> bool:
        del victim
        self.listener.kill()
        time.sleep(self.chance.choice([0.0, 0.0, 0.5]))
        port = str(self.listener.port)
        self.listener = self.lab.listen("--token-file", self.token, "--port", port)
        return True


class SshArena(Arena):
    transport = "ssh"

    def __init__(self, lab: Lab, name: str, size: int, rate: int) -> None:
        (lab.root / f"{name}.sshd").mkdir()
        self.sshd = Sshd(lab.root / f"{name}.sshd")
        super().__init__(lab, name, size, rate)

    @property
    def target(self) -> str:
        return f"ssh://root@127.0.0.1:{self.sshd.port}{self.lab.out}"

    @property
    def environ(self) -> dict[str, str]:
        return {"HOME": str(self.sshd.home)}

    def others(self) -> list[str]:
        return ["receiver", "ssh"]

    def kill(self, victim: str) -> bool:
        """Below the listening sshd hangs one of a connection's own, and below that the receiver."""
        connections = _children(self.sshd.pid)
        if victim == "ssh":
            found = connections
        else:
            found = [child for each in connections for child in _children(each)]
        for pid in found:
            _kill(pid)
        return bool(found)

    def close(self) -> None:
        super().close()
        self.sshd.stop()


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def arenas(lab: Lab) -> Iterator[Arena]:
    size, rate = (GIB, 5 * MIB) if LONG else (32 * MIB, 2 * MIB)
    for kind in (Arena, TcpArena, SshArena):
        for number in range(1 if LONG else 3):
            yield kind(lab, f"{kind.transport}{number}", size, rate)


def test_p1_p2_p3_random_kills_lose_nothing_and_send_little_twice(lab: Lab, tell: Tell) -> None:
    wanted = 500 if LONG else 100
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        all_of_them = []
        for arena in arenas(lab):
            stack.callback(arena.close)
            all_of_them.append(arena)
        share = -(-wanted // len(all_of_them))
        list(pool.map(lambda arena: arena.torment(share), all_of_them))
        list(pool.map(lambda arena: arena.finish(), all_of_them))
    kills = sum((arena.kills for arena in all_of_them), Counter())
    resent, worth = sum(arena.resent for arena in all_of_them), int(CHECKPOINT_S * arena.rate)
    victims = ", ".join(f"{count} of {victim}" for victim, count in kills.items())
    tell(
        f"{kills.total()} kills ({victims}), {len(all_of_them)} disks of "
        f"{arena.size // MIB} MiB over local, tcp and ssh; at most "
        f"{resent // kills.total() // KIB} KiB sent again a kill, where a checkpoint is worth "
        f"{worth // KIB} KiB"
    )
    assert kills.total() >= wanted
    assert kills.keys() == {"sender", "receiver", "ssh"}
    # Two checkpoints' worth a kill are allowed; but a life is hardly longer, so that would prove
    # nothing.  In fact only what was on its way is lost: the receiver, or the next one, records
    # what came.
    assert resent <= kills.total() * worth // 2
