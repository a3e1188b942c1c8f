"""Links that are cut, swallow everything, stall, crawl, shuffle, and hosts that reboot.

The same run goes on by itself, and target = source.  All of them take their time, so they happen at
once: the first test starts them, each test waits for its own.
"""

import contextlib
import itertools
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from p2v_sync.units import KIB, MIB
from tests.conftest import LONG, Tell
from tests.integration.cli import BIN, Done, Lab, Running, assert_equal, stop_when
from tests.integration.sshd import SSHD, Sshd
from tests.integration.test_tcp import Proxy

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("tc") is None, reason="needs ip and tc (iproute2)"),
    pytest.mark.skipif(SSHD is None, reason="needs sshd (apt-get install openssh-server)"),
    pytest.mark.timeout(600 if LONG else 180),
]

NOTICED_S = 35.0  # a dead peer: wire.SILENCE_LIMIT_S and a heartbeat, and some for a busy machine
REBOOT_S = 60.0 if LONG else 8.0
ENDS_WITHIN_S = 500.0 if LONG else 150.0


class Network:
    """This host, a router, and behind it another host: two network namespaces of our own."""

    _numbers = itertools.count(1)

    def __init__(self, stack: contextlib.ExitStack) -> None:
        number = next(self._numbers)
        self._router, self.host = (f"p2v-{role}-{os.getpid()}-{number}" for role in "rh")
        self._near = f"p2v{os.getpid() % 1000000}-{number}"
        net = f"10.{100 + os.getpid() % 100}.{number}"  # another run of the tests has another
        self.address = f"{net}.6"
        for namespace in (self._router, self.host):
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "delete", namespace)
        router, host = ("-netns", self._router), ("-netns", self.host)
        _ip("link", "add", self._near, "type", "veth", "peer", "near", "netns", self._router)
        _ip(*router, "link", "add", "far", "type", "veth", "peer", "eth0", "netns", self.host)
        for where, name, address in (
            ((), self._near, f"{net}.1/30"),
            (router, "near", f"{net}.2/30"),
            (router, "far", f"{net}.5/30"),
            (host, "eth0", f"{net}.6/30"),
        ):
            _ip(*where, "address", "add", address, "dev", name)
            _ip(*where, "link", "set", name, "up")
        _ip("route", "add", f"{net}.4/30", "via", f"{net}.2")
        _ip(*host, "route", "add", "default", "via", f"{net}.5")
        self.forward(True)

    def forward(self, on: bool) -> None:
        """A router that forwards nothing swallows everything: no reset, no ICMP."""
        setting = f"echo {int(on)} >/proc/sys/net/ipv4/ip_forward"
        _ip("netns", "exec", self._router, "sh", "-c", setting)

    def throttle(self, rate: str) -> None:
        shape = ("tbf", "rate", rate, "burst", "16k", "latency", "400ms")
        subprocess.run(["tc", "qdisc", "add", "dev", self._near, "root", *shape], check=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30)


class Shuffler(Proxy):
    """Connections arrive in another order than they were made, even after later sessions' ones."""

    def _accept(self) -> None:
        delays = itertools.cycle((1.2, 0.0, 0.6, 0.0, 0.3))
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._door.accept()
                late = threading.Timer(next(delays), self._join, (here,))
                late.daemon = True
                late.start()


class Scene:
    """A user with a disk to copy; ``run`` must end well, whatever happens on the way."""

    def __init__(self, root: Path, name: str, stack: contextlib.ExitStack) -> None:
        self.name, self.stack = name, stack
        self.lab = Lab(root)
        stack.callback(self.lab.__exit__)
        self.token = root / "token"

    def network(self) -> tuple[Network, str]:
        """A receiver in a network behind a router, and where to reach it."""
        network = Network(self.stack)
        argv = ("ip", "netns", "exec", network.host, str(BIN / "p2v-receiver"))
        options = ("--bind", network.address, "--token-file", self.token)
        listener = self.lab.listen(*options, argv=argv)
        return network, f"tcp://{network.address}:{listener.port}"

    def start(self, url: str, size: int, rate: str, **environ: str) -> Running:
        self.image = self.lab.noise("disk.img", size=size, seed=len(self.name))
        options = ("--json", "--rate", rate, "--block-size", "64K", "--token-file", self.token)
        state = ("--state", self.lab.root / "state")
        return self.lab.start("sync", self.image, url, *options, *state, **environ)

    def finish(self, running: Running) -> Done:
        running.process.wait(ENDS_WITHIN_S)
        done = running.wait()
        assert_equal(self.image, self.lab.replica("disk"))
        (finished,) = done.named("pass_finished")
        assert finished["number"] == 1
        return done


def reconnects(running: Running) -> int:
    return running.out.count('{"event": "reconnecting"')


def until_it_reconnects(running: Running) -> float:
    """How long it took to notice that the link is dead."""
    began, before = time.monotonic(), reconnects(running)
    running.until(lambda: reconnects(running) > before)
    return time.monotonic() - began


