"""Silence: what is a sign of life, and what is not."""

import itertools
import socket
import threading

import pytest

from p2v_receiver import wire
from p2v_receiver.stream import FdPipe, FrameStream, SocketPipe, StreamLost
from p2v_receiver.wire import FrameType


def test_pings_that_are_taken_for_the_rest_of_a_frame_are_no_sign_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when part of it was lost; by their number they would fill it up some day."""
    ours, theirs = socket.socketpair()
    here = FrameStream(FdPipe(ours.fileno(), ours.fileno()), wire.SENDER)
    there = FrameStream(SocketPipe(theirs), wire.RECEIVER)
    here.send(FrameType.HELLO, wire.pack_json({}))
    there.receive()
    there.send(FrameType.WELCOME, wire.pack_json({}))
    here.receive()
    monkeypatch.setattr(wire, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(wire, "SILENCE_LIMIT_S", 0.5)
    over = threading.Event()

    def talk() -> None:
        theirs.sendall(wire.pack_header(FrameType.OPENED, 1, 5000, 0))
        for number in itertools.count(2):
            if over.wait(0.05) or number > 50:
                break
            theirs.sendall(wire.pack_header(FrameType.PING, number, 0, 0))
        there.close()

    talker = threading.Thread(target=talk)
    talker.start()
    here.start_heartbeat()
    with pytest.raises(StreamLost, match="silent"):
        here.receive()
    over.set()
    talker.join()
    ours.close()
