"""What comes after the passes of a job: deltas sent, applied and taken back, the machine started.

The receiver's manifest is the authority on what became of a delta; the ledger notes it.
"""

import contextlib
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from p2v_sync.config import Connection
from p2v_sync.engine.delta import Chunk, CutoverSession, Kept, Status
from p2v_sync.engine.session import OpenRequest
from p2v_sync.errors import ConfigError, FixupError, TargetIOError, WrongPhase
from p2v_sync.events import Notice, Observer
from p2v_sync.state.ledger import DiskPlace, JobLedger, Ledger
from p2v_sync.state.lock import job_lock
from p2v_sync.transport.address import parse_target
from p2v_sync.transport.dialer import Ask, make_dialer
from p2v_sync.transport.throttle import Throttle
from p2v_sync.units import format_duration, format_size

IN_PLACE, QCOW2 = "in-place", "qcow2"
VIRT_V2V = "virt-v2v"
_PHASES = {"applied": IN_PLACE, "qcow2": QCOW2}
_CONVERTER = "virt-v2v-in-place"
_START_WITHIN_S = 120.0
_CONVERT_WITHIN_S = 24 * 3600.0
_SAY_EVERY_S = 60.0  # that a conversion is not done yet

# Hypervisor → its program, and the end of the definition's name.
_HYPERVISORS = {
    "kvm": ("virsh", ".xml"),
    "xen": ("xl", ".cfg"),
    "proxmox": ("qm", ".proxmox.sh"),
}


