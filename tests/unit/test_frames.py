"""The frames of wire.py: any fragmentation, any garbage, every cap."""

import struct
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_receiver import wire
from p2v_receiver.wire import Connection, Frame, FrameType, ProtocolError, State

Message = tuple[FrameType, bytes, bytes]

GREETING: list[Message] = [(FrameType.HELLO, b"{}", b"")]
BULK = st.tuples(
    st.sampled_from(
        [FrameType.DATA, FrameType.ZEROS, FrameType.FETCH, FrameType.PING, FrameType.PATCH]
    ),
    st.binary(max_size=40),
    st.binary(max_size=9000),
)


def pair() -> tuple[Connection, Connection]:
    """Both ends of a session's control connection, greeted and opened."""
    sender, receiver = Connection(wire.SENDER), Connection(wire.RECEIVER)
    for kind, ours, theirs in (
        (FrameType.HELLO, sender, receiver),
        (FrameType.WELCOME, receiver, sender),
        (FrameType.OPEN, sender, receiver),
        (FrameType.OPENED, receiver, sender),
    ):
        assert [frame.kind for frame in feed(theirs, ours.send(kind, b"{}", 0), 1000)] == [kind]
    return sender, receiver


def feed(end: Connection, data: bytes, piece: int) -> Iterator[Frame]:
    """Let ``data`` arrive in pieces of at most ``piece`` bytes."""
    while data:
        buffer = end.buffer()
        count = min(len(buffer), len(data), piece)
        buffer[:count] = data[:count]
        data = data[count:]
        frame = end.received(count)
        if frame is not None:
            yield frame._replace(body=memoryview(bytes(frame.body)))


@given(messages=st.lists(BULK, max_size=6), piece=st.integers(1, 5000))
def test_any_fragmentation_gives_the_same_frames(messages: list[Message], piece: int) -> None:
    sender, receiver = pair()
    data = b"".join(sender.send(kind, meta, len(body)) + body for kind, meta, body in messages)
    frames = list(feed(receiver, data, piece))
    assert [(frame.kind, frame.meta, bytes(frame.body)) for frame in frames] == messages
    assert receiver.state is State.CONTROL


@given(data=st.binary(min_size=1, max_size=400), greeted=st.booleans())
def test_garbage_is_a_protocol_error_and_nothing_else(data: bytes, greeted: bool) -> None:
    end = pair()[1] if greeted else Connection(wire.RECEIVER)
    try:
        for frame in feed(end, data, 64):
            unpack_anything(frame)
    except ProtocolError:
        pass


def unpack_anything(frame: Frame) -> None:
    for unpack in UNPACKERS:
        try:
            unpack(frame.meta)
        except ProtocolError:
            continue


UNPACKERS = (
    wire.Segments.unpack,
    lambda meta: wire.Segments.unpack(meta, with_digest=True),
    wire.Blocks.unpack,
    wire.Data.unpack,
    wire.Verify.unpack,
    wire.BlockSet.unpack,
    lambda meta: list(wire.Patch.unpack(meta).parts()),
    wire.Written.unpack,
    wire.unpack_number,
    wire.unpack_json,
)


@given(meta=st.binary(max_size=80))
def test_messages_of_any_bytes(meta: bytes) -> None:
    for unpack in UNPACKERS:
        try:
            unpack(meta)
        except ProtocolError:
            continue


def header(**changes: int) -> bytes:
    fields = {"kind": 1, "sequence": 0, "meta_length": 0, "body_length": 0, **changes}
    return wire.pack_header(**fields)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: p2v\r\n\r\n",
        header(sequence=1),
        header(meta_length=wire.MAX_META + 1),
        header(body_length=wire.MAX_BODY + 1),
        header(meta_length=0xFFFFFFFF, body_length=0xFFFFFFFF),
        header(kind=200),
        header(kind=200, flags=0xD7),
        header(kind=FrameType.DATA),
        header(kind=FrameType.WELCOME),
    ],
    ids=["http", "sequence", "meta", "body", "both", "unknown", "flags", "early", "role"],
)
def test_a_header_that_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(feed(Connection(wire.RECEIVER), data, 7))


def test_an_unknown_frame_that_is_optional_is_skipped() -> None:
    receiver = Connection(wire.RECEIVER)
    optional = {"kind": 200, "flags": wire.FLAG_OPTIONAL, "meta_check": zlib.crc32(b"abc")}
    data = header(meta_length=3, **optional) + b"abc" + header(sequence=1)
    assert [frame.kind for frame in feed(receiver, data, 5)] == [FrameType.HELLO]


