"""Windows, the order of things, losing the link and coming back, and being interrupted."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from p2v_receiver import serve, store, wire
from p2v_receiver.session import Session as ReceiverSession
from p2v_receiver.wire import FrameType
from p2v_sync.engine import copy as copy_module
from p2v_sync.engine import replicate
from p2v_sync.engine.session import BulkStream
from p2v_sync.errors import (
    ConnectFailed,
    DeviceChanged,
    IntegrityError,
    Interrupted,
    P2vError,
    PeerLost,
    SourceReadError,
    TargetLocked,
    TargetTaken,
    VersionMismatch,
)
from p2v_sync.events import (
    CheckpointDone,
    Event,
    Notice,
    PassStarted,
    Progress,
    Reconnecting,
    Verified,
)
from p2v_sync.transport.channel import Pipe, StreamChannel
from p2v_sync.units import MIB
from tests.contract.faults import Fault, Link, Recorder, at_event, faulty, frames_of
from tests.contract.lab import (
    BLOCK,
    LONG_S,
    SEGMENT,
    Lab,
    MemorySource,
    NoLimit,
    block_of,
    ignore,
    patterned,
    ram_directory,
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ram_directory() as root:
        yield Lab(root, MemorySource(patterned(12)))


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "_BACKOFF_S", (0.0,))


# Windows


@pytest.mark.parametrize("streams", [1, 3])
def test_a_small_window_holds_the_sender_back_but_not_for_ever(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    monkeypatch.setattr(wire, "DEFAULT_WINDOW", 2 * wire.MAX_BODY)
    most = []
    real = BulkStream.send

    def noting(stream: BulkStream, kind: FrameType, meta: bytes, body: Any = b"") -> int:
        count = real(stream, kind, meta, body)
        most.append(stream.outstanding)
        return count

    monkeypatch.setattr(BulkStream, "send", noting)
    lab.sync(streams=streams, verify="none")
    assert lab.is_equal()
    assert 0 < max(most) <= 2 * wire.MAX_BODY


def test_bodies_that_are_no_whole_part_of_the_window(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "DEFAULT_WINDOW", 2 * wire.MAX_BODY)
    lab.block_size = MIB
    lab.source = MemorySource(bytes(MIB).join(block_of(n, 3 * MIB // 2) for n in range(8)))
    lab.sync(streams=1, verify="none", compress="none")
    assert lab.is_equal()


def sent_frames(lab: Lab, **options: Any) -> list[list[FrameType]]:
    recorders: list[Recorder] = []

    def wrap(pipe: Pipe) -> Pipe:
        recorders.append(Recorder(pipe))
        return recorders[-1]

    lab.dialer.wrap = wrap
    lab.sync(**options)
    return [
        [kind for kind, _ in frames_of(each.sent) if kind is not FrameType.PING]
        for each in recorders
    ]


def test_everything_is_handled_before_the_end_is_spoken_of(lab: Lab) -> None:
    control, stream = sent_frames(lab, streams=2)
    end = control.index(FrameType.END)
    assert control[end - 1] is FrameType.CHECKPOINT
    assert not {FrameType.DATA, FrameType.ZEROS, FrameType.SEGMENTS} & set(control[end:])
    assert control[:3] == [FrameType.HELLO, FrameType.OPEN, FrameType.BEGIN]
    assert stream[:2] == [FrameType.HELLO, FrameType.ATTACH]
    assert (control[-1], stream[-1]) == (FrameType.CLOSE, FrameType.CLOSE)


def test_checkpoints_are_taken_on_the_way(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_module, "_TICK_S", 0.001)
    monkeypatch.setattr(copy_module, "_CHECKPOINT_S", 0.0)
    lab.sync(verify="none")
    done = lab.of(CheckpointDone)
    assert len(done) > 2
    assert [each.generation for each in done] == sorted(each.generation for each in done)
    assert lab.is_equal()


def test_no_checkpoint_is_asked_for_behind_the_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An END that takes the receiver long must not be met by a checkpoint that is due."""
    monkeypatch.setattr(copy_module, "_TICK_S", 0.001)
    monkeypatch.setattr(copy_module, "_CHECKPOINT_S", 0.0)
    real = ReceiverSession.end

    def slow(session: ReceiverSession, message: Any) -> Any:
        threading.Event().wait(0.3)
        return real(session, message)

    monkeypatch.setattr(ReceiverSession, "end", slow)
    lab.sync(verify="none")
    assert lab.is_equal()


