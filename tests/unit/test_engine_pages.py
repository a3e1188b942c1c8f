"""Page refinement between the real ends: what goes over the link, what is counted, what heals."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_receiver import codec, serve, wire
from p2v_receiver.manifest import Manifest
from p2v_receiver.session import Session as ReceiverSession
from p2v_receiver.wire import FrameType
from p2v_sync.engine import copy as copy_module
from p2v_sync.engine import refine, replicate
from p2v_sync.engine.refine import changed_pages
from p2v_sync.errors import P2vError, PeerLost
from p2v_sync.events import Notice
from p2v_sync.transport.channel import Pipe
from p2v_sync.units import KIB, MIB
from tests.contract.faults import Fault, Link, Recorder, faulty, frames_of
from tests.contract.host import Host
from tests.contract.lab import (
    BLOCK as PAGE,
)
from tests.contract.lab import Lab, MemorySource, block_of, ram_directory

LARGE = 16 * KIB
SIZE = 8 * MIB + 5 * PAGE + 100  # three segments; the last one and its last block are short


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "_BACKOFF_S", (0.0,))


def content(name: object) -> bytes:
    """Pages of their own, with a hole of a few blocks."""
    pages = [block_of((name, at)) for at in range(-(-SIZE // PAGE))]
    pages[640:704] = [bytes(PAGE)] * 64
    return b"".join(pages)[:SIZE]


@pytest.fixture(scope="module")
def filling() -> bytes:
    return content("A")


@pytest.fixture
def lab(filling: bytes) -> Iterator[Lab]:
    """Copied once."""
    with ram_directory() as root:
        lab = Lab(root, MemorySource(filling), block_size=LARGE)
        lab.sync(verify="none")
        yield lab


def change(lab: Lab, pages: range | list[int]) -> int:
    """Other content in these pages of the source; returns how many bytes that is."""
    length = 0
    for page in pages:
        data = block_of(("changed", page, random.random()))[: SIZE - page * PAGE]
        lab.source.fill(page * PAGE, data)
        length += len(data)
    return length


def record(lab: Lab) -> list[Recorder]:
    """What goes over the connections from now on."""
    recorders: list[Recorder] = []

    def wrap(pipe: Pipe) -> Pipe:
        recorders.append(Recorder(pipe))
        return recorders[-1]

    lab.dialer.wrap = wrap
    return recorders


def frames(recorders: list[Recorder]) -> list[FrameType]:
    return [
        kind
        for each in recorders
        for side in (each.sent, each.received)
        for kind, _ in frames_of(side)
    ]


def alter_after_question(lab: Lab, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Somebody writes to a block of the image right after its pages were digested, once."""
    real = ReceiverSession.pages
    left = [block]

    def pages(session: ReceiverSession, wanted: wire.BlockSet) -> bytes:
        digests = real(session, wanted)
        if left and left[0] in wanted.blocks:
            with lab.image.open("r+b") as file:
                file.seek(left.pop() * LARGE + 3 * PAGE + 9)
                file.write(b"meddled with")
        return digests

    monkeypatch.setattr(ReceiverSession, "pages", pages)