@given(
    at=st.integers(0, wire.HEADER.size + 9), change=st.integers(1, 255), piece=st.integers(1, 40)
)
def test_p7_a_header_or_meta_that_is_damaged_ends_the_connection(
    at: int, change: int, piece: int
) -> None:
    """Were it skipped or believed, an answer could be waited for that never comes."""
    sender, receiver = pair()
    data = bytearray(sender.send(FrameType.SEGMENTS, b"0123456789", 0))
    data[at] ^= change
    with pytest.raises(ProtocolError, match=r"damaged|not p2v-sync"):
        list(feed(receiver, bytes(data), piece))


def test_nothing_comes_after_an_error() -> None:
    sender, receiver = pair()
    data = sender.send(FrameType.ERROR, b"{}", 0)
    list(feed(receiver, data, 100))
    with pytest.raises(ProtocolError):
        receiver.send(FrameType.PING, b"", 0)
    with pytest.raises(ProtocolError):
        sender.send(FrameType.DATA, b"", 0)


def test_what_is_too_long_is_not_sent() -> None:
    sender, _ = pair()
    with pytest.raises(ProtocolError):
        sender.send(FrameType.DATA, b"", wire.MAX_BODY + 1)
    with pytest.raises(ProtocolError):
        sender.send(FrameType.BEGIN, bytes(wire.MAX_META + 1), 0)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ("000000000000000700000002", wire.Segments(7, 2)),
        (
            "000000000000000700000002" + "ab" * 16,
            wire.Segments(7, 2, b"\xab" * 16),
        ),
        ("000000000000000900000003", wire.Blocks(9, 3)),
        ("00000000000000090200100000" + "cd" * 16, wire.Data(9, 2, 1 << 20, b"\xcd" * 16)),
        ("00000005000000000000000900000003", wire.Verify(5, 9, 3)),
        ("000000050000000000100000", wire.Written(5, 1 << 20)),
        ("0000000000000009" + "80" + "00" * 30 + "05", wire.BlockSet(9, 1 << 255 | 5)),
        (
            "0000000000000009" + "00" * 31 + "05" + "0200001000" + "cd" * 32 + "01800002",
            wire.Patch(wire.BlockSet(9, 5), 2, 4096, b"\xcd" * 32, b"\x01\x80\x00\x02"),
        ),
    ],
    ids=["segments", "complete", "blocks", "data", "verify", "written", "set", "patch"],
)
def test_the_bytes_of_every_message_stay(packed: str, message: wire.Segments) -> None:
    assert message.pack().hex() == packed
    extra = {"with_digest": True} if getattr(message, "digest", b"") else {}
    assert type(message).unpack(bytes.fromhex(packed), **extra) == message


def test_the_bytes_of_a_frame_stay() -> None:
    data = Connection(wire.SENDER).send(FrameType.HELLO, b"{}", 5)
    lengths = "00000000" + "00000002" + "00000005"
    assert data.hex() == "50320100" + lengths + "a3a6bf43" + "9c7eff22" + "7b7d"


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"a":NaN}',
        b'{"a":' + b"9" * 5000 + b"}",
        b"[" * 100000,
    ],
    ids=["list", "cut", "bytes", "nan", "digits", "deep"],
)
def test_json_that_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.unpack_json(text)


@pytest.mark.parametrize("value", [True, "1", -1, 1 << 61, None, 1.0, [1]])
def test_what_is_no_count(value: object) -> None:
    with pytest.raises(ProtocolError):
        wire.get_int({"n": value}, "n")


@pytest.mark.parametrize("value", [[1], [[1]], [[1, 2, 3]], [[1, "2"]], [[-1, 2]], [[True, 2]], 5])
def test_what_are_no_pairs(value: object) -> None:
    with pytest.raises(ProtocolError):
        wire.get_pairs({"n": value}, "n")


def test_the_header_is_twenty_four_bytes() -> None:
    assert struct.calcsize("!2sBBIIIII") == wire.HEADER.size == 24


# The layout of a disk.


@given(size=st.integers(1, 1 << 40), shift=st.integers(12, 22))
def test_segments_cover_the_disk(size: int, shift: int) -> None:
    layout = wire.Layout(size, 1 << shift)
    assert (layout.blocks - 1) << shift < size <= layout.blocks << shift
    last = layout.segments - 1
    assert layout.segment_extent(last)[1] == size
    assert last * wire.SEGMENT_BLOCKS + layout.blocks_in(last) == layout.blocks
    assert 0 < layout.blocks_in(last) <= wire.SEGMENT_BLOCKS