def test_progress_is_told_and_adds_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_module, "_TICK_S", 0.001)
    outcome = lab.sync(verify="full")
    counters = outcome.counters
    assert counters.scanned == lab.source.size
    assert counters.zero + counters.same + counters.sent == counters.scanned
    shown = [each.counters.scanned for each in lab.of(Progress) if each.phase == "copy"]
    assert shown == sorted(shown)
    assert {each.phase for each in lab.of(Progress)} == {"copy", "verify"}
    assert lab.of(Verified)[0].checked == lab.source.size


# Losing the link and coming back


@pytest.mark.parametrize(
    ("is_sent", "at"),
    [(True, 2_000), (True, 3_000_000), (True, 7_000_000), (False, 900), (False, 1_500)],
)
def test_the_same_run_goes_on_by_itself(lab: Lab, is_sent: bool, at: int) -> None:
    fault = Fault(cut_after=at)
    lab.dialer.wrap = faulty(Link(sent=fault) if is_sent else Link(received=fault))
    outcome = lab.sync(streams=1, retry_for_s=60.0)
    assert fault.struck
    assert len(lab.of(Reconnecting)) == 1
    assert lab.is_equal()
    assert outcome.counters.scanned == lab.source.size
    assert outcome.number == 1


def test_what_is_durable_is_neither_read_nor_sent_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_module, "_TICK_S", 0.001)
    monkeypatch.setattr(copy_module, "_CHECKPOINT_S", 0.0)
    lab.observe = at_event(CheckpointDone, 1, lab.receiver.hang_up)
    outcome = lab.sync(streams=1, retry_for_s=60.0, verify="none")
    assert lab.is_equal()
    read = sum(extent.length for extent in lab.source.reads)
    # Two workers, and a queue of four segments in front of them.
    assert read <= lab.source.size + 8 * SEGMENT
    assert outcome.counters.scanned == lab.source.size


def test_it_is_given_up_after_a_while(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "_BACKOFF_S", (0.05,))
    lab.dialer.wrap = faulty(*[Link(received=Fault(cut_after=1000)) for _ in range(1000)])
    began = time.monotonic()
    with pytest.raises(PeerLost):
        lab.sync(retry_for_s=0.3)
    assert 0.2 < time.monotonic() - began < 5.0
    assert lab.of(Reconnecting)


