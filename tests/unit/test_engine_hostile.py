"""A receiver that lies, rambles or falls silent: an error of ours, soon, and never success."""

import itertools
import resource
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from p2v_receiver import wire
from p2v_receiver.wire import Frame, FrameType
from p2v_sync.errors import (
    IntegrityError,
    P2vError,
    PeerLost,
    ProtocolError,
    ReceiverError,
    TargetFull,
    VersionMismatch,
)
from p2v_sync.units import MIB
from tests.contract.by_hand import (
    OPENED,
    PAGES,
    WELCOME,
    ByHand,
    Say,
    Talk,
    committed,
    ended,
    pages,
    segments,
    written,
    zeros,
)
from tests.contract.lab import SEGMENT, Lab, MemorySource, patterned

SOON_S = 5.0
T = FrameType


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    """Never a hang over five seconds."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON_S


def meet(
    tmp_path: Path, dialer: ByHand, *, source: MemorySource | None = None, **options: Any
) -> Lab:
    """A whole pass against ``dialer``.  Raises what comes of it."""
    lab = Lab(tmp_path, source or MemorySource(patterned(3)))
    lab.dialer = dialer  # type: ignore[assignment]
    try:
        lab.replication(**options).replicate()
    finally:
        dialer.wait()
    return lab


def says(kind: FrameType, say: Say, **opened: Any) -> ByHand:
    return ByHand({kind: say}, **opened)


@pytest.mark.parametrize("created", [True, False])
@pytest.mark.parametrize("streams", [1, 2])
def test_the_polite_one_is_believed(tmp_path: Path, created: bool, streams: int) -> None:
    """Else nothing below would say anything."""
    dialer = ByHand(created=created)
    dialer.max_streams = streams
    meet(tmp_path, dialer, streams=streams)
    assert dialer.dialed == streams


# Opening


@pytest.mark.parametrize(
    "field",
    [
        {"block_size": 0},
        {"block_size": 4095},
        {"block_size": 8 * MIB},
        {"block_size": True},
        {"block_size": 4096.0},
        {"digest": "md5"},
        {"digest": 7},
        {"window": 0},
        {"window": -1},
        {"window": 1 << 40},
        {"seed": -1},
        {"seed": 1 << 64},
        {"generation": -1},
        {"generation": 10**300},
        {"image": None},
        {"image": "\ud800"},
        {"image": "x" * 1000},
        {"commit": 5},
        {"commit": "\x1b[2J"},
        {"created": 1},
        {"reasons": "many"},
        {"reasons": [1]},
        {"pass_number": "1"},
        {"pass_complete": None},
        {"quiesced": 0},
        {"unreadable": [[0]]},
        {"unreadable": [[-1, 5]]},
        {"unreadable": [[0, 1 << 50]]},
        {"unreadable": [[3 * SEGMENT, 512]]},
        {"session": 1},
        {"token": []},
    ],
    ids=lambda field: "-".join(f"{key}:{value!r}"[:30] for key, value in field.items()),
)
def test_absurd_values_in_opened(tmp_path: Path, field: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, ByHand(**field))


@pytest.mark.parametrize("name", sorted(set(OPENED) - {"source"}))
def test_a_missing_value_in_opened(tmp_path: Path, name: str) -> None:
    message = {key: value for key, value in OPENED.items() if key != name}
    with pytest.raises(ProtocolError, match=name):
        meet(tmp_path, says(T.OPEN, lambda talk, _: talk.say(T.OPENED, message)))


@pytest.mark.parametrize(
    "welcome",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"null",
        b'{"version": 1}',
        b"[" * 100_000,
        b'{"version":' + b"9" * 5000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_a_welcome_that_is_none(tmp_path: Path, welcome: bytes) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, says(T.HELLO, lambda talk, _: talk.say(T.WELCOME, welcome)))


def test_another_version(tmp_path: Path) -> None:
    other = {**WELCOME, "version": 2}
    with pytest.raises(VersionMismatch, match="protocol 2"):
        meet(tmp_path, says(T.HELLO, lambda talk, _: talk.say(T.WELCOME, other)))


@pytest.mark.parametrize("kind", [k for k in FrameType if k not in (T.PING, T.LOG, T.ERROR)])
def test_a_frame_that_is_not_its_turn(tmp_path: Path, kind: FrameType) -> None:
    def both(talk: Talk, frame: Frame) -> None:
        del frame
        talk.say(kind, WELCOME)
        talk.say(kind, WELCOME)

    with pytest.raises(ProtocolError):
        meet(tmp_path, says(T.HELLO, both))


@pytest.mark.parametrize("kind", [k for k in FrameType if k not in (T.PING, T.LOG, T.ERROR)])
def test_a_frame_that_is_not_its_turn_during_the_pass(tmp_path: Path, kind: FrameType) -> None:
    def instead(talk: Talk, frame: Frame) -> None:
        del frame
        talk.say(kind, b"")

    with pytest.raises(ProtocolError):
        meet(tmp_path, says(T.DATA, instead))


def test_log_messages_without_end(tmp_path: Path) -> None:
    def ramble(talk: Talk, frame: Frame) -> None:
        del frame
        while True:
            talk.say(T.LOG, {"text": "still thinking"})

    with pytest.raises(ProtocolError):
        meet(tmp_path, says(T.OPEN, ramble))


def test_a_second_connection_that_is_refused(tmp_path: Path) -> None:
    dialer = says(T.ATTACH, lambda talk, _: talk.say(T.ERROR, {"code": 2, "message": "no"}))
    dialer.max_streams = 2
    with pytest.raises(ProtocolError, match="receiver: no"):
        meet(tmp_path, dialer)


# Acknowledgements


def test_more_is_acknowledged_than_was_sent(tmp_path: Path) -> None:
    for too_much in (wire.Written(2, 0), wire.Written(0, 1 << 60), wire.Written(0xFFFFFFFF, 1)):
        with pytest.raises(ProtocolError, match="acknowledged"):
            meet(tmp_path, says(T.DATA, lambda talk, _: talk.say(T.WRITTEN, too_much.pack())))  # noqa: B023


def test_frames_are_acknowledged_without_their_bytes(tmp_path: Path) -> None:
    dialer = says(T.DATA, lambda talk, _: talk.say(T.WRITTEN, wire.Written(1, 0).pack()))
    with pytest.raises(ProtocolError, match="acknowledged"):
        meet(tmp_path, dialer)


def commits(**changes: Any) -> ByHand:
    return says(T.CHECKPOINT, partial(committed, **changes))


@pytest.mark.parametrize(
    "complete",
    [
        [[0, 4]],
        [[3, 1]],
        [[1 << 59, 3]],
        [[0, 1], [0, 1], [0, 1]],
        [[0, 1], [1, 1]],
        [],
        [[0, 1 << 60]],
        [[0, -1]],
        [[0, 1.5]],
        "all",
        None,
        [[0, 1, 2]],
    ],
    ids=repr,
)
def test_a_commit_of_other_segments_than_were_sent(tmp_path: Path, complete: Any) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, commits(complete=complete))


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 0},
        {"number": 2},
        {"number": 10**30},
        {"number": -1},
        {"number": True},
        {"number": "1"},
        {"generation": -1},
        {"generation": "2"},
        {"commit": None},
        {"commit": "\ud800"},
    ],
    ids=repr,
)
def test_a_commit_with_absurd_values(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, commits(**changes))


def test_a_commit_before_a_checkpoint(tmp_path: Path) -> None:
    def early(talk: Talk, frame: Frame) -> None:
        del frame
        talk.say(T.COMMITTED, {"number": 1, "generation": 2, "commit": "c", "complete": [[0, 1]]})

    for kind in (T.BEGIN, T.DATA):
        with pytest.raises(ProtocolError):
            meet(tmp_path, says(kind, early))


def test_commits_without_end(tmp_path: Path) -> None:
    def again_and_again(talk: Talk, frame: Frame) -> None:
        del frame
        while True:
            talk.say(
                T.COMMITTED, {"number": None, "generation": 2, "commit": "c", "complete": [[0, 3]]}
            )

    with pytest.raises(ProtocolError):
        meet(tmp_path, says(T.CHECKPOINT, again_and_again))


def test_another_digest_at_the_end(tmp_path: Path) -> None:
    for digest in ("0" * 32, "", None, 5):
        with pytest.raises(IntegrityError, match="another digest"):
            meet(tmp_path, says(T.END, partial(ended, digest=digest)))


@pytest.mark.parametrize("changes", [{"generation": None}, {"commit": 3}, {"commit": "a\nb"}])
def test_an_end_with_absurd_values(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, says(T.END, partial(ended, **changes)))


def test_an_end_that_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(P2vError):
        meet(tmp_path, says(T.END, lambda talk, _: talk.say(T.ENDED, {})))


# Digests


def digests(first: int, total: int, body: bytes = b"") -> ByHand:
    segment = wire.Segments(first, total)
    return says(T.FETCH, lambda talk, _: talk.say(T.DIGESTS, segment.pack(), body), created=False)


@pytest.mark.parametrize("length", [1, 15, 16, 255 * 16, 257 * 16, MIB])
def test_entries_of_the_wrong_length(tmp_path: Path, length: int) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, digests(0, 1, b"x" * length))


@pytest.mark.parametrize(
    ("first", "total"),
    [(0, 4), (3, 1), (0, 0), (0, 0xFFFFFFFF), (0xFFFFFFFFFFFFFFFF, 1), (0xFFFFFFFF, 0xFFFFFFFF)],
)
def test_digests_of_segments_that_are_not_there(tmp_path: Path, first: int, total: int) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, digests(first, total))


def test_entries_of_several_segments_at_once(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, digests(0, 2, b"x" * wire.SEGMENT_ENTRIES_SIZE))


def test_a_flood_of_digests_that_nobody_asked_for(tmp_path: Path) -> None:
    """It takes no memory: a disk of 2 TiB would have 32 GiB of entries."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def flood(talk: Talk, frame: Frame) -> None:
        del frame
        entries = b"x" * wire.SEGMENT_ENTRIES_SIZE
        for segment in itertools.count():
            talk.say(T.DIGESTS, wire.Segments(segment, 1).pack(), entries)

    source = Huge()
    with pytest.raises(ProtocolError):
        meet(tmp_path, says(T.FETCH, flood, created=False), source=source)
    everything = says(
        T.FETCH,
        lambda talk, _: talk.say(T.DIGESTS, wire.Segments(0, 1 << 21).pack()),
        created=False,
    )
    with pytest.raises(ProtocolError):
        meet(tmp_path, everything, source=source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


class Huge(MemorySource):
    """2 TiB of holes."""

    def __init__(self) -> None:
        super().__init__(b"", sparse=True)

    @property
    def size(self) -> int:
        return 1 << 41


def test_the_same_digests_twice(tmp_path: Path) -> None:
    def twice(talk: Talk, frame: Frame) -> None:
        zeros(talk, frame)
        zeros(talk, frame)

    with pytest.raises(ProtocolError):
        meet(tmp_path, says(T.FETCH, twice, created=False))


# Verification


def verified(say: dict[str, Any], also: int = 0) -> ByHand:
    def answer(talk: Talk, frame: Frame) -> None:
        number = wire.Verify.unpack(frame.meta).number
        talk.say(T.VERIFIED, {"number": number + also, "wrong": [], **say})

    return says(T.VERIFY, answer)


@pytest.mark.parametrize(
    "wrong",
    [None, [[0]], [[1 << 59, 1]], [[0, 1 << 59]], [[3 * 256, 1]], [[0, 0]], "all"],
    ids=repr,
)
def test_a_verdict_on_other_blocks_than_were_asked(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, verified({"wrong": wrong}))


def test_a_verdict_nobody_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError):
        meet(tmp_path, verified({}, also=1 << 20))


