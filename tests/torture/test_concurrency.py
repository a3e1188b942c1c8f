"""Several at once where one belongs: refused or served one after the other, never mixed."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2v_sync.units import KIB, MIB
from tests.conftest import LONG, Tell
from tests.integration.cli import Done, Lab, Listener, Running, assert_equal

LOCKED, TAKEN = 46, 47
ROUNDS = 20 if LONG else 2
pytestmark = pytest.mark.timeout(1800 if LONG else 120)


def end(running: Running, *codes: int) -> Done:
    running.process.wait(60)
    assert running.process.returncode in codes, running.err
    assert "Traceback" not in running.err
    return Done(running.process.returncode, running.out, running.err)


def sender(lab: Lab, image: Path, listener: Listener, number: int) -> Running:
    """Another user on another machine, as far as the receiver can tell."""
    state = lab.root / f"state{number}"
    job = ("--job", "shared", "--state", state, "--rate", "2M")
    return lab.start("sync", image, listener.url, "--json", *job, P2V_TOKEN=listener.token)


@pytest.mark.parametrize("receivers", [1, 2])
def test_p10_two_senders_and_one_or_two_receivers(lab: Lab, receivers: int, tell: Tell) -> None:
    """Two disks of the same name and size: the image is one of them, whoever came first."""
    listeners = [lab.listen() for _ in range(receivers)]
    for number in range(2):
        (lab.root / str(number)).mkdir()
    images = [lab.noise(f"{n}/sda.img", size=8 * MIB, seed=n) for n in range(2)]
    refused = 0
    for turn in range(ROUNDS):
        both = [
            sender(lab, image, listener, 10 * turn + number)
            for number, (image, listener) in enumerate(
                zip(images, itertools.cycle(listeners), strict=False)
            )
        ]
        codes = [end(each, 0, LOCKED, TAKEN).code for each in both]
        assert codes.count(0) == 1, codes
        winner = codes.index(0)
        # However long it waits: the image is another disk's.
        end(sender(lab, images[1 - winner], listeners[-1], 10 * turn + 1 - winner), TAKEN)
        refused += 2
        assert_equal(images[winner], lab.out / "shared" / "sda.img")
        if turn % 2:
            continue
        # The other disk's turn: it is an operator who makes room.
        (lab.out / "shared").rename(lab.out / f"kept{turn}")
    tell(f"{ROUNDS} times two senders over {receivers} receivers; {refused} refused, none mixed")


def test_sixteen_jobs_at_once_into_one_listener(lab: Lab, tell: Tell) -> None:
    listener = lab.listen()
    size = (64 * MIB if LONG else 3 * MIB) + 100
    images = [lab.noise(f"vm{n}.img", size=size + n, seed=n) for n in range(16)]

    def replicate(image: Path) -> Done:
        options = ("--json", "--block-size", "64K", "--state", lab.root / f"of-{image.stem}")
        running = lab.start("sync", image, listener.url, *options, P2V_TOKEN=listener.token)
        return end(running, 0)

    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(replicate, images))
    for image in images:
        assert_equal(image, lab.replica(image.stem))
    assert sorted(path.name for path in lab.out.iterdir()) == sorted(each.stem for each in images)
    sent = sum(each.named("pass_finished")[0]["counters"]["sent"] for each in done)
    assert sent == sum(image.stat().st_size for image in images)
    assert listener.process.poll() is None
    threads = len(os.listdir(f"/proc/{listener.pid}/task"))
    assert threads < 8, "threads of the sessions are left"
    tell(f"16 jobs at once, {sent // KIB} KiB in all, each equal to its own source")