def test_a_link_that_never_lives_for_a_whole_segment_gets_on_without_longer_waits(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each session made durable is progress: the wait stays short, and no run is given up."""
    monkeypatch.setattr(replicate, "_BACKOFF_S", (0.0, 60.0))
    monkeypatch.setattr(copy_module, "_TICK_S", 0.001)
    monkeypatch.setattr(copy_module, "_CHECKPOINT_S", 0.0)
    monkeypatch.setattr(NoLimit, "take", lambda *_: time.sleep(0.01))
    lab.block_size = 16 * BLOCK  # one segment

    def cut(event: Event) -> None:
        if isinstance(event, CheckpointDone) and len(lab.of(CheckpointDone)) <= 3:
            lab.receiver.hang_up()

    lab.observe = cut
    lab.sync(streams=1, retry_for_s=3600.0)
    assert len(lab.of(Reconnecting)) == 3
    assert lab.is_equal()


def test_what_was_never_reached_is_not_tried_for_hours(lab: Lab) -> None:
    def refuse() -> StreamChannel:
        raise ConnectFailed("nobody listens")

    lab.dialer.dial = refuse  # type: ignore[method-assign]
    with pytest.raises(ConnectFailed):
        lab.sync(retry_for_s=3600.0)
    assert not lab.of(Reconnecting)


def test_our_own_former_session_may_be_slow_to_let_go(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last flush takes as long as the disk needs; the run waits for it and goes on."""
    monkeypatch.setattr(serve, "_TAKEOVER_S", 0.1)
    monkeypatch.setattr(store, "_TAKEOVER_S", 0.1)
    monkeypatch.setattr(replicate, "_BACKOFF_S", (0.05,))
    came_back = threading.Event()
    real = ReceiverSession.finish

    def slow(session: ReceiverSession) -> None:
        came_back.wait(LONG_S)
        real(session)

    monkeypatch.setattr(ReceiverSession, "finish", slow)
    lab.observe = at_event(Reconnecting, 3, came_back.set)
    lab.dialer.wrap = faulty(Link(sent=Fault(cut_after=2 * MIB)))
    lab.sync(streams=1, retry_for_s=60.0)
    assert lab.is_equal()


def test_a_lock_of_somebody_else_is_respected_at_once(lab: Lab) -> None:
    (lab.root / "job").mkdir()
    lock = store.Lock(str(lab.root / "job" / "disk.lock"), "somebody else")
    try:
        with pytest.raises(TargetLocked):
            lab.sync(retry_for_s=3600.0)
    finally:
        lock.release()
    lab.sync()


# Failures that are not the link's


def test_the_copy_of_another_disk_is_refused_before_anything_happens(lab: Lab) -> None:
    lab.sync()
    generation = lab.header()["generation"]
    lab.judge.refuses = TargetTaken("the image is the copy of another disk")
    with pytest.raises(TargetTaken):
        lab.sync(retry_for_s=3600.0)
    assert lab.header()["generation"] == generation


def test_a_compression_that_the_host_lacks_is_said_before_anything_happens(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2v_sync.engine.session.codec.codec_names", lambda: ["zlib"])
    with pytest.raises(VersionMismatch, match="zstd"):
        lab.sync(compress="zstd")
    assert not lab.of(PassStarted)


@pytest.mark.parametrize("compress", ["zlib", "none", "auto"])
def test_every_compression_arrives(lab: Lab, compress: str) -> None:
    lab.dialer.is_local = False
    outcome = lab.sync(compress=compress)
    assert lab.is_equal()
    if compress == "zlib":
        assert outcome.counters.wire < outcome.counters.sent // 10


class Failing(MemorySource):
    """Fails at the n-th read."""

    def __init__(self, data: bytes, error: Exception, after: int) -> None:
        super().__init__(data)
        self.error = error
        self.after = after

    def read_into(self, buffer: memoryview, start: int) -> Any:
        if len(self.reads) >= self.after:
            raise self.error
        return super().read_into(buffer, start)


@pytest.mark.parametrize("error", [DeviceChanged("it shrank"), SourceReadError("it is gone")])
@pytest.mark.parametrize("after", [0, 5])
def test_a_source_that_fails_ends_the_run_with_its_own_error(
    lab: Lab, error: Exception, after: int
) -> None:
    lab.source = Failing(patterned(12), error, after)
    with pytest.raises(type(error)) as caught:
        lab.sync(streams=2, retry_for_s=3600.0)
    assert caught.value is error


def test_a_source_that_fails_during_verification_ends_it_at_once(lab: Lab) -> None:
    lab.sync()
    lab.source = Failing(patterned(12), SourceReadError("it is gone"), after=2)
    with pytest.raises(SourceReadError):
        lab.run(lambda replication: replication.verify(), streams=2, retry_for_s=3600.0)
    assert len(lab.source.reads) == 2
    assert not lab.of(Verified)[1:]


def test_a_bug_in_the_receiver_is_told_and_ends_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ReceiverSession, "data", bug)
    with pytest.raises(P2vError, match="receiver: RuntimeError: a bug"):
        lab.sync(retry_for_s=3600.0)


def test_end_records_that_differ_are_no_success_of_ours(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7, from the sender's side."""
    real = ReceiverSession.end

    def lying(session: ReceiverSession, message: Any) -> Any:
        return {**real(session, message), "digest": "0" * 32}

    monkeypatch.setattr(ReceiverSession, "end", lying)
    with pytest.raises(IntegrityError):
        lab.sync()
    monkeypatch.undo()
    lab.sync()
    assert lab.is_equal()


# Being interrupted

WITHIN_S = 2.0


def interrupted(lab: Lab, prepare: Callable[[Any], None], **options: Any) -> None:
    """Run in a thread; ``prepare`` arranges for an interrupt.  It must end within two seconds."""
    replication = lab.replication(retry_for_s=3600.0, **options)
    struck = threading.Event()
    outcome: list[BaseException | None] = []

    def interrupt() -> None:
        struck.set()
        replication.interrupt()

    def work() -> None:
        try:
            replication.replicate()
            outcome.append(None)
        except BaseException as error:  # noqa: BLE001 - looked at below
            outcome.append(error)

    prepare(interrupt)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert struck.wait(LONG_S)
    thread.join(WITHIN_S)
    assert not thread.is_alive(), "it does not end"
    assert [type(error) for error in outcome] == [Interrupted]
    lab.receiver.hang_up()
    lab.receiver.wait()


def finishes(lab: Lab) -> None:
    lab.observe = ignore
    lab.dialer.wrap = faulty()
    lab.sync()
    assert lab.is_equal()


@pytest.mark.parametrize("kind", [PassStarted, CheckpointDone, Progress])
def test_interrupted_at_an_event(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    monkeypatch.setattr(copy_module, "_TICK_S", 0.001)
    monkeypatch.setattr(copy_module, "_CHECKPOINT_S", 0.0)

    def prepare(interrupt: Callable[[], None]) -> None:
        lab.observe = at_event(kind, 1, interrupt)

    interrupted(lab, prepare)
    finishes(lab)


def test_interrupted_during_verification(lab: Lab) -> None:
    def prepare(interrupt: Callable[[], None]) -> None:
        def observe(event: Any) -> None:
            if isinstance(event, Progress) and event.phase == "verify":
                interrupt()

        lab.observe = observe

    interrupted(lab, prepare, verify="full")
    finishes(lab)


@pytest.mark.parametrize("is_sent", [True, False])
@pytest.mark.parametrize("at", [0, 300, 1000, 100_000])
def test_interrupted_on_a_link_that_does_not_move(lab: Lab, is_sent: bool, at: int) -> None:
    """While opening, while sending and while waiting for what never comes."""
    fault = Fault(stall=at if is_sent or at < 2000 else 1200)

    def prepare(interrupt: Callable[[], None]) -> None:
        lab.dialer.wrap = faulty(Link(sent=fault) if is_sent else Link(received=fault))

        def when_stalled() -> None:
            while not fault.struck:
                threading.Event().wait(0.005)
            interrupt()

        threading.Thread(target=when_stalled, daemon=True).start()

    interrupted(lab, prepare, streams=1)
    finishes(lab)


def test_interrupted_between_two_tries(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "_BACKOFF_S", (600.0,))
    lab.dialer.wrap = faulty(Link(sent=Fault(cut_after=MIB)))

    def prepare(interrupt: Callable[[], None]) -> None:
        lab.observe = at_event(Reconnecting, 1, interrupt)

    interrupted(lab, prepare, streams=1)
    finishes(lab)


@pytest.mark.parametrize("number", [1, 2])
def test_interrupted_while_a_connection_is_made(lab: Lab, number: int) -> None:
    """The connection that was on its way is closed as well."""
    real = lab.dialer.dial
    dialed: list[StreamChannel] = []

    def prepare(interrupt: Callable[[], None]) -> None:
        def dial() -> StreamChannel:
            channel = real()
            dialed.append(channel)
            if len(dialed) == number:
                interrupt()
            return channel

        lab.dialer.dial = dial  # type: ignore[method-assign]

    interrupted(lab, prepare, streams=2)
    assert len(dialed) == number
    lab.dialer.dial = real  # type: ignore[method-assign]
    finishes(lab)


def test_interrupted_before_it_began(lab: Lab) -> None:
    replication = lab.replication()
    replication.interrupt()
    with pytest.raises(Interrupted):
        replication.replicate()
    assert lab.dialer.dialed == 0
    finishes(lab)


def test_a_notice_says_why_an_image_is_compared(lab: Lab) -> None:
    lab.sync()
    lab.manifest.unlink()
    lab.sync()
    assert [event.text for event in lab.of(Notice)] == [
        "the manifest was missing: the image is compared block by block"
    ]
    assert ("the manifest was missing", {}) in lab.ledger.events