# Pages


def incremental(tmp_path: Path, says_it: dict[FrameType, Say]) -> None:
    """A later pass: the receiver holds blocks of four pages, all of them others than ours."""

    def held(talk: Talk, frame: Frame) -> None:
        asked = wire.Segments.unpack(frame.meta)
        for segment in range(asked.first, asked.first + asked.total):
            entries = b"x" * (wire.ENTRY_SIZE * LAYOUT.blocks_in(segment))
            talk.say(T.DIGESTS, wire.Segments(segment, 1).pack(), entries)

    dialer = ByHand(
        {T.FETCH: held, **says_it}, created=False, pass_number=1, block_size=LAYOUT.block_size
    )
    meet(tmp_path, dialer, verify="none")


LAYOUT = wire.Layout(3 * SEGMENT, 4 * wire.PAGE_SIZE)


def test_the_polite_one_is_believed_about_pages(tmp_path: Path) -> None:
    patches = []

    def patched(talk: Talk, frame: Frame) -> None:
        patches.append(wire.Patch.unpack(frame.meta))
        written(talk, frame)

    incremental(tmp_path, {T.PATCH: patched})
    assert patches


@pytest.mark.parametrize("change", [-8, -1, 1, 8, MIB])
def test_page_digests_of_the_wrong_length(tmp_path: Path, change: int) -> None:
    with pytest.raises(ProtocolError, match="wrong length"):
        incremental(tmp_path, {T.ASK_PAGES: partial(pages, change=change)})


