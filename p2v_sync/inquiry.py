"""What a receiver has of a job, asked before a run; and a file put there when it is over.

It needs no ledger: the live CD has none after a boot.  Nothing is made, taken back or sent.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from p2v_sync.config import Connection
from p2v_sync.device.identity import Identity, difference, read_identity
from p2v_sync.device.source import DiskSource
from p2v_sync.engine.delta import CutoverSession, Status
from p2v_sync.engine.session import OpenRequest, Target
from p2v_sync.errors import TargetChanged, TargetTaken, VersionMismatch
from p2v_sync.transport.address import parse_target
from p2v_sync.transport.dialer import Ask, make_dialer
from p2v_sync.transport.throttle import Throttle

_OTHER_NAME = "give this machine's job another name"
_PHASES = {
    "applied": ("cut over",),
    "qcow2": ("cut over as qcow2",),
    "applying": ("half cut over",),
    "undoing": ("half taken back",),
}


@dataclass(frozen=True)
class Replica:
    """What there is of one disk.  ``share``: of a first pass, from 0 to 1, where that is known."""

    disk: str
    pass_number: int
    is_complete: bool
    share: float | None = None
    since: int | None = None  # when something was recorded last, seconds since 1970
    phase: str = ""

    def __str__(self) -> str:
        """``sda: pass 1, unfinished at 38 %``; ``sda: pass 3, complete, of 2026-11-20``."""
        if not self.pass_number:
            return f"{self.disk}: nothing copied yet"
        said = [f"{self.disk}: pass {self.pass_number}"]
        if not self.is_complete:
            share = f" at {self.share * 100:.0f} %" if self.share else ""
            said.append(f"unfinished{share}")
        elif self.since is None:
            said.append("complete")
        else:
            said.append(f"complete, of {time.strftime('%Y-%m-%d', time.gmtime(self.since))}")
        return ", ".join([*said, *_PHASES.get(self.phase, ())])


def replica_of(disk: str, target: Target, status: Status) -> Replica:
    """What OPENED and a status say.  Pure."""
    # What is known of an image that has to be compared first says nothing of how far a pass came.
    is_told = status.reached is not None and target.pass_number == 1 and not target.reasons
    return Replica(
        disk=disk,
        pass_number=target.pass_number,
        is_complete=target.pass_complete,
        share=(status.reached or 0) / target.layout.segments if is_told else None,
        since=status.since,
        phase=status.phase,
    )


class Inquiry:
    """One job's disks (name in the job → source) at its receiver.  Every method raises P2vError."""

    def __init__(
        self,
        job: str,
        sources: Mapping[str, Path],
        target: str,
        connection: Connection,
        ask: Ask | None,
    ) -> None:
        self._job = job
        self._sources = sources
        self._target = parse_target(target)
        # Nothing here is long enough for a port of its own.
        self._connection = replace(connection, data="inband")
        self._ask = ask
        self._identities: dict[str, Identity] = {}  # a disk may die later, and the log tells of it

    def replicas(self) -> list[Replica]:
        """Those that are there.  Raises TargetTaken for other disks' than these (P10)."""
        found = []
        for disk in self._sources:
            with self._session(disk) as session:
                if session is not None:
                    found.append(replica_of(disk, session.target, session.status()))
                    session.hang_up()
        return found

    def put(self, name: str, content: bytes) -> bool:
        """Keep a file beside the images; False where there are none yet."""
        for disk in self._sources:
            with self._session(disk) as session:
                if session is not None:
                    session.put(name, content)
                    return True
        return False

    @contextlib.contextmanager
    def _session(self, disk: str) -> Iterator[CutoverSession | None]:
        """Of a disk whose replica is there and a copy of the source; None where there is none."""
        identity = self._identity(disk)
        request = OpenRequest(
            self._job, disk, identity.size, run=secrets.token_hex(8), create=False
        )
        with (
            contextlib.closing(Throttle(None)) as throttle,
            contextlib.closing(make_dialer(self._target, self._connection, 1, self._ask)) as dialer,
            contextlib.closing(CutoverSession(dialer, throttle)) as session,
        ):
            try:
                session.open(request)
            except (TargetChanged, VersionMismatch):  # no image; a receiver that can't tell
                session.hang_up()
                yield None
                return
            except TargetTaken as error:
                raise TargetTaken(error.message, hint=_OTHER_NAME) from error
            self._check(disk, session, identity)
            yield session

    def _identity(self, disk: str) -> Identity:
        if disk not in self._identities:
            with DiskSource(self._sources[disk]) as source:
                self._identities[disk] = read_identity(source)
        return self._identities[disk]

    def _check(self, disk: str, session: CutoverSession, identity: Identity) -> None:
        recorded = session.target.source
        if recorded is None:
            return
        try:
            reason = difference(Identity.from_dict(recorded), identity)
        except ValueError:
            return  # an unreadable record says nothing; the content is compared anyway
        if reason:
            session.hang_up()
            raise TargetTaken(
                f"job {self._job} at the host is another machine's: {disk} is the copy of another"
                f" disk than {self._sources[disk]}: {reason}",
                hint=_OTHER_NAME,
            )
