"""Sessions that are cut at every byte, or damaged anywhere: an error soon, and nothing believed.

Each cut ends a real session of the engine with a real receiver, so both roles meet the truncated
stream.  What a hostile end says on purpose is in tests/unit/test_engine_hostile.py and
tests/unit/test_receiver_serve.py.
"""

import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v_receiver import wire
from p2v_sync.errors import P2vError
from p2v_sync.transport.channel import Pipe
from p2v_sync.units import KIB, MIB
from tests.conftest import LONG, Tell
from tests.contract.bench import Bench
from tests.contract.faults import Fault, Link, Recorder, faulty
from tests.contract.lab import BLOCK, Lab, MemorySource, letters, ram_directory

SOON_S = 5.0
MEMORY = 64 * MIB
CONTENTS = [letters("ab0c"), letters("0bxc"), letters("a00y")]
SIZE = len(CONTENTS[0])
DIRECTIONS = ("sent", "received")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with ram_directory() as root:
        (root / "images").mkdir()
        yield Lab(root / "images", MemorySource(CONTENTS[-1]))


@contextmanager
def impatience() -> Iterator[None]:
    """Silence is death soon.  Only for sessions that may fail: a busy machine stalls as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "HEARTBEAT_S", 0.1)
        patch.setattr(wire, "SILENCE_LIMIT_S", 0.5)
        yield


def sync(lab: Lab, compress: str = "zlib") -> bool:
    """A run of a new process.  Whether it was a success; anything but a P2vError is a bug."""
    began = time.monotonic()
    lab.ledger = lab.ledger.reopened()
    lab.events.clear()
    try:
        lab.sync(streams=1, compress=compress, verify="auto")
    except P2vError:
        return False
    finally:
        assert time.monotonic() - began < SOON_S
    return True


def check(lab: Lab, is_success: bool) -> None:
    assert not is_success or lab.is_equal(), "P7: success, and the target differs"
    if lab.image.exists() and lab.manifest.exists():
        Bench(lab.root, SIZE).certain()


def record(lab: Lab) -> dict[str, int]:
    """How long each direction of a session is in which blocks change."""
    taps: list[Recorder] = []

    def tap(pipe: Pipe) -> Pipe:
        taps.append(Recorder(pipe))
        return taps[-1]

    lab.dialer.wrap = tap
    lengths: dict[str, int] = dict.fromkeys(DIRECTIONS, 0)
    for content in CONTENTS:
        lab.source.fill(0, content)
        assert sync(lab)
    for one in taps:
        lengths["sent"] = max(lengths["sent"], len(one.sent))
        lengths["received"] = max(lengths["received"], len(one.received))
    return lengths


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_p2_p7_cut_at_every_byte(lab: Lab, direction: str, tell: Tell) -> None:
    length, ended = record(lab)[direction], 0
    for at in range(length):
        lab.source.fill(0, CONTENTS[at % len(CONTENTS)])
        fault = Fault(cut_after=at)
        lab.dialer.wrap = faulty(Link(**{direction: fault}))
        is_success = sync(lab)
        check(lab, is_success)
        # Another session may be a few bytes shorter, and over before the cut.
        assert is_success != fault.struck or at > length * 0.8
        ended += not is_success
    lab.dialer.wrap = faulty()
    assert sync(lab)
    assert lab.is_equal()
    tell(f"cut after each of {length} bytes {direction} by the sender; {ended} ended the run")
    assert ended > length * 0.8


@dataclass
class Damage:
    """What happens to one direction at a byte of it."""

    at: int
    drop: int
    insert: bytes
    done: int = field(default=0)

    def take(self, data: bytes) -> bytes:
        first, self.done = self.at - self.done, self.done + len(data)
        if not 0 <= first < len(data):
            return data
        return data[:first] + self.insert + data[first + self.drop :]


class DamagedPipe:
    """A pipe with damage in one direction.  Satisfies ``transport.channel.Pipe``."""

    def __init__(self, pipe: Pipe, sent: Damage | None, received: Damage | None) -> None:
        self._pipe = pipe
        self._sent, self._received = sent, received
        self._left = b""

    def sendall(self, data: wire.Buffer) -> None:
        self._pipe.sendall(self._sent.take(bytes(data)) if self._sent else data)

    def recv_into(self, view: memoryview) -> int:
        if self._received is None:
            return self._pipe.recv_into(view)
        while not self._left:
            buffer = bytearray(len(view))
            count = self._pipe.recv_into(memoryview(buffer))
            if not count:
                return 0
            self._left = self._received.take(bytes(buffer[:count]))
        data, self._left = self._left[: len(view)], self._left[len(view) :]
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._pipe.close()


DAMAGES = st.builds(
    Damage,
    at=st.integers(0, 1000) | st.integers(0, 10_000),
    drop=st.integers(0, 20) | st.just(5000),
    insert=st.binary(max_size=20)
    | st.sampled_from([b"\xff" * 4, b"\0" * 4, b"P2", b"../../x", b"9" * 30, b"[" * 1500]),
)


def test_p4_p7_a_session_that_is_damaged_anywhere(lab: Lab, tell: Tell) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    ended: Counter[bool] = Counter()

    @settings(max_examples=5000 if LONG else 100)
    @given(is_sent=st.booleans(), damage=DAMAGES, content=st.sampled_from(CONTENTS))
    def damaged(is_sent: bool, damage: Damage, content: bytes) -> None:
        lab.source.fill(0, content)
        pending = [(damage, None) if is_sent else (None, damage)]

        def wrap(pipe: Pipe) -> Pipe:
            return DamagedPipe(pipe, *pending.pop()) if pending else pipe

        lab.dialer.wrap = wrap
        with impatience():
            is_success = sync(lab, "none")  # zlib would find much of it
        check(lab, is_success)
        ended[not is_success] += 1
        lab.dialer.wrap = faulty()
        assert sync(lab), lab.events
        assert lab.is_equal()

    damaged()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB - memory
    tell(f"{ended.total()} sessions damaged, {ended[True]} ended by it; {grown // KIB} KiB taken")
    assert grown < MEMORY
    assert [path.name for path in lab.root.parent.iterdir()] == [lab.root.name], "P10"


assert SIZE == 4 * BLOCK