@pytest.mark.parametrize(
    "blocks", [(0, 1), (1, 1), (5, 1), (0, (1 << 256) - 1), (0, 0), (1 << 63, 1)], ids=str
)
def test_page_digests_that_nobody_asked_for(tmp_path: Path, blocks: tuple[int, int]) -> None:
    def other(talk: Talk, frame: Frame) -> None:
        del frame
        talk.say(T.PAGE_DIGESTS, wire.BlockSet(*blocks).pack(), bytes(8 * PAGES))

    with pytest.raises(ProtocolError):
        incremental(tmp_path, {T.ASK_PAGES: other})


def test_the_same_page_digests_twice(tmp_path: Path) -> None:
    def twice(talk: Talk, frame: Frame) -> None:
        pages(talk, frame)
        pages(talk, frame)

    with pytest.raises(ProtocolError, match="not asked"):
        incremental(tmp_path, {T.ASK_PAGES: twice})


def refusing(*blocks: int, at: FrameType = T.PATCH) -> dict[FrameType, Say]:
    def refuse(talk: Talk, frame: Frame) -> None:
        talk.say(T.REFUSED, wire.BlockSet(*blocks).pack())
        written(talk, frame)

    return {at: refuse}


@pytest.mark.parametrize(
    "says_it",
    [
        refusing(2, 1),
        refusing(0, 1 << 200),
        refusing(0, 0),
        refusing(1 << 40, 1),
        refusing(0, 1, at=T.ASK_PAGES),
    ],
    ids=["segment", "block", "none", "far", "early"],
)
def test_a_refusal_of_what_was_not_sent(tmp_path: Path, says_it: dict[FrameType, Say]) -> None:
    with pytest.raises(ProtocolError, match=r"blocks that were not sent|set of blocks"):
        incremental(tmp_path, says_it)


