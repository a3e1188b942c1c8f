"""The delta put onto the image, and taken off again: whole, whenever the power goes (P8).

In place: undo file → phase "applying" → writes → flush → phase "applied".  Back: phase "undoing" →
writes → flush → no phase → the undo file goes.  Each arrow is durable before the next step begins,
so that whoever finds a phase finds the undo file that belongs to it, too.
"""

import contextlib
import os
from typing import Iterator, List

from . import codec, wire
from .delta import Base, Delta, DeltaDamaged, Writer
from .manifest import APPLIED, APPLYING, QCOW2, UNDOING, Cutover, Manifest
from .place import Place
from .qcow2 import write_qcow2
from .target import Image, TargetError
from .wire import ErrorCode, Run, Runs


def phase_error(text: str, hint: str) -> TargetError:
    """That can't be done now."""
    return TargetError(ErrorCode.PHASE, text, hint)


class Target:
    """The image of one disk, its record and its delta; the lock is held.

    ``is_believed``: image and manifest agree (P5).  Every method can be called again after it
    failed, or after the power did.  Raises TargetError.
    """

    def __init__(self, place: Place, image: Image, manifest: Manifest, is_believed: bool) -> None:
        self._place = place
        self._image = image
        self._manifest = manifest
        self._is_believed = is_believed

    # What may be done

    def base(self, chunk_size: int) -> Base:
        """The replica as it is now, for a delta to belong to."""
        header = self._manifest.header()
        return Base(header["uuid"], header["pass_number"], header["size"], chunk_size)

    def refusal(self) -> str:
        """Why this replica can't be cut over (P11); "": it can.

        Unreadable sectors are no reason: a dying disk is one to migrate, and they were said (P12).
        """
        header = self._manifest.header()
        number = header["pass_number"]
        if not number:
            return "there is no pass yet"
        if not header["pass_complete"]:
            return "pass {} is not finished".format(number)
        if header["pass_kind"] == "seed":
            return "pass {} is a seed, read from a running system".format(number)
        if not header["quiesced"]:
            return "after pass {} the image is no copy of one moment of the source".format(number)
        if not self._is_believed or not self._manifest.is_certain(self._manifest.layout()):
            return "the image was changed since pass {}".format(number)
        return ""

    def require_replica(self) -> None:
        """The image must be the replica, and nothing above it, so that it can get a delta."""
        cutover = self._manifest.cutover()
        if cutover is not None:
            raise phase_error(
                "{} has a delta that is {}".format(self._image.path, cutover.phase),
                "take it back first: p2v-sync rollback",
            )
        refusal = self.refusal()
        if refusal:
            raise phase_error(
                "{} can't be cut over: {}".format(self._image.path, refusal),
                "run p2v-sync sync on the quiesced source",
            )

    def open_delta(self) -> Delta:
        """The delta, if it is one of this replica; all of it was read."""
        delta = Delta(self._place.delta)
        try:
            if delta.base != self.base(delta.base.chunk_size):
                raise phase_error(
                    "{} belongs to pass {}, not to the replica as it is now".format(
                        delta.path, delta.base.number
                    ),
                    "send the delta again",
                )
            delta.check()
        except BaseException:
            delta.close()
            raise
        return delta

    # In place

    def apply_in_place(self) -> None:
        """The delta onto the image; goes on with what was interrupted."""
        cutover = self._manifest.cutover()
        if cutover and cutover.phase == APPLIED:
            return
        is_resumed = cutover is not None and cutover.phase == APPLYING
        if not is_resumed:
            self.require_replica()
        with self.open_delta() as delta:
            if cutover is None or not is_resumed:
                cutover = Cutover(APPLYING, delta.end["digest"], self._save(delta))
                self._require_untouched()
                self._manifest.set_cutover(cutover, None)
            elif cutover.delta != delta.end["digest"]:
                raise DeltaDamaged(delta.path, "it is another one than was begun with")
            self._write(delta)
        # When it was interrupted nobody knows who else wrote to the image.
        identity = None if is_resumed else self._image.identity()
        self._manifest.set_cutover(cutover._replace(phase=APPLIED), identity)

    def _save(self, delta: Delta) -> str:
        """Keep what the delta will overwrite; returns the digest of that."""
        with contextlib.closing(Writer(self._place.undo, delta.base)) as undo:
            for runs in _batches(delta.runs()):
                content = b"".join(self._read(run) for run in runs)
                at, saved = 0, []
                for run in runs:
                    digest = codec.entries_digest(content[at : at + run.length])
                    saved.append(run._replace(digest=digest))
                    at += run.length
                # Any host has it, in all the time until this is read.
                packed = codec.codec_by_name("zlib").compress(content)
                undo.add(Runs(codec.ZLIB, saved), packed)
            end = undo.end_record()
            undo.keep(end)
        return str(end["digest"])

    def _read(self, run: Run) -> bytes:
        content = bytearray(run.length)
        self._image.read_into(memoryview(content), run.start)
        return bytes(content)

    def _require_untouched(self) -> None:
        """P5: up to here the image is as at the last checkpoint."""
        if self._image.identity() != self._manifest.header()["file_identity"]:
            raise TargetError(
                ErrorCode.CHANGED,
                "{} was changed by somebody else just now".format(self._image.path),
                "run p2v-sync sync: it makes the replica right",
            )

    def _write(self, delta: Delta) -> None:
        """Durable when it returns."""
        for run, content in delta.pieces():
            if codec.is_zero(content):
                self._image.make_zero(run.start, run.length)
            else:
                self._image.write(content, run.start)
        self._image.sync()
        if not self._image.is_in_place():
            raise TargetError(
                ErrorCode.CHANGED,
                "{} was removed, replaced or cut while it was written to".format(self._image.path),
                "run the same command again",
            )

    # Back

    def roll_back(self) -> str:
        """The image is the replica again, with nothing above it; returns what was moved aside."""
        cutover = self._manifest.cutover()
        if cutover is None or cutover.phase == QCOW2:
            return self.part_from_qcow2()
        recorded = self._manifest.header()["file_identity"]
        with Delta(self._place.undo) as undo:
            if undo.end["digest"] != cutover.undo or undo.base.image != self.base(0).image:
                raise DeltaDamaged(undo.path, "it is another one's")
            undo.check()
            # A virtual machine may have run on it: then all of it has to be compared.
            is_untouched = cutover.phase == APPLIED and self._image.identity() == recorded
            self._manifest.set_cutover(cutover._replace(phase=UNDOING), None)
            self._write(undo)
        self._manifest.set_cutover(None, self._image.identity() if is_untouched else None)
        with contextlib.suppress(OSError):
            os.unlink(self._place.undo)
        return ""

    # As a qcow2

    def apply_qcow2(self) -> None:
        """The delta as an overlay above the replica, which stays as it is."""
        cutover = self._manifest.cutover()
        if cutover and cutover.phase == QCOW2:
            if os.path.lexists(self._place.qcow2):
                return
            self.part_from_qcow2()
        self.require_replica()
        with self.open_delta() as delta:
            self.part_from_qcow2()
            write_qcow2(self._place.qcow2, self._image, delta)
            recorded = self._manifest.header()["file_identity"]
            self._manifest.set_cutover(Cutover(QCOW2, delta.end["digest"], ""), recorded)

    def part_from_qcow2(self) -> str:
        """P9: an overlay that no longer fits, or is not wanted, is moved aside; returns as what."""
        name = ""
        if os.path.lexists(self._place.qcow2):
            name = self._place.move_aside(self._place.qcow2)
        if self._manifest.cutover() is not None:
            self._manifest.set_cutover(None, self._manifest.header()["file_identity"])
        return name


def _batches(runs: Iterator[Run]) -> Iterator[List[Run]]:
    """As many as one part of a delta takes."""
    batch: List[Run] = []
    length = 0
    for run in runs:
        if batch and (length + run.length > wire.MAX_REQUEST or len(batch) == wire.MAX_RUNS):
            yield batch
            batch, length = [], 0
        batch.append(run)
        length += run.length
    if batch:
        yield batch
