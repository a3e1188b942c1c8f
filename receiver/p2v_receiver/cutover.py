"""What comes after the passes of one disk: its delta, and the machine (ACT and RUNS frames)."""

import os
from typing import Callable, Dict, List, Optional

from . import codec, delta, machine, wire
from .apply import Target
from .delta import Writer
from .manifest import APPLYING, UNDOING
from .place import Place
from .store import Opened
from .target import TargetError
from .wire import Buffer, ErrorCode, Json, ProtocolError


class Cutover:
    """An opened disk.  Not thread-safe: it has one connection.  Raises TargetError, ProtocolError.

    ``may_run``: whoever connects may have programs of this host started.
    """

    def __init__(self, place: Place, opened: Opened, may_run: bool) -> None:
        self._place = place
        self._manifest = opened.manifest
        self._target = Target(place, opened.image, opened.manifest, not opened.reasons)
        self._may_run = may_run
        self._writer: Optional[Writer] = None
        self._program: Optional[machine.Program] = None  # that is not done yet
        self._actions: Dict[str, Callable[[Json, Buffer], Json]] = {
            "status": self._tell,
            "delta": self._begin_delta,
            "end": self._end_delta,
            "apply": self._apply,
            "rollback": self._roll_back,
            "put": self._put,
            "run": self._run,
        }

    def act(self, message: Json, body: Buffer) -> Json:
        """ACT: do it, and the answer."""
        action = self._actions.get(wire.get(message, "action", str))
        if action is None:
            raise ProtocolError("there is no such action")
        return action(message, body)

    def runs(self, message: wire.Runs, body: Buffer) -> None:
        """RUNS: checked before they are kept (P4)."""
        if self._writer is None:
            raise ProtocolError("RUNS came before a delta was begun")
        for _ in delta.pieces(message, body):
            pass
        self._writer.add(message, body)

    def finish(self) -> None:
        """Nobody will ask any more: what was begun is not gone on with."""
        self._end_writer()
        if self._program is not None:
            self._program.end()

    def _end_writer(self) -> None:
        """A delta without its end record is none (P7)."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _status(self) -> Json:
        cutover = self._manifest.cutover()
        kept = None
        try:
            with delta.Delta(self._place.delta) as there:
                is_ours = there.base == self._target.base(there.base.chunk_size)
                kept = dict(there.end, current=is_ours)
        except delta.DeltaDamaged:
            pass  # it is sent again
        return {
            "phase": cutover.phase if cutover else "",
            "reached": self._manifest.reached(),
            "since": int(os.path.getmtime(self._manifest.path)),
            "delta": kept,
            "applied": cutover.delta if cutover else "",
            "refusal": "" if cutover else self._target.refusal(),
            "unreadable": sum(length for _, length in self._manifest.unreadable()),
            "programs": machine.programs() if self._may_run else [],
            "files": machine.files(self._place.directory)[: wire.MAX_EXTENTS],
            "directory": os.path.abspath(self._place.directory),
        }

    def _tell(self, message: Json, body: Buffer) -> Json:
        del message, body
        return self._status()

    def _begin_delta(self, message: Json, body: Buffer) -> Json:
        del body
        base = delta.Base.from_json(message)
        if base != self._target.base(base.chunk_size):
            raise TargetError(
                ErrorCode.CHANGED,
                "the delta belongs to another state than that of {}".format(self._place.image),
                "run the same command again",
            )
        self._target.require_replica()
        self._end_writer()
        self._writer = Writer(self._place.delta, base)
        return {}

    def _end_delta(self, message: Json, body: Buffer) -> Json:
        del body
        if self._writer is None:
            raise ProtocolError("a delta ends that was not begun")
        try:
            self._writer.keep(message)
        finally:
            self._end_writer()
        return self._status()

    def _apply(self, message: Json, body: Buffer) -> Json:
        del body
        mode = wire.get(message, "mode", str)
        if mode == "in-place":
            self._target.apply_in_place()
        elif mode == "qcow2":
            self._target.apply_qcow2()
        else:
            raise ProtocolError("there is no such mode")
        return self._status()

    def _roll_back(self, message: Json, body: Buffer) -> Json:
        del message, body
        kept = self._target.roll_back()
        return dict(self._status(), kept=kept)

    def _put(self, message: Json, body: Buffer) -> Json:
        name = wire.get(message, "name", str)
        if codec.entries_digest(body).hex() != wire.get(message, "digest", str):
            raise TargetError(
                ErrorCode.INTEGRITY,
                "{!r} arrived damaged: its digest differs".format(name[:120]),
                "run the same command again",
            )
        machine.put(self._place.directory, name, body)
        return {}

    def _run(self, message: Json, body: Buffer) -> Json:
        del body
        if not self._may_run:
            raise TargetError(
                ErrorCode.REFUSED,
                "this receiver starts no programs",
                "start it with --allow-run, or define and start the machine by hand",
            )
        names = [wire.get(message, name, str) for name in ("hypervisor", "what", "name")]
        program, self._program = self._program or self._start(names), None
        output = program.wait()
        if output is None:
            self._program = program
        return {"output": output}

    def _start(self, names: List[str]) -> machine.Program:
        cutover = self._manifest.cutover()
        if cutover and cutover.phase in (APPLYING, UNDOING):
            raise TargetError(
                ErrorCode.PHASE,
                "{} is neither the replica nor cut over".format(self._place.image),
                "run p2v-sync cutover or rollback first",
            )
        if names[0] == "virt-v2v":
            self._target.require_replica()  # what it makes lies above that (P8)
        return machine.Program(self._place.directory, *names)
