"""What wire.py refuses beyond broken frames, and what two threads may do to one connection."""

import json
import threading
from typing import Any

import pytest

from p2v_receiver import wire
from p2v_receiver.wire import Connection, FrameType, ProtocolError, State

OPENING = [FrameType.HELLO, FrameType.WELCOME, FrameType.OPEN, FrameType.OPENED]


def in_control() -> Connection:
    """The receiver's end of an opened session."""
    end = Connection(wire.RECEIVER)
    for number, kind in enumerate(OPENING):
        if number % 2:
            end.send(kind, b"", 0)
        else:
            end.buffer()[:] = wire.pack_header(kind, number // 2, 0, 0)
            assert end.received(wire.HEADER.size) is not None
    assert end.state is State.CONTROL
    return end


def test_a_frame_that_changes_nothing_undoes_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A COMMITTED goes out in one thread while the END comes in through another."""
    end = in_control()
    real = wire.next_state

    def interrupted(state: State, role: str, kind: FrameType) -> State:
        after = real(state, role, kind)
        if kind is FrameType.COMMITTED:
            end.buffer()[:] = wire.pack_header(FrameType.END, 2, 0, 0)
            receiving = threading.Thread(target=end.received, args=(wire.HEADER.size,))
            receiving.start()
            receiving.join()
        return after

    monkeypatch.setattr(wire, "next_state", interrupted)
    end.send(FrameType.COMMITTED, b"", 0)
    assert end.state is State.ENDING
    end.send(FrameType.ENDED, b"", 0)


def test_only_the_receiver_logs() -> None:
    for state in set(State) - {State.DONE}:
        assert wire.next_state(state, wire.RECEIVER, FrameType.LOG) is state
        with pytest.raises(ProtocolError):
            wire.next_state(state, wire.SENDER, FrameType.LOG)


def test_both_ends_agree_on_every_transition() -> None:
    """What one end may send, the other one may receive, and both are in the same state then."""
    for state, rules in wire.TRANSITIONS.items():
        for (role, kind), after in rules.items():
            ends = (
                Connection(role),
                Connection(wire.RECEIVER if role == wire.SENDER else wire.SENDER),
            )
            for end in ends:
                end.state = state
            data = ends[0].send(kind, b"", 0)
            ends[1].buffer()[:] = data
            assert ends[1].received(len(data)) is not None
            assert ends[0].state is ends[1].state is after


@pytest.mark.parametrize("total", [0, wire.MAX_RUN + 1, 0xFFFFFFFF])
def test_runs_of_blocks_are_bounded(total: int) -> None:
    with pytest.raises(ProtocolError):
        wire.Blocks.unpack(wire.Blocks(0, total).pack())
    with pytest.raises(ProtocolError):
        wire.Verify.unpack(wire.Verify(1, 0, total).pack())


@pytest.mark.parametrize(("first", "total"), [(0, 0), (0, 0xFFFFFFFF), ((1 << 64) - 1, 1)])
def test_segments_are_bounded(first: int, total: int) -> None:
    with pytest.raises(ProtocolError):
        wire.Segments.unpack(wire.Segments(first, total).pack())
    most = wire.Segments(wire.MAX_SEGMENTS - 1, 1)
    assert wire.Segments.unpack(most.pack()) == most


@pytest.mark.parametrize(("segment", "bits"), [(0, 0), (wire.MAX_SEGMENTS, 1), ((1 << 64) - 1, 1)])
def test_sets_of_blocks_are_bounded(segment: int, bits: int) -> None:
    with pytest.raises(ProtocolError):
        wire.BlockSet.unpack(wire.BlockSet(segment, bits).pack())
    most = wire.BlockSet(wire.MAX_SEGMENTS - 1, (1 << 256) - 1)
    assert wire.BlockSet.unpack(most.pack()) == most
    assert most.blocks == list(range((wire.MAX_SEGMENTS - 1) * 256, wire.MAX_SEGMENTS * 256))


TWO = wire.Patch(wire.BlockSet(1, 0b1010), 0, 8192, b"a" * 16 + b"b" * 16, b"\x00\x01\x00\x02")


def test_a_patch_is_cut_into_its_blocks() -> None:
    assert list(wire.Patch.unpack(TWO.pack()).parts()) == [
        (257, b"a" * 16, 1),
        (259, b"b" * 16, 2),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"raw_length": wire.MAX_REQUEST + 1},
        {"entries": b""},
        {"entries": b"a" * 31},
        {"page_maps": b""},
        {"page_maps": b"abc"},
        {"blocks": wire.BlockSet(1, 0)},
        {"blocks": wire.BlockSet(wire.MAX_SEGMENTS, 3)},
        {"blocks": wire.BlockSet(0, (1 << 256) - 1)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_patch_that_contradicts_itself(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        wire.Patch.unpack(TWO._replace(**changes).pack())


@pytest.mark.parametrize(
    ("page_map", "length", "pieces"),
    [
        (0, 16384, []),
        (0b1101, 16384, [(0, 4096), (8192, 8192)]),
        (0b1111, 16384, [(0, 16384)]),
        (0b10, 4097, [(4096, 1)]),
        (0b11, 4097, [(0, 4097)]),
    ],
)
def test_the_pieces_of_a_block(page_map: int, length: int, pieces: list[tuple[int, int]]) -> None:
    assert wire.page_pieces(page_map, length) == pieces
    with pytest.raises(ProtocolError):
        wire.page_pieces(page_map | 1 << -(-length // 4096), length)


def test_a_list_of_pairs_is_bounded() -> None:
    pairs = [[0, 1]] * wire.MAX_EXTENTS
    assert len(wire.get_pairs({"n": pairs}, "n")) == wire.MAX_EXTENTS
    with pytest.raises(ProtocolError, match="4097 pairs"):
        wire.get_pairs({"n": [*pairs, [0, 1]]}, "n")


def test_half_a_character_is_no_text() -> None:
    message = wire.unpack_json(b'{"n": "\\ud800", "m": ["\\ud800"]}')
    with pytest.raises(ProtocolError, match="not text"):
        wire.get(message, "n", str)


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1" * 21, "-" + "1" * 20])
def test_numbers_that_are_none(value: str) -> None:
    with pytest.raises(ProtocolError):
        wire.unpack_json(f'{{"n": {value}}}'.encode())
    with pytest.raises(ProtocolError):
        wire.unpack_json(f'{{"n": [[{value}]]}}'.encode())


@pytest.mark.parametrize("value", [0, (1 << 64) - 1, -(1 << 60)])
def test_numbers_that_are(value: int) -> None:
    assert wire.unpack_json(json.dumps({"n": value}).encode()) == {"n": value}


@pytest.mark.parametrize("value", [None, "x", ["x", 1], [None], {"x": 1}])
def test_names_that_are_none(value: object) -> None:
    with pytest.raises(ProtocolError):
        wire.get_names({"n": value}, "n")