def test_what_is_refused_is_sent_whole_once(tmp_path: Path) -> None:
    """However often it is refused."""
    whole = []

    def refuse(talk: Talk, frame: Frame) -> None:
        for _ in range(3):
            talk.say(T.REFUSED, wire.Patch.unpack(frame.meta).blocks.pack())
        written(talk, frame)

    def data(talk: Talk, frame: Frame) -> None:
        whole.append(wire.Data.unpack(frame.meta))
        written(talk, frame)

    def complete(talk: Talk, frame: Frame) -> None:
        if whole:
            segments(talk, frame)
        else:
            written(talk, frame)

    incremental(tmp_path, {T.PATCH: refuse, T.DATA: data, T.SEGMENTS: complete})
    assert sum(len(each.entries) for each in whole) == 16 * 180


# Errors


def error(message: dict[str, Any] | bytes, at: FrameType = T.DATA) -> ByHand:
    return says(at, lambda talk, _: talk.say(T.ERROR, message))


@pytest.mark.parametrize("at", [T.HELLO, T.OPEN, T.BEGIN, T.DATA, T.CHECKPOINT, T.END, T.VERIFY])
def test_an_error_is_what_it_says_wherever_it_comes(tmp_path: Path, at: FrameType) -> None:
    with pytest.raises(TargetFull, match="receiver: no room") as caught:
        meet(tmp_path, error({"code": 20, "message": "no room", "hint": "make some"}, at))
    assert caught.value.hint == "make some"


