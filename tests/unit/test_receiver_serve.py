"""Senders that lie, flood, vanish or crowd: each gets its ERROR, the others are served on."""

import contextlib
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2v_receiver import codec, live, serve, store, wire
from p2v_receiver.session import Session
from p2v_receiver.target import Image, TargetError
from p2v_receiver.wire import ErrorCode, FrameType, Json
from tests.contract.bench import BLOCK, SIZE, Bench
from tests.contract.channel_suite import wait_until
from tests.contract.lab import Receiver, block_of, ram_directory

PATIENCE_S = 5.0
HELLO: Json = {"version": wire.VERSION, "oldest": wire.VERSION}
BEGIN: Json = {"kind": "initial", "source": {}}
F = FrameType


class Visited(Receiver):
    """A receiver that knows who came."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.visitors: list[Hostile] = []


class Hostile:
    """A sender that says any frame at all, in sequence; ``hear`` waits five seconds, no more."""

    def __init__(self, receiver: "Visited") -> None:
        self._socket = receiver.connect()
        self._socket.settimeout(PATIENCE_S)
        receiver.visitors.append(self)
        self._sent = 0
        self._left = b""

    def say(self, kind: int, meta: Json | bytes = b"", body: bytes = b"") -> None:
        packed = meta if isinstance(meta, bytes) else wire.pack_json(meta)
        check = zlib.crc32(packed)
        head = wire.pack_header(kind, self._sent, len(packed), len(body), check)
        self._sent += 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(head + packed + body)

    def say_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _receive(self, count: int) -> bytes:
        while len(self._left) < count:
            data = self._socket.recv(1 << 20)
            if not data:
                raise EOFError
            self._left += data
        data, self._left = self._left[:count], self._left[count:]
        return data

    def hear(self) -> tuple[FrameType, bytes, bytes]:
        while True:
            _, kind, _, _, meta, body, _, _ = wire.HEADER.unpack(self._receive(wire.HEADER.size))
            answer = FrameType(kind), self._receive(meta), self._receive(body)
            if answer[0] is not F.PING:
                return answer

    def expect(self, kind: FrameType) -> Json:
        while True:
            heard, meta, _ = self.hear()
            if heard is F.ERROR and kind is not F.ERROR:
                pytest.fail(f"the receiver says {meta!r}")
            if heard is kind:
                return wire.unpack_json(meta) if meta.startswith(b"{") else {}

    def expect_error(self, code: ErrorCode = ErrorCode.PROTOCOL) -> str:
        """An ERROR of this kind, then the end of the connection."""
        message = self.expect(F.ERROR)
        assert message["code"] == code, message
        self.expect_end()
        return str(message["message"])

    def expect_end(self) -> None:
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                self.hear()

    def greet(self) -> "Hostile":
        self.say(F.HELLO, HELLO)
        self.expect(F.WELCOME)
        return self

    def open(self, **changes: Any) -> Json:
        self.say(F.OPEN, {**REQUEST, **changes})
        return self.expect(F.OPENED)

    def begin(self, **changes: Any) -> Json:
        opened = self.greet().open(**changes)
        self.say(F.BEGIN, BEGIN)
        self.expect(F.BEGUN)
        return opened

    def part(self) -> None:
        self.say(F.CLOSE)
        self.expect(F.CLOSED)

    def vanish(self) -> None:
        self._socket.close()


REQUEST: Json = {
    "job": "job",
    "disk": "disk",
    "size": SIZE,
    "block_size": BLOCK,
    "digest": None,
    "digests": codec.digest_names(),
    "run": "run-1",
    "source_file": {},
    "create": True,
}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ram_directory() as root:
        yield Bench(root)


@pytest.fixture
def receiver(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visited]:
    """A receiver that is well afterwards: it serves a new sender, and nothing is left over."""
    monkeypatch.setattr(store, "PATIENCE_S", 0.1)
    monkeypatch.setattr(serve, "PATIENCE_S", 0.1)
    threads = threading.active_count()
    made = Visited(bench.root)
    yield made
    honest = Hostile(made)
    honest.begin(disk="another")
    honest.part()
    for visitor in made.visitors:
        visitor.vanish()
    made.wait()
    assert made.server.live_sessions == 0
    wait_until(lambda: threading.active_count() <= threads)


@pytest.fixture
def sender(receiver: Visited) -> Hostile:
    return Hostile(receiver)


# Before a disk is open.


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({}, ErrorCode.PROTOCOL),
        ({"version": 2, "oldest": 2}, ErrorCode.VERSION),
        ({"version": 0, "oldest": 0}, ErrorCode.VERSION),
        ({"version": "1", "oldest": 1}, ErrorCode.PROTOCOL),
        ({"version": True, "oldest": True}, ErrorCode.PROTOCOL),
        (b"[]", ErrorCode.PROTOCOL),
        (b"[" * 100_000, ErrorCode.PROTOCOL),
        (b'{"version":' + b"9" * 200_000 + b"}", ErrorCode.PROTOCOL),
        (b"\xff\xfe", ErrorCode.PROTOCOL),
    ],
    ids=["empty", "newer", "older", "text", "bool", "list", "deep", "digits", "bytes"],
)
def test_a_greeting_of_nonsense(sender: Hostile, hello: Json | bytes, code: ErrorCode) -> None:
    sender.say(F.HELLO, hello)
    sender.expect_error(code)


def test_a_sender_of_a_newer_version_that_can_do_ours(sender: Hostile) -> None:
    sender.say(F.HELLO, {"version": 7, "oldest": 1, "news": ["teleport"]})
    assert sender.expect(F.WELCOME)["version"] == wire.VERSION


@pytest.mark.parametrize("kind", [each for each in F if each not in (F.HELLO, F.PING, F.ERROR)])
def test_anything_but_a_greeting_first(sender: Hostile, kind: FrameType) -> None:
    sender.say(kind, HELLO)
    sender.expect_error()


@pytest.mark.parametrize(
    "kind", [each for each in F if each not in (F.OPEN, F.CUTOVER, F.ATTACH, F.PING, F.ERROR)]
)
def test_anything_but_a_request_second(sender: Hostile, kind: FrameType) -> None:
    sender.greet().say(kind, REQUEST)
    sender.expect_error()


@pytest.mark.parametrize("greeted", [False, True])
def test_an_error_instead_of_a_request(sender: Hostile, greeted: bool) -> None:
    if greeted:
        sender.greet()
    sender.say(F.ERROR, {"code": 1, "message": "sorry"})
    with pytest.raises(EOFError):
        sender.hear()


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: p2v\r\n\r\n", bytes(100), random.Random(1).randbytes(1000)]
)
def test_what_is_no_frame(sender: Hostile, data: bytes) -> None:
    sender.say_bytes(data)
    sender.expect_error()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"size": 0}, ErrorCode.PROTOCOL),
        ({"size": -1}, ErrorCode.PROTOCOL),
        ({"size": 1 << 61}, ErrorCode.PROTOCOL),
        ({"size": 1.5}, ErrorCode.PROTOCOL),
        ({"size": 1 << 60}, ErrorCode.REFUSED),
        ({"block_size": 4095}, ErrorCode.PROTOCOL),
        ({"block_size": 1 << 30}, ErrorCode.PROTOCOL),
        ({"block_size": True}, ErrorCode.PROTOCOL),
        ({"block_size": "x" * 200_000}, ErrorCode.PROTOCOL),
        ({"digest": 5}, ErrorCode.PROTOCOL),
        ({"digest": "x" * 200_000}, ErrorCode.VERSION),
        ({"digest": "\ud800"}, ErrorCode.VERSION),
        ({"digests": [5]}, ErrorCode.PROTOCOL),
        ({"digests": []}, ErrorCode.VERSION),
        ({"run": None}, ErrorCode.PROTOCOL),
        ({"run": "\ud800"}, ErrorCode.PROTOCOL),
        ({"job": "../job"}, ErrorCode.REFUSED),
        ({"job": ["job"]}, ErrorCode.PROTOCOL),
        ({"disk": "a/b"}, ErrorCode.REFUSED),
        ({"disk": "\ud800"}, ErrorCode.PROTOCOL),
        ({"source_file": []}, ErrorCode.PROTOCOL),
        ({"create": 1}, ErrorCode.PROTOCOL),
        ({"create": False}, ErrorCode.CHANGED),
    ],
)
def test_p10_a_request_of_nonsense(
    sender: Hostile, bench: Bench, changes: Json, code: ErrorCode
) -> None:
    sender.greet().say(F.OPEN, {**REQUEST, **changes})
    sender.expect_error(code)
    assert not bench.image.exists()


# Several senders.


def test_p10_two_senders_on_one_disk(receiver: Visited, sender: Hostile) -> None:
    sender.begin()
    second = Hostile(receiver)
    second.greet().say(F.OPEN, {**REQUEST, "run": "run-2"})
    assert "held by another run" in second.expect_error(ErrorCode.LOCKED)
    sender.part()


def test_p10_the_same_run_ends_its_former_session(receiver: Visited, sender: Hostile) -> None:
    sender.begin()
    second = Hostile(receiver)
    assert second.begin()["session"]
    with pytest.raises(EOFError):
        sender.hear()
    second.part()


@pytest.mark.parametrize("token", ["", "0" * 32, "\u00e9", "\ud800", None, 5])
@pytest.mark.parametrize("known", [False, True])
def test_p10_attaching_without_the_token(
    receiver: Visited, sender: Hostile, token: Any, known: bool
) -> None:
    opened = sender.begin()
    second = Hostile(receiver)
    second.greet().say(
        F.ATTACH, {"session": opened["session"] if known else "none", "token": token}
    )
    second.expect_error()
    sender.part()


def test_steering_is_for_the_first_connection(receiver: Visited, sender: Hostile) -> None:
    opened = sender.begin()
    second = Hostile(receiver)
    second.greet().say(F.ATTACH, {"session": opened["session"], "token": opened["token"]})
    second.expect(F.ATTACHED)
    second.say(F.CHECKPOINT, wire.pack_number(1))
    second.expect_error()
    sender.expect_error()


def test_many_senders_at_once(receiver: Visited) -> None:
    """Each in its own job, one of them a liar: none is mixed up with another."""
    failures: list[BaseException] = []

    def copy(number: int) -> None:
        try:
            one = Hostile(receiver)
            opened = one.begin(job=f"job-{number}", size=BLOCK)
            if number == 5:
                one.say(F.ZEROS, wire.Blocks(7, 1).pack())
                one.expect_error()
                return
            digest = codec.digest_function(opened["digest"], opened["seed"])
            data = block_of(number)
            one.say(F.DATA, wire.Data(0, codec.RAW, BLOCK, digest(data)).pack(), data)
            one.say(F.CHECKPOINT, wire.pack_number(1))
            one.expect(F.COMMITTED)
            one.part()
        except BaseException as error:  # noqa: BLE001 - for the assertion
            failures.append(error)

    threads = [threading.Thread(target=copy, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number in {*range(16)} - {5}:
        image = receiver.server.root + f"/job-{number}/disk.img"
        with open(image, "rb") as file:
            assert file.read() == block_of(number)


# Frames that lie.


def data_frame(opened: Json, data: bytes, **changes: Any) -> bytes:
    digest = codec.digest_function(opened["digest"], opened["seed"])
    entries = b"".join(codec.entries_of(memoryview(data), BLOCK, digest))
    return wire.Data(0, codec.RAW, len(data), entries)._replace(**changes).pack()


def patch_frame(**changes: Any) -> bytes:
    patch = wire.Patch(wire.BlockSet(0, 1), codec.RAW, BLOCK, bytes(16), b"\x01")
    return patch._replace(**changes).pack()


LIES: dict[str, tuple[FrameType, bytes, bytes]] = {
    "segments-huge": (F.SEGMENTS, wire.Segments(0, 0xFFFFFFFF, bytes(16)).pack(), b""),
    "segments-many": (F.SEGMENTS, wire.Segments(0, wire.MAX_SEGMENTS, bytes(16)).pack(), b""),
    "segments-none": (F.SEGMENTS, wire.Segments(0, 0, bytes(16)).pack(), b""),
    "segments-off": (F.SEGMENTS, wire.Segments(3, 1, bytes(16)).pack(), b""),
    "segments-far": (F.SEGMENTS, wire.Segments((1 << 64) - 1, 1, bytes(16)).pack(), b""),
    "segments-short": (F.SEGMENTS, wire.Segments(0, 1).pack(), b""),
    "fetch-huge": (F.FETCH, wire.Segments(0, 0xFFFFFFFF).pack(), b""),
    "fetch-many": (F.FETCH, wire.Segments(0, wire.MAX_SEGMENTS).pack(), b""),
    "fetch-none": (F.FETCH, wire.Segments(0, 0).pack(), b""),
    "fetch-off": (F.FETCH, wire.Segments(2, 2).pack(), b""),
    "fetch-long": (F.FETCH, bytes(13), b""),
    "zeros-huge": (F.ZEROS, wire.Blocks(0, 0xFFFFFFFF).pack(), b""),
    "zeros-none": (F.ZEROS, wire.Blocks(0, 0).pack(), b""),
    "zeros-off": (F.ZEROS, wire.Blocks(533, 1).pack(), b""),
    "zeros-far": (F.ZEROS, wire.Blocks((1 << 64) - 1, 4096).pack(), b""),
    "verify-huge": (F.VERIFY, wire.Verify(1, 0, 0xFFFFFFFF).pack(), b""),
    "verify-none": (F.VERIFY, wire.Verify(1, 0, 0).pack(), b""),
    "verify-off": (F.VERIFY, wire.Verify(1, 533, 1).pack(), b""),
    "verify-body": (F.VERIFY, wire.Verify(1, 0, 2).pack(), bytes(17)),
    "verify-body-huge": (F.VERIFY, wire.Verify(1, 0, 2).pack(), bytes(wire.MAX_BODY)),
    "data-empty": (F.DATA, wire.Data(0, 0, 0, bytes(16)).pack(), b""),
    "data-headless": (F.DATA, b"", b"x" * BLOCK),
    "data-no-entries": (F.DATA, wire.Data(0, 0, BLOCK, b"").pack(), bytes(BLOCK)),
    "data-half-entry": (F.DATA, wire.Data(0, 0, BLOCK, bytes(8)).pack(), bytes(BLOCK)),
    "data-too-long": (F.DATA, wire.Data(0, 0, 1 << 31, bytes(16)).pack(), b""),
    "data-off": (F.DATA, wire.Data(533, 0, BLOCK, bytes(16)).pack(), bytes(BLOCK)),
    "data-far": (F.DATA, wire.Data((1 << 64) - 1, 0, BLOCK, bytes(16)).pack(), bytes(BLOCK)),
    "data-long-tail": (F.DATA, wire.Data(532, 0, BLOCK, bytes(16)).pack(), bytes(BLOCK)),
    "data-more-entries": (F.DATA, wire.Data(0, 0, BLOCK, bytes(32)).pack(), bytes(BLOCK)),
    "data-fewer-entries": (F.DATA, wire.Data(0, 0, 2 * BLOCK, bytes(16)).pack(), bytes(2 * BLOCK)),
    "pages-none": (F.ASK_PAGES, wire.BlockSet(0, 0).pack(), b""),
    "pages-off": (F.ASK_PAGES, wire.BlockSet(2, 1 << 255).pack(), b""),
    "pages-far": (F.ASK_PAGES, wire.BlockSet((1 << 64) - 1, 1).pack(), b""),
    "pages-short": (F.ASK_PAGES, bytes(39), b""),
    "patch-short": (F.PATCH, bytes(44), b""),
    "patch-none": (F.PATCH, patch_frame(blocks=wire.BlockSet(0, 0)), bytes(BLOCK)),
    "patch-off": (F.PATCH, patch_frame(blocks=wire.BlockSet(3, 1)), bytes(BLOCK)),
    "patch-far": (F.PATCH, patch_frame(blocks=wire.BlockSet(2, 1 << 255)), bytes(BLOCK)),
    "patch-no-map": (F.PATCH, patch_frame(page_maps=b""), bytes(BLOCK)),
    "patch-long-map": (F.PATCH, patch_frame(page_maps=bytes(2)), bytes(BLOCK)),
    "patch-more-pages": (F.PATCH, patch_frame(page_maps=b"\x03"), bytes(BLOCK)),
    "patch-other-page": (F.PATCH, patch_frame(page_maps=b"\x02"), bytes(BLOCK)),
    "patch-fewer-pages": (F.PATCH, patch_frame(page_maps=b"\x00"), bytes(BLOCK)),
    "patch-too-long": (F.PATCH, patch_frame(raw_length=1 << 31), b""),
    "patch-longer": (F.PATCH, patch_frame(raw_length=2 * BLOCK), bytes(2 * BLOCK)),
    "page-digests": (F.PAGE_DIGESTS, wire.BlockSet(0, 1).pack(), bytes(8)),
    "refused": (F.REFUSED, wire.BlockSet(0, 1).pack(), b""),
    "checkpoint": (F.CHECKPOINT, bytes(5), b""),
    "unreadable": (F.UNREADABLE, b'{"extents":[[0,-1]]}', b""),
    "unreadable-list": (F.UNREADABLE, b"[]", b""),
    "unreadable-many": (F.UNREADABLE, b'{"extents":[' + b"[0,1]," * 5000 + b"[0,1]]}", b""),
    "unreadable-off": (F.UNREADABLE, b'{"extents":[[0,9999999999]]}', b""),
    "begin": (F.BEGIN, b'{"kind":"initial","source":5}', b""),
    "begin-kind": (F.BEGIN, b'{"kind":"all","source":{}}', b""),
    "begin-long": (F.BEGIN, b'{"kind":"seed","source":{"a":"' + b"b" * 200_000 + b'"}}', b""),
    "end": (F.END, b"{}", b""),
    "end-huge": (F.END, b'{"blocks_sent":1e99,"blocks_zeroed":0,"digest":""}', b""),
    "again": (F.OPEN, wire.pack_json(REQUEST), b""),
    "attach": (F.ATTACH, b'{"session":"","token":""}', b""),
    "hello": (F.HELLO, wire.pack_json(HELLO), b""),
    "role": (F.WRITTEN, wire.Written(1, 1).pack(), b""),
    "log": (F.LOG, b"{}", b""),
}


@pytest.mark.parametrize("lie", LIES)
def test_p4_p10_a_frame_that_lies(sender: Hostile, bench: Bench, lie: str) -> None:
    sender.begin()
    started = time.monotonic()
    sender.say(*LIES[lie])
    assert len(sender.expect_error()) < 300
    assert time.monotonic() - started < PATIENCE_S
    assert not any(bench.image.read_bytes())


@pytest.mark.parametrize(
    ("number", "body"),
    [(codec.RAW, bytes(BLOCK - 1)), (codec.ZLIB, b"junk"), (codec.ZSTD, b"junk"), (77, b"junk")],
)
def test_p4_a_body_that_is_damaged(sender: Hostile, bench: Bench, number: int, body: bytes) -> None:
    sender.begin()
    sender.say(F.DATA, wire.Data(0, number, BLOCK, bytes(16)).pack(), body)
    sender.expect_error(ErrorCode.INTEGRITY)
    assert not any(bench.image.read_bytes())


def test_p4_a_bomb(sender: Hostile, bench: Bench) -> None:
    sender.begin()
    bomb = codec.codec_by_name("zlib").compress(bytes(64 << 20))
    sender.say(F.DATA, wire.Data(0, codec.ZLIB, BLOCK, wire.ZERO).pack(), bomb)
    sender.expect_error(ErrorCode.INTEGRITY)
    assert not any(bench.image.read_bytes())


def test_p11_blocks_before_a_pass(sender: Hostile, bench: Bench) -> None:
    opened = sender.greet().open()
    sender.say(F.DATA, data_frame(opened, b"x" * BLOCK), b"x" * BLOCK)
    assert "before a pass" in sender.expect_error()
    assert not any(bench.image.read_bytes())


def test_a_bug_is_said_and_does_not_spread(
    receiver: Visited, sender: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("x" * 300_000)

    sender.begin()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "zeros", fail)
        sender.say(F.ZEROS, wire.Blocks(0, 1).pack())
        assert sender.expect_error(ErrorCode.INTERNAL).startswith("RuntimeError: xxx")
        second = Hostile(receiver)
        patch.setattr(store.Opener, "open", fail)
        second.greet().say(F.OPEN, {**REQUEST, "disk": "second"})
        second.expect_error(ErrorCode.INTERNAL)


# Floods.


@pytest.mark.parametrize(
    ("kind", "meta"),
    [
        (F.FETCH, wire.Segments(0, 3).pack()),
        (F.CHECKPOINT, wire.pack_number(1)),
    ],
    ids=["fetch", "checkpoint"],
)
def test_requests_without_end(
    receiver: Visited,
    sender: Hostile,
    monkeypatch: pytest.MonkeyPatch,
    kind: FrameType,
    meta: bytes,
) -> None:
    """The queue is full while the worker is stuck: that must not keep the session from ending."""
    gate = threading.Event()
    for name in ("fetch", "checkpoint"):
        real = getattr(Session, name)

        def slow(*arguments: Any, real: Callable[..., Any] = real, **named: Any) -> Any:
            gate.wait(PATIENCE_S)
            return real(*arguments, **named)

        monkeypatch.setattr(Session, name, slow)
    sender.begin()
    for _ in range(live._MOST_REQUESTS + 2):
        sender.say(kind, meta)
    assert "too many requests" in sender.expect_error()
    gate.set()
    wait_until(lambda: receiver.server.live_sessions == 0)


def test_a_flood_of_everything_small(sender: Hostile) -> None:
    sender.begin()
    for _ in range(2000):
        sender.say(F.UNREADABLE, {"extents": []})
        sender.say(F.VERIFY, wire.Verify(1, 0, 1).pack())
        sender.expect(F.VERIFIED)
    sender.part()


def test_a_sender_that_never_listens_is_hung_up_on(receiver: Visited, bench: Bench) -> None:
    """Its answers fill every buffer; when it goes, its session ends."""
    bench.fill("A")
    deaf = Hostile(receiver)
    deaf.greet().open()
    for _ in range(500):
        deaf.say(F.FETCH, wire.Segments(0, 3).pack())
    deaf.vanish()
    wait_until(lambda: receiver.server.live_sessions == 0)


# Senders that vanish.


def frames_of_a_pass(opened: Json) -> Iterator[tuple[FrameType, bytes, bytes]]:
    """What an honest sender says: data in two segments, zeros, a bad sector, a checkpoint."""
    digest = codec.digest_function(opened["digest"], opened["seed"])
    yield F.BEGIN, wire.pack_json(BEGIN), b""
    layout = wire.Layout(SIZE, BLOCK)
    for first, total in ((0, 200), (250, 20), (500, 33)):
        start, end = layout.extent(first, total)
        data = b"".join(block_of((first, at)) for at in range(total))[: end - start]
        entries = b"".join(codec.entries_of(memoryview(data), BLOCK, digest))
        yield F.DATA, wire.Data(first, codec.RAW, len(data), entries).pack(), data
        yield F.ZEROS, wire.Blocks(first + 2, 3).pack(), b""
        yield F.CHECKPOINT, wire.pack_number(first + 1), b""
    yield F.UNREADABLE, wire.pack_json({"extents": [[512, 512]]}), b""
    yield F.FETCH, wire.Segments(0, 3).pack(), b""
    yield F.CLOSE, b"", b""


@pytest.mark.parametrize("cut", [0.0, 0.5, 1.0], ids=["before", "within", "after"])
@pytest.mark.parametrize("at", range(13))
def test_p2_p7_a_sender_that_vanishes_at_any_frame(
    receiver: Visited, bench: Bench, at: int, cut: float
) -> None:
    """What came is recorded, and the next sender may trust it; the pass is not complete."""
    sender = Hostile(receiver)
    opened = sender.greet().open()
    frames = list(frames_of_a_pass(opened))
    assert len(frames) == 13
    written = 0
    for kind, meta, body in frames[:at]:
        sender.say(kind, meta, body)
        written += kind is F.DATA
        if kind is F.BEGIN:
            sender.expect(F.BEGUN)
    kind, meta, body = frames[at]
    head = wire.pack_header(kind, 2 + at, len(meta), len(body), zlib.crc32(meta))
    whole = head + meta + body
    sender.say_bytes(whole[: int(len(whole) * cut)])
    sender.vanish()
    receiver.wait()
    assert bench.certain() == {0, 1, 2}
    written += kind is F.DATA and cut == 1.0
    with bench.work() as worker:
        assert worker.reasons == []
        assert worker.target.created is False
        header = worker.target.manifest.header()
        assert header["pass_complete"] == (at + (cut == 1.0) == 0)
        unknown = wire.UNKNOWN in b"".join(worker.fetch().values())
        assert not unknown
    assert any(bench.image.read_bytes()) == (written > 0)


def test_p2_a_failed_write_is_told_and_nothing_is_recorded_after_it(
    receiver: Visited, sender: Hostile, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TargetError(ErrorCode.FULL, "writing: No space left on device", "make room")

    opened = sender.begin()
    with monkeypatch.context() as patch:
        patch.setattr(Image, "write", fail)
        sender.say(F.DATA, data_frame(opened, b"x" * BLOCK), b"x" * BLOCK)
        assert "No space" in sender.expect_error(ErrorCode.FULL)
        receiver.wait()
    with bench.record() as manifest:
        assert manifest.segment(0, bench.layout).uncertain


def test_p2_the_receiver_is_told_to_stop(receiver: Visited, bench: Bench) -> None:
    sender = Hostile(receiver)
    opened = sender.begin()
    sender.say(F.DATA, data_frame(opened, b"x" * BLOCK), b"x" * BLOCK)
    sender.say(F.VERIFY, wire.Verify(1, 0, 1).pack())
    assert sender.expect(F.VERIFIED)["wrong"] == []
    receiver.server.shut_down()
    assert bench.certain() == {0, 1, 2}
    assert bench.image.read_bytes()[:BLOCK] == b"x" * BLOCK


# Long answers.


def test_a_long_list_of_segments_goes_in_pieces(
    receiver: Visited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_EXTENTS", 2)
    sender = Hostile(receiver)
    sender.begin(size=12 * wire.SEGMENT_BLOCKS * BLOCK)
    zero = codec.entries_digest(wire.ZERO * wire.SEGMENT_BLOCKS)
    for segment in range(0, 10, 2):
        told = wire.Segments(segment, 1, codec.entries_digest(zero))
        sender.say(F.SEGMENTS, told.pack())
        sender.expect(F.WRITTEN)
    sender.say(F.CHECKPOINT, wire.pack_number(7))
    answers = [sender.expect(F.COMMITTED) for _ in range(3)]
    assert [answer["number"] for answer in answers] == [None, None, 7]
    pairs = [pair for answer in answers for pair in answer["complete"]]
    assert pairs == [[segment, 1] for segment in range(0, 10, 2)]
    sender.part()


def test_the_longest_answer_to_an_open_fits(receiver: Visited, bench: Bench) -> None:
    with bench.work() as worker:
        worker.session.begin({"kind": "seed", "source": {"a": "b" * 16_000}})
        far = 1 << 59
        extents = [(far + at, far) for at in range(2 * wire.MAX_EXTENTS)]
        worker.target.manifest.finish_pass(True, extents, worker.target.image.identity())
    sender = Hostile(receiver)
    sender.greet()
    assert len(sender.open()["unreadable"]) == wire.MAX_EXTENTS
    sender.part()