def black_hole(scene: Scene) -> str:
    network, url = scene.network()
    running = scene.start(url, 12 * MIB, "2M")
    stop_when(running, 0.3)
    network.forward(False)
    noticed_s = until_it_reconnects(running)
    network.forward(True)
    done = scene.finish(running)
    assert noticed_s < NOTICED_S
    sent = done.named("pass_finished")[0]["counters"]["sent"]
    return (
        f"packets dropped at 30 %, noticed after {noticed_s:.0f} s; {sent // KIB} KiB sent in all"
    )


def black_hole_over_ssh(scene: Scene) -> str:
    root = scene.lab.root / "sshd"
    root.mkdir()
    sshd = Sshd(root)
    scene.stack.callback(sshd.stop)
    proxy = Proxy(sshd.port)
    scene.stack.callback(proxy.close)
    sshd.known_hosts.write_text(
        sshd.known_hosts.read_text().replace(f":{sshd.port} ", f":{proxy.target.port} ")
    )
    url = f"ssh://root@127.0.0.1:{proxy.target.port}{scene.lab.out}"
    running = scene.start(url, 12 * MIB, "2M", HOME=str(sshd.home))
    stop_when(running, 0.3)
    proxy.black_hole.set()
    noticed_s = until_it_reconnects(running)
    proxy.black_hole.clear()
    scene.finish(running)
    assert noticed_s < NOTICED_S
    return f"all swallowed at 30 %, noticed after {noticed_s:.0f} s"


def stalled(scene: Scene) -> str:
    network, url = scene.network()
    running = scene.start(url, 12 * MIB, "2M")
    stop_when(running, 0.3)
    network.forward(False)
    time.sleep(8.0)
    network.forward(True)
    done = scene.finish(running)
    assert done.named("reconnecting") == []
    return "nothing came through for 8 s; the session outlived it"


def throttled(scene: Scene) -> str:
    network, url = scene.network()
    network.throttle("1mbit")
    size = 8 * MIB if LONG else 5 * MIB // 2
    began = time.monotonic()
    done = scene.finish(scene.start(url, size, "1G"))
    took_s = time.monotonic() - began
    assert done.named("reconnecting") == []
    assert took_s > 0.9 * size / 125_000, "the link was not slow"
    return f"{size // KIB} KiB over 1 Mbit/s in {took_s:.0f} s without a reconnect"


def cut(scene: Scene) -> str:
    listener = scene.lab.listen("--token-file", scene.token)
    proxy = Proxy(listener.port)
    scene.stack.callback(proxy.close)
    cuts = 60 if LONG else 6
    running = scene.start(f"tcp://127.0.0.1:{proxy.target.port}", cuts * 6 * MIB, "4M")
    chance = random.Random(cuts)
    for number in range(1, cuts + 1):
        # Mostly after a checkpoint, or it would wait longer every time.
        word = chance.choice(["checkpoint_done", "checkpoint_done", "pass_started"])
        seen = running.out.count(word)
        running.until(lambda word=word, seen=seen: running.out.count(word) > seen)  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 0.5))
        proxy.cut()
        running.until(lambda n=number: reconnects(running) >= n)  # type: ignore[misc]
    scene.finish(running)
    return f"{cuts} cuts, as many reconnects"


def shuffled(scene: Scene) -> str:
    listener = scene.lab.listen("--token-file", scene.token)
    proxy = Shuffler(listener.port)
    scene.stack.callback(proxy.close)
    running = scene.start(f"tcp://127.0.0.1:{proxy.target.port}", 16 * MIB, "4M")
    # What was never reached is not tried again.
    running.until_it_says("pass_started")
    for delay_s in (0.5, 1.5, 1.0, 2.0):
        time.sleep(delay_s)
        proxy.cut()
    done = scene.finish(running)
    return f"connects up to 1.2 s late, {len(done.named('reconnecting'))} reconnects"


def reboot(scene: Scene) -> str:
    options = ("--token-file", scene.token)
    listener = scene.lab.listen(*options)
    running = scene.start(listener.url, 12 * MIB, "3M")
    stop_when(running, 0.3)
    listener.kill()
    time.sleep(REBOOT_S)
    assert running.process.poll() is None
    scene.lab.listen(*options, "--port", str(listener.port))
    done = scene.finish(running)
    return f"gone for {REBOOT_S:.0f} s, {len(done.named('reconnecting'))} tries until it was back"


SCENES: dict[str, Callable[[Scene], str]] = {
    each.__name__: each
    for each in (black_hole, black_hole_over_ssh, stalled, throttled, cut, shuffled, reboot)
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    with ThreadPoolExecutor(len(SCENES)) as pool:

        def play(name: str) -> str:
            with contextlib.ExitStack() as own:
                return SCENES[name](Scene(tmp_path_factory.mktemp(name), name, own))

        yield {name: pool.submit(play, name) for name in SCENES}


@pytest.mark.parametrize("name", SCENES)
def test_the_same_run_goes_on_by_itself(
    scenes: dict[str, Future[str]], name: str, tell: Tell
) -> None:
    tell(scenes[name].result())