class JobCutover:
    """A job of the ledger, locked, with a way to its receiver.

    Every method raises P2vError, and can be called again after it did.
    """

    def __init__(
        self, job: str, state_dir: Path, connection: Connection, observe: Observer, ask: Ask | None
    ) -> None:
        self.name = job
        self._state_dir = state_dir
        # Nothing here is long enough for a port of its own.
        self._connection = replace(connection, data="inband")
        self._observe = observe
        self._ask = ask
        self._run = secrets.token_hex(8)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(job_lock(self._state_dir, self.name))
            self._ledger = stack.enter_context(Ledger.open(self._state_dir, self._notice))
            self._job: JobLedger = self._ledger.find_job(self.name)
            self._throttle = stack.enter_context(contextlib.closing(Throttle(None)))
            target = parse_target(self._job.target)
            dialer = make_dialer(target, self._connection, 1, self._ask)
            self._dialer = stack.enter_context(contextlib.closing(dialer))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _notice(self, text: str, disk: str = "") -> None:
        self._observe(Notice(disk, text))

    @property
    def disks(self) -> list[str]:
        """Their names in the job."""
        return [place.name for place in self._job.disks()]

    def require_quiesced(self) -> None:
        """P11, by the ledger.  Raises WrongPhase."""
        self._ledger.require_quiesced(self.name)

    @contextlib.contextmanager
    def _session(self, disk: str) -> Iterator[CutoverSession]:
        place = next((place for place in self._job.disks() if place.name == disk), None)
        if place is None:
            raise WrongPhase(f"job {self.name} has no disk {disk}", hint="run p2v-sync sync first")
        with contextlib.closing(CutoverSession(self._dialer, self._throttle)) as session:
            session.open(self._request(place))
            yield session

    def _request(self, place: DiskPlace) -> OpenRequest:
        return OpenRequest(
            job=self.name,
            disk=place.name,
            size=place.size,
            run=self._run,
            create=False,
        )

    def status(self, disk: str) -> Status:
        with self._session(disk) as session:
            return session.status()

    @property
    def directory(self) -> str:
        """Of the images at the receiver, absolute."""
        return self.status(self.disks[0]).directory

    def send_delta(self, disk: str, chunks: Iterable[Chunk], chunk_size: int) -> Kept:
        """What differs from the replica as the newest pass left it; see CutoverSession."""
        self.require_quiesced()
        with self._session(disk) as session:
            kept = session.send_delta(chunks, number=self._newest_pass(disk), chunk_size=chunk_size)
        self._note(disk, "sent", f"the delta is there: {_size(kept)}")
        return kept

    def _newest_pass(self, disk: str) -> int:
        overview = self._ledger.overview(self.name)[0]
        newest = next(one.newest for one in overview.disks if one.name == disk)
        return newest.number if newest else 0

    def _note(self, disk: str, delta: str | None, text: str) -> None:
        ledger = self._job.find_disk(disk)
        ledger.note_delta(delta)
        ledger.event(text)
        self._notice(text, disk)

    # Cutover

    def apply(self, mode: str) -> None:
        """The deltas of all disks; none is touched before all were asked."""
        self.require_quiesced()
        statuses = {disk: self.status(disk) for disk in self.disks}
        for disk, status in statuses.items():
            self._check(disk, status, mode)
        for disk, status in statuses.items():
            if status.unreadable:
                size = format_size(status.unreadable)
                self._notice(f"{size} of it could not be read and are zeros", disk)
            if status.delta is None:
                self._notice("no delta was sent: the replica is used as it is", disk)
            else:
                self._apply(disk, status.delta, mode)

    def _check(self, disk: str, status: Status, mode: str) -> None:
        if status.refusal:
            raise WrongPhase(
                f"{disk} can't be cut over: {status.refusal}",
                hint="run sync again, from the live CD",
            )
        done = _PHASES.get(status.phase)
        if done not in (None, mode):
            raise WrongPhase(
                f"the delta of {disk} is applied as {done}",
                hint=f"take it back first: p2v-sync rollback {self.name}",
            )
        if status.delta and not status.delta.is_current:
            raise WrongPhase(
                f"the delta of {disk} belongs to an earlier pass", hint="send it again"
            )

    def _apply(self, disk: str, kept: Kept, mode: str) -> None:
        with self._session(disk) as session:
            session.apply(mode)
        self._note(disk, mode, f"the delta is applied ({mode}): {_size(kept)}")

    def roll_back(self) -> None:
        """All disks are their replicas again."""
        for disk in self.disks:
            with self._session(disk) as session:
                before = session.status()
                kept = session.roll_back()
            if not before.phase and not kept:
                self._notice("nothing was applied: the image is the replica", disk)
                continue
            said = f"; the overlay is kept as {kept}" if kept else ""
            delta = "sent" if before.delta and before.delta.is_current else None
            self._note(disk, delta, f"the delta was taken back{said}")

    # The machine

    def put_files(self, files: Mapping[str, bytes]) -> None:
        """Keep definitions beside the images; each is replaced as a whole."""
        with self._session(self.disks[0]) as session:
            for name, content in files.items():
                session.put(name, content)

    def start(self, name: str) -> None:
        """Define and start the machine ``name`` with what is kept and what the host has."""
        with self._session(self.disks[0]) as session:
            hypervisor = choose_hypervisor(session.status(), name)
            for what in {"kvm": ("define", "start"), "xen": ("start",)}.get(
                hypervisor, ("define",)
            ):
                said = self._run_program(session, (hypervisor, what, name), _START_WITHIN_S)
                self._notice(f"{what} {name} on {hypervisor}: {said or 'done'}")

    def _run_program(
        self, session: CutoverSession, command: tuple[str, str, str], within_s: float
    ) -> str:
        """What the program said.  It ends with the session, whatever ends that."""
        hypervisor, what, name = command
        begun_s = said_s = time.monotonic()
        while (output := session.run(hypervisor, what, name)) is None:
            now_s = time.monotonic()
            if now_s - begun_s > within_s:
                raise TargetIOError(
                    f"{what} {name} on {hypervisor} did not end within {within_s:.0f} s",
                    hint="see to it on the host",
                )
            if now_s - said_s >= _SAY_EVERY_S:
                said_s = now_s
                duration = format_duration(now_s - begun_s)
                self._notice(f"{hypervisor} has been at work for {duration}")
        return output

    # virt-v2v

    def convert(self, name: str) -> bool:
        """Have virt-v2v convert ``name`` above the replicas, by the script that is kept there.

        False: it can't be run from here.  Raises FixupError when it fails.
        """
        self._check_replicas()
        with self._session(self.disks[0]) as session:
            if _CONVERTER not in session.status().programs:
                return False
            try:
                self._run_program(session, (VIRT_V2V, "convert", name), _CONVERT_WITHIN_S)
            except TargetIOError as error:
                raise FixupError(
                    f"virt-v2v did not convert {name}: {error.message}",
                    hint="the replica is whole, and the same command tries again",
                ) from error
        for disk in self.disks:
            self._note(disk, VIRT_V2V, f"converted by virt-v2v in {disk}.qcow2, above the replica")
        return True

    def _check_replicas(self) -> None:
        """P8, P11: what is converted lies above them."""
        self.require_quiesced()
        for disk in self.disks:
            status = self.status(disk)
            self._check(disk, status, "")


def _size(kept: Kept) -> str:
    return f"{format_size(kept.length)} in {kept.runs} places"


def choose_hypervisor(status: Status, name: str) -> str:
    """The first of which program and definition are there.  Raises ConfigError."""
    for hypervisor, (program, ending) in _HYPERVISORS.items():
        if program in status.programs and name + ending in status.files:
            return hypervisor
    wanted = ", ".join(f"{program} with {name}{end}" for program, end in _HYPERVISORS.values())
    raise ConfigError(
        f"{name} can't be started: the host has none of {wanted}",
        hint="name the machine with --name, or define and start it by hand",
    )