SPREAD = [0, 5, 17, 255, 256, 257, 1000, 1023, 1024, 2047, SIZE // PAGE - 1, SIZE // PAGE]


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("digest", codec.digest_names())
def test_only_changed_pages_go_over_the_link(filling: bytes, streams: int, digest: str) -> None:
    with ram_directory() as root:
        lab = Lab(root, MemorySource(filling), block_size=LARGE, digest=digest)
        lab.sync(verify="none")
        changed = change(lab, SPREAD)
        recorders = record(lab)
        counters = lab.sync(streams=streams, verify="full", compress="none").counters
        assert lab.is_equal()
        assert counters.sent == changed
        assert counters.scanned == SIZE == counters.zero + counters.same + counters.sent
        on_the_link = sum(len(each.sent) + len(each.received) for each in recorders)
        blocks = len({page * PAGE // LARGE for page in SPREAD})
        # Besides the pages: their digests, and what a pass takes that sends nothing.
        assert changed < counters.wire < changed + blocks * (4 * 8 + 200) + 2000 < on_the_link
        assert on_the_link < changed + blocks * 600 + 30_000
        assert FrameType.DATA not in frames(recorders)


def test_a_first_pass_asks_for_no_pages(filling: bytes) -> None:
    with ram_directory() as root:
        lab = Lab(root, MemorySource(filling), block_size=LARGE)
        lab.dialer.wrap = faulty(Link(Fault(cut_after=3 * MIB), Fault()))
        with pytest.raises(PeerLost):
            lab.sync(streams=1)
        recorders = record(lab)
        lab.sync()
        assert lab.is_equal()
        assert not {FrameType.ASK_PAGES, FrameType.PATCH} & set(frames(recorders))


def test_a_receiver_without_pages_gets_whole_blocks(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "FEATURES", [])
    change(lab, [3, 1900])
    recorders = record(lab)
    assert lab.sync(verify="full").counters.sent == 2 * LARGE
    assert lab.is_equal()
    assert not {FrameType.ASK_PAGES, FrameType.PATCH} & set(frames(recorders))


def test_blocks_of_one_page_are_never_asked_about(filling: bytes) -> None:
    with ram_directory() as root:
        lab = Lab(root, MemorySource(filling), block_size=PAGE)
        lab.sync(verify="none")
        changed = change(lab, SPREAD)
        recorders = record(lab)
        assert lab.sync().counters.sent == changed
        assert lab.is_equal()
        assert not {FrameType.ASK_PAGES, FrameType.PATCH} & set(frames(recorders))


def test_zero_blocks_get_their_pages_without_a_question(lab: Lab) -> None:
    changed = change(lab, [650, 651, 700])
    recorders = record(lab)
    assert lab.sync(verify="full").counters.sent == changed
    assert lab.is_equal()
    kinds = frames(recorders)
    assert FrameType.PATCH in kinds
    assert FrameType.ASK_PAGES not in kinds


def test_p6_blocks_that_become_zero_are_zeroed_not_patched(lab: Lab) -> None:
    lab.source.fill(0, bytes(LARGE))
    recorders = record(lab)
    assert lab.sync(verify="full").counters.sent == 0
    assert lab.is_equal()
    assert FrameType.PATCH not in frames(recorders)


def test_unknown_blocks_go_whole(lab: Lab) -> None:
    with lab.record() as manifest:
        manifest.forget_blocks([(7, 1)], manifest.layout())
    changed = change(lab, [7 * 4 + 3, 40])
    counters = lab.sync(verify="full").counters
    assert lab.is_equal()
    assert changed == 2 * PAGE
    assert counters.sent == LARGE + PAGE


@pytest.mark.parametrize("block_size", [2 * PAGE, MIB, 4 * MIB])
def test_every_block_size(filling: bytes, block_size: int) -> None:
    with ram_directory() as root:
        lab = Lab(root, MemorySource(filling), block_size=block_size)
        lab.sync(verify="none")
        changed = change(lab, sorted({*SPREAD, *range(1020, 1300)}))
        assert lab.sync(verify="full").counters.sent == changed
        assert lab.is_equal()


def test_all_of_it_changed(lab: Lab) -> None:
    lab.source.fill(0, content("B"))
    counters = lab.sync(verify="full").counters
    assert lab.is_equal()
    assert counters.sent == SIZE - 64 * PAGE


def test_memory_for_what_waits_is_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two buffers a worker are enough to go on; more are never taken."""
    monkeypatch.setattr(copy_module, "_KEPT_BYTES", 1)
    real = refine.Refiner.swap
    seen: set[int] = set()

    def swap(refiner: Any, buffer: memoryview) -> memoryview:
        seen.add(id(buffer.obj))
        return real(refiner, buffer)

    monkeypatch.setattr(refine.Refiner, "swap", swap)
    changed = change(lab, range(0, SIZE // PAGE, 11))
    hole = [page for page in range(640, 704) if page % 11 == 0]
    assert lab.sync(streams=1, verify="full").counters.sent == changed
    assert hole
    assert lab.is_equal()
    assert 2 <= len(seen) <= 6


# An image that is not what it was when it was asked about


def test_p4_what_changes_after_the_question_is_refused_and_sent_whole(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = change(lab, [5 * 4, 5 * 4 + 300, 1500])
    alter_after_question(lab, monkeypatch, 5)
    recorders = record(lab)
    counters = lab.sync(verify="full").counters
    assert lab.is_equal()
    assert frames(recorders).count(FrameType.REFUSED) == 1
    assert "1 blocks of the image changed under the pass" in lab.of(Notice)[-1].text
    assert counters.sent == changed + LARGE
    assert counters.scanned == SIZE
    assert lab.sync().counters.sent == 0


def test_p4_two_pages_with_one_digest_cost_a_block_and_not_the_truth(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst digest there is: every page is called the same."""
    monkeypatch.setattr(
        codec, "page_digests_function", lambda *_: lambda data: bytes(-(-len(data) // PAGE) * 8)
    )
    change(lab, SPREAD)
    counters = lab.sync(verify="full").counters
    assert lab.is_equal()
    assert counters.sent == sum(
        min(LARGE, SIZE - block * LARGE) for block in {page * PAGE // LARGE for page in SPREAD}
    )


def test_p4_a_source_that_changes_while_pages_are_asked_for(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reading is compared, digested and sent; the next pass sees what came later."""
    change(lab, [80, 90, 1500])
    before = bytes(lab.source.data)
    real = ReceiverSession.pages

    def pages(session: ReceiverSession, wanted: wire.BlockSet) -> bytes:
        for block in wanted.blocks:
            lab.source.fill(block * LARGE, b"later" * 100)
        return real(session, wanted)

    with monkeypatch.context() as moving:
        moving.setattr(ReceiverSession, "pages", pages)
        lab.sync(verify="none")
    assert lab.image.read_bytes() == before
    assert lab.sync(verify="full").counters.sent == 3 * PAGE
    assert lab.is_equal()


# Links and crashes


@pytest.mark.parametrize("at", range(5, 100, 10))
def test_p7_a_link_that_is_cut_amid_pages(lab: Lab, at: int) -> None:
    changed = change(lab, range(0, SIZE // PAGE, 20))
    lab.dialer.wrap = recording = Measure()
    lab.sync(streams=1, verify="none")
    lab.source.fill(0, content("A"))
    lab.sync(streams=1, verify="none")
    change(lab, range(0, SIZE // PAGE, 20))
    lab.dialer.wrap = faulty(Link(Fault(cut_after=recording.length * at // 100), Fault()))
    counters = lab.sync(streams=1, retry_for_s=60.0, verify="full").counters
    assert lab.is_equal()
    assert counters.scanned == SIZE == counters.zero + counters.same + min(counters.sent, changed)


class Measure:
    """For InProcessDialer: how much one pass sends."""

    def __init__(self) -> None:
        self._recorders: list[Recorder] = []

    def __call__(self, pipe: Pipe) -> Pipe:
        self._recorders.append(Recorder(pipe))
        return self._recorders[-1]

    @property
    def length(self) -> int:
        return len(self._recorders[0].sent)


@pytest.mark.parametrize("keeps_ledger", [True, False])
def test_p3_pages_a_b_crash_a(filling: bytes, keeps_ledger: bool) -> None:
    """The power goes after pages were written; the source goes back; no digest of before counts."""
    host = Host()
    with ram_directory() as root, host.installed():
        lab = Lab(root, MemorySource(filling), block_size=LARGE)
        lab.sync(verify="none")
        host.going_down = lambda: lab.receiver.hang_up()
        ledger = lab.ledger.reopened()
        change(lab, SPREAD)
        host.dies_at = 6
        with pytest.raises(P2vError):
            lab.sync(streams=1, verify="none")
        host.come_back(is_lost=lambda: False, time_goes_back=True)
        assert not lab.is_equal()
        lab.source.fill(0, filling)
        if keeps_ledger:
            lab.ledger = ledger
        lab.sync(verify="none")
        assert lab.is_equal()


def test_p2_a_block_with_new_pages_is_not_recorded_before_the_flush(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(lab, SPREAD)
    order: list[str] = []
    for owner, name in (
        (ReceiverSession, "patch"),
        (ReceiverSession, "_flush"),
        (Manifest, "commit"),
    ):
        monkeypatch.setattr(owner, name, noting(order, name, getattr(owner, name)))
    lab.sync(streams=1, verify="none")
    assert order[0] == "patch"
    assert order.index("_flush") < order.index("commit")
    last_patch = len(order) - order[::-1].index("patch")
    assert order[last_patch:][:2] == ["_flush", "commit"]


def noting(order: list[str], name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        order.append(name)
        return real(*arguments, **named)

    return call


# Comparing


@given(
    ours=st.lists(st.integers(0, 2), max_size=20),
    theirs=st.lists(st.integers(0, 2), min_size=20, max_size=20),
)
def test_the_map_of_changed_pages(ours: list[int], theirs: list[int]) -> None:
    packed = [
        b"".join(each.to_bytes(8, "big") for each in side) for side in (ours, theirs[: len(ours)])
    ]
    expected = [at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]]
    assert wire.indices(changed_pages(*packed)) == (expected or [])
