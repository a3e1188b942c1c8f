"""The direct data path of an ssh target: TLS to a port that the receiver opens for this run alone.

The receiver's life, and all that steers it, stays with ssh; only bulk data goes beside it.  Port
and one-time token come over ssh, and the token's proofs cover our certificate (auth.py), so that
neither end has to believe anything that the network says.
"""

import contextlib
import re
import time
from dataclasses import dataclass

from p2v_sync.errors import ConnectFailed, P2vError, ProtocolError
from p2v_sync.transport.address import TcpTarget, bracketed
from p2v_sync.transport.channel import StreamChannel
from p2v_sync.transport.tcp import authenticate, connect

CONNECT_WITHIN_S = 3.0  # where packets are dropped, each session waits for so long
_SHORT_S = 60.0
_SHORT_MOST = 2
_ANNOUNCEMENT = re.compile(
    r"(?:(?P<port>[0-9]{1,5}) (?P<token>[0-9a-f]{32})|- (?P<why>.{0,200}))\s*"
)


@dataclass(frozen=True)
class DataPath:
    """How bulk data goes to an ssh target."""

    address: str | None  # HOST:PORT of a direct connection; None: in-band
    reason: str | None = None  # why it is in-band when that was not asked for


def open_streams(host: str, announcement: str, total: int) -> list[StreamChannel]:
    """``total`` connections to the port in what the receiver announced: "PORT TOKEN", "- WHY NOT".

    ``host`` is the address that ssh is connected to.  Raises ConnectFailed, AuthFailed,
    ProtocolError.
    """
    said = _ANNOUNCEMENT.fullmatch(announcement)
    if said is None:
        raise ProtocolError("the receiver announced no port")
    if said["why"] is not None:
        raise ConnectFailed(f"the receiver can't open a port: {said['why']}")
    target = TcpTarget(host, int(said["port"]))
    with contextlib.ExitStack() as on_failure:
        channels = []
        for _ in range(total):
            sock = connect(host, target.port, "is the port open", CONNECT_WITHIN_S)
            channels.append(authenticate(sock, target, said["token"]))
            on_failure.callback(channels[-1].close)
        on_failure.pop_all()
    return channels


def address_of(host: str, announcement: str) -> str:
    """``HOST:PORT`` of what was announced."""
    return f"{bracketed(host)}:{announcement.partition(' ')[0]}"


class Trust:
    """Whether the direct way is worth a try.

    Something may let connections be made and kill them when data flows.  Nothing would ever get
    through, so after two that were short one session goes in-band; the next one tries anew.
    """

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._short = 0

    def began(self) -> None:
        """A session has its direct connections."""
        self._began_s = time.monotonic()

    def objection(self) -> str | None:
        """Before a session: why it should go in-band, or None."""
        if self._began_s is not None:
            is_short = time.monotonic() - self._began_s < _SHORT_S
            self._short = self._short + 1 if is_short else 0
            self._began_s = None
        if self._short < _SHORT_MOST:
            return None
        self._short = 0
        return f"direct connections broke within {_SHORT_S:.0f} s, {_SHORT_MOST} times"


def refused(error: P2vError) -> ConnectFailed:
    """What ``--data direct`` fails with."""
    return ConnectFailed(
        f"--data direct: {error.message}",
        hint="let TCP ports 7721 to 7736 of the host through its firewall, or leave --data out: "
        "the data then goes through ssh",
    )