def test_an_error_of_a_kind_we_do_not_know(tmp_path: Path) -> None:
    for code in (0, 99, 1 << 50):
        with pytest.raises(ReceiverError, match="receiver: odd"):
            meet(tmp_path, error({"code": code, "message": "odd"}))


def test_an_error_that_is_none(tmp_path: Path) -> None:
    for message in ({}, b"", b"oops", {"code": "x", "message": "y"}, {"code": 1, "message": 7}):
        with pytest.raises(P2vError):
            meet(tmp_path, error(message))


def test_a_huge_message_is_cut_and_can_not_drive_a_terminal(tmp_path: Path) -> None:
    text = "\x1b]0;owned\x07\n" + "x" * 100_000
    with pytest.raises(ReceiverError) as caught:
        meet(tmp_path, error({"code": 1, "message": text, "hint": text}))
    for shown in (caught.value.message, caught.value.hint or ""):
        assert len(shown) < 5000
        assert shown.isprintable()
        shown.encode()


def test_reasons_are_cut_too(tmp_path: Path) -> None:
    lab = meet(tmp_path, ByHand(created=False, reasons=["\x1b" + "x" * 100_000]))
    assert all(len(text) < 5000 and text.isprintable() for text, _ in lab.ledger.events)


# Silence and the end of the link


@pytest.mark.parametrize("at", [T.HELLO, T.OPEN, T.DATA, T.CHECKPOINT, T.END, T.VERIFY, T.CLOSE])
def test_silence_is_a_lost_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: FrameType
) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(wire, "SILENCE_LIMIT_S", 0.3)
    with pytest.raises(PeerLost, match="silent"):
        meet(tmp_path, says(at, lambda *_: None))


@pytest.mark.parametrize(
    "at",
    [
        k
        for k in FrameType
        if k
        in (T.HELLO, T.OPEN, T.BEGIN, T.DATA, T.SEGMENTS, T.CHECKPOINT, T.END, T.VERIFY, T.CLOSE)
    ],
)
def test_p7_hanging_up_anywhere_is_a_lost_peer(tmp_path: Path, at: FrameType) -> None:
    with pytest.raises(PeerLost):
        meet(tmp_path, says(at, lambda talk, _: talk.hang_up()))


def test_noise_instead_of_frames(tmp_path: Path) -> None:
    def noise(talk: Talk, frame: Frame) -> None:
        del frame
        talk.say_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for kind in (T.HELLO, T.DATA):
        with pytest.raises(ProtocolError):
            meet(tmp_path, says(kind, noise))


def test_an_unknown_frame(tmp_path: Path) -> None:
    def unknown(talk: Talk, frame: Frame) -> None:
        del frame
        talk.say_bytes(wire.pack_header(200, 3, 0, 0))

    with pytest.raises(ProtocolError, match="unknown type"):
        meet(tmp_path, says(T.DATA, unknown))


# A receiver that never makes a checkpoint complete


def test_segments_that_are_never_complete(tmp_path: Path) -> None:
    """It agrees to the end record, but said of no segment that it is durable."""

    def forget(talk: Talk, frame: Frame) -> None:
        segments(talk, frame)
        talk.complete.clear()

    with pytest.raises(ProtocolError):
        meet(tmp_path, says(T.SEGMENTS, forget))


def test_all_threads_are_gone_afterwards(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(P2vError):
        meet(tmp_path, error({"code": 1, "message": "x"}))
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline and set(threading.enumerate()) - before:
        for thread in set(threading.enumerate()) - before:
            thread.join(0.1)
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()
