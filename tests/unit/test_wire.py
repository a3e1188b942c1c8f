"""What wire.py refuses beyond broken frames, and what two threads may do to one connection."""

import json
import threading

import pytest

from p2v_receiver import wire
from p2v_receiver.wire import Connection, FrameType, ProtocolError, State

OPENING = [FrameType.HELLO, FrameType.WELCOME, FrameType.OPEN, FrameType.OPENED]


def frame(kind: FrameType, sequence: int) -> bytes:
    return wire.HEADER.pack(wire.MAGIC, kind, 0, sequence, 0, 0)


def in_control() -> Connection:
    """The receiver's end of an opened session."""
    end = Connection(wire.RECEIVER)
    for number, kind in enumerate(OPENING):
        if number % 2:
            end.send(kind, b"", 0)
        else:
            end.buffer()[:] = frame(kind, number // 2)
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
            end.buffer()[:] = frame(FrameType.END, 2)
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
