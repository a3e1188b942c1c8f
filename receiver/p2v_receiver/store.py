"""Where images live, and how one is opened: paths, locks, adoption, and whether to believe (P5).

``DIR/JOB/DISK.img`` is the image, ``DISK.manifest`` its record, ``DISK.lock`` what a run holds.
Nothing that is found there is ever deleted or overwritten before it is known to be ours (P9, P10):
what can't be used is moved aside within the same directory.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import time
import uuid
from typing import Iterator, List, NamedTuple, Optional, Tuple

from . import codec
from .apply import Target, phase_error
from .delta import DeltaDamaged
from .manifest import APPLIED, QCOW2, Manifest, ManifestDamaged, seed_to_column
from .place import Place
from .target import (
    Image,
    TargetError,
    aligned_buffer,
    from_oserror,
    sample_blocks,
    sync_directory,
)
from .wire import (
    DEFAULT_BLOCK_SIZE,
    ENTRY_SIZE,
    MAX_SEGMENTS,
    SEGMENT_BLOCKS,
    UNKNOWN,
    ErrorCode,
    Json,
    Layout,
)

_TAKEOVER_S = 15.0
PATIENCE_S = 3.0  # the receiver of a sender that was just killed is still recording what it has


class Request(NamedTuple):
    """What an OPEN asks for.  ``None``: as the manifest has it, or the receiver's choice."""

    job: str
    disk: str
    size: int
    block_size: Optional[int]
    digest: Optional[str]
    digests: Tuple[str, ...]  # all that the sender can do
    run: str  # names the sender's process: a new connection of the same run takes the lock over
    source_file: Json  # boot id, dev, ino / rdev of the source, to notice source = target
    create: bool  # False: the image must be there (verify)
    cutover: bool = False  # what was applied stays so; nothing will be written to the replica


class Opened(NamedTuple):
    """An image that is ready to be worked on."""

    image: Image
    manifest: Manifest
    created: bool
    reasons: List[str]  # why the image has to be digested again; empty: the manifest is believed
    notes: List[str]  # what else the operator should know


class Lock:
    """An flock(2) on the disk's lock file, released by the kernel however the process ends."""

    def __init__(self, path: str, run: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _not_a_file(path) from error
            raise from_oserror(error, "locking", path) from error
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise _not_a_file(path)
            self._take(path, run)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps({"pid": os.getpid(), "run": run}).encode(), 0)
        except OSError as error:
            os.close(self._fd)
            raise from_oserror(error, "locking", path) from error
        except BaseException:
            os.close(self._fd)
            raise

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _take(self, path: str, run: str) -> None:
        if self._try():
            return
        pid, holder = self._holder()
        # The same sender, back after its link died: its old receiver may not know that yet, or be
        # busy opening or recording.
        if holder == run and pid:
            if pid != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
            if self._try_for(_TAKEOVER_S):
                return
        elif self._try_for(PATIENCE_S):
            return
        raise locked_error(path, pid)

    def _try_for(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._try():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _holder(self) -> Tuple[int, object]:
        """Process and run of who holds the lock; process 0 when that can't be told."""
        try:
            holder = json.loads(os.pread(self._fd, 4096, 0).decode())
            pid, run = holder["pid"], holder["run"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return 0, None
        # kill(2) takes 1 and less for init, groups and everybody.
        is_process = type(pid) is int and 1 < pid < 1 << 31
        return (pid, run) if is_process else (0, None)

    def release(self) -> None:
        os.close(self._fd)


def _not_a_file(path: str) -> TargetError:
    return TargetError(
        ErrorCode.REFUSED, "{} is not a regular file".format(path), "move it away on the host"
    )


def locked_error(path: str, pid: int) -> TargetError:
    return TargetError(
        ErrorCode.LOCKED,
        "{} is held by another run (receiver process {})".format(path, pid or "unknown"),
        "wait for it; a run whose link died lets go within 30 s",
    )


def _choose_digest(request: Request, recorded: Optional[str]) -> str:
    """The one asked for, else the manifest's, else the best both ends have."""
    here = codec.digest_names()
    wanted = [request.digest] if request.digest else [recorded] if recorded else []
    for name in wanted + [name for name in here if not request.digest]:
        if name in here and name in request.digests:
            return name
    raise TargetError(
        ErrorCode.VERSION,
        "no common digest: {} is wanted, this host has {}".format(
            request.digest or "/".join(request.digests), "/".join(here)
        ),
        "use --digest auto, or install python3-xxhash or libxxhash0 on the host",
    )


class Opener:
    """Opens the image of one request; the lock is held already."""

    def __init__(self, place: Place, request: Request) -> None:
        self._place = place
        self._request = request
        self._reasons: List[str] = []
        self._notes: List[str] = []
        self._damaged = False

    def open(self) -> Opened:
        """What it opened is closed again when it raises: a device would stay claimed."""
        try:
            with contextlib.ExitStack() as stack:
                opened = self._open(stack)
                stack.pop_all()
        except OSError as error:
            raise from_oserror(error, "opening", self._place.image) from error
        return opened

    def _open(self, stack: contextlib.ExitStack) -> Opened:
        manifest = self._find_manifest()
        if manifest:
            stack.callback(manifest.close)
        header = manifest.header() if manifest else None
        self._check_segments(header["block_size"] if header else None)
        _choose_digest(self._request, header["digest"] if header else None)
        if header and header["size"] != self._request.size:
            raise TargetError(
                ErrorCode.TAKEN,
                "{} is the copy of a disk of {} bytes, not {}".format(
                    self._place.image, header["size"], self._request.size
                ),
                "name another --job for this disk",
            )
        image = self._find_image()
        created = image is None
        if image is None:
            if not self._request.create:
                raise TargetError(
                    ErrorCode.CHANGED,
                    "{} is not there".format(self._place.image),
                    "run p2v-sync sync first",
                )
            image = Image.create(self._place.image, self._request.size)
        stack.callback(image.close)
        if image.is_same_file(self._request.source_file):
            raise TargetError(
                ErrorCode.SAME_FILE,
                "{} is the source itself".format(self._place.image),
                "choose another target directory or --job",
            )
        if manifest is None or header is None:
            manifest = self._new_manifest(image, created)
            stack.callback(manifest.close)
        elif created:
            self._reasons.append("the image was gone and has been made anew")
            manifest.reset(dict(self._fresh_fields(image, created), quiesced=0, pass_complete=1))
        else:
            self._restore(image, manifest)
            self._judge(image, manifest, manifest.header())
        return Opened(image, manifest, created, self._reasons, self._notes)

    def _check_segments(self, recorded: Optional[int]) -> None:
        """``recorded`` is the block size in the manifest."""
        layout = Layout(
            self._request.size, self._request.block_size or recorded or DEFAULT_BLOCK_SIZE
        )
        if layout.segments > MAX_SEGMENTS:
            raise TargetError(
                ErrorCode.REFUSED,
                "a disk of {} bytes has too many blocks of {}".format(*layout),
                "choose a larger --block-size",
            )

    def _find_manifest(self) -> Optional[Manifest]:
        if not os.path.lexists(self._place.manifest):
            return None
        if not stat.S_ISREG(os.lstat(self._place.manifest).st_mode):
            raise _not_a_file(self._place.manifest)
        try:
            return Manifest.open(self._place.manifest)
        except ManifestDamaged as error:
            name = self._place.move_aside(self._place.manifest)
            self._reasons.append("the manifest was damaged ({}; kept as {})".format(error, name))
            self._damaged = True
            return None

    def _find_image(self) -> Optional[Image]:
        path = self._place.image
        if not os.path.lexists(path):
            return None
        image = Image.open(path)
        wanted = self._request.size
        if self._request.cutover and image.size != wanted and not image.is_device:
            length = image.size
            image.close()
            raise TargetError(
                ErrorCode.CHANGED,
                "{} has {} bytes, the disk {}".format(path, length, wanted),
                "bring it back to its size, or run p2v-sync sync",
            )
        if image.is_device:
            if image.size < wanted:
                image.close()
                raise TargetError(
                    ErrorCode.FULL,
                    "{} has {} bytes, the disk {}".format(path, image.size, wanted),
                    "make the device larger",
                )
            image.size = wanted
            return image
        if image.size > wanted:
            image.close()
            name = self._place.move_aside(path)
            self._reasons.append("the image was longer than the disk (kept as {})".format(name))
            return None
        if image.size < wanted:
            self._reasons.append("the image was shorter than the disk")
            try:
                image.extend(wanted)
            except TargetError:
                image.close()
                raise
        return image

    def _fresh_fields(self, image: Image, created: bool) -> Json:
        request = self._request
        return {
            "uuid": str(uuid.uuid4()),
            "block_size": request.block_size or DEFAULT_BLOCK_SIZE,
            "digest": _choose_digest(request, None),
            "seed": seed_to_column(int.from_bytes(os.urandom(8), "big")),
            "rest_is_zero": int(created),
            "file_identity": json.dumps(image.identity()) if created else None,
        }

    def _new_manifest(self, image: Image, created: bool) -> Manifest:
        if not created and not self._damaged:
            self._reasons.append("the manifest was missing")
        fields = dict(
            self._fresh_fields(image, created),
            job=self._request.job,
            disk=self._request.disk,
            size=self._request.size,
        )
        # Made under another name first: a power cut must not leave half a manifest.
        path = self._place.manifest
        draft = path + ".new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            Manifest.create(draft, fields).close()
            if os.path.lexists(path + "-journal"):
                # Of the lost one, after a crash: SQLite would roll it back into the new one.
                self._place.move_aside(path + "-journal")
            os.rename(draft, path)
            sync_directory(self._place.directory)
        except OSError as error:
            raise from_oserror(error, "making", path) from error
        return Manifest(path)

    def _restore(self, image: Image, manifest: Manifest) -> None:
        """P8: what a pass works on is the replica, not what became of it since."""
        cutover = manifest.cutover()
        if self._request.create and os.path.lexists(self._place.qcow2):
            self._notes.append("the qcow2 overlay is moved aside when the pass begins")
        if cutover is None or self._request.cutover or cutover.phase == QCOW2:
            return
        if cutover.phase == APPLIED and not self._request.create:
            raise phase_error(
                "{} is cut over: its delta is applied".format(image.path),
                "take it back first: p2v-sync rollback",
            )
        try:
            Target(self._place, image, manifest, True).roll_back()
            self._notes.append("the delta was taken back: the image is the replica again")
        except DeltaDamaged as error:
            self._reasons.append("the delta can't be taken back ({})".format(error.message))
            manifest.set_cutover(None, None)

    def _judge(self, image: Image, manifest: Manifest, header: Json) -> None:
        """P5: believe the manifest only while it provably is about this image as it is now."""
        cutover = manifest.cutover()
        if cutover and cutover.phase != QCOW2:
            return  # it is not what the manifest describes
        digest = _choose_digest(self._request, header["digest"])
        block_size = self._request.block_size or header["block_size"]
        if (digest, block_size) != (header["digest"], header["block_size"]):
            self._reasons.append("the block size or digest is another one than before")
            manifest.recut(digest, block_size)
        elif header["file_identity"] != image.identity():
            self._reasons.append("the image was changed since the last checkpoint")
        elif not _sample_agrees(image, manifest, header):
            self._reasons.append("a sample of the image does not match the manifest")
        if self._reasons:
            manifest.distrust()


def _sample_agrees(image: Image, manifest: Manifest, header: Json) -> bool:
    layout = manifest.layout()
    digest = codec.digest_function(header["digest"], header["seed"])
    buffer = aligned_buffer(layout.block_size)
    for block in sample_blocks(layout.blocks, layout.block_size, manifest.data_segments()):
        number, index = divmod(block, SEGMENT_BLOCKS)
        recorded = manifest.segment(number, layout)
        entry = recorded.entries[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE]
        if recorded.uncertain or entry == UNKNOWN:
            continue
        start, end = layout.extent(block, 1)
        if image.entries(start, end, layout.block_size, digest, buffer) != entry:
            return False
    return True


@contextlib.contextmanager
def opened(root: str, request: Request) -> Iterator[Tuple[Place, Opened]]:
    """The image of a request, locked, and closed again at the end.  Raises TargetError."""
    place = Place(root, request.job, request.disk)
    if not request.create and not os.path.isdir(place.directory):
        raise TargetError(
            ErrorCode.CHANGED, "{} is not there".format(place.image), "run p2v-sync sync first"
        )
    place.make_directory(root)
    lock = Lock(place.lock, request.run)
    try:
        target = Opener(place, request).open()
        try:
            yield place, target
        finally:
            target.manifest.close()
            target.image.close()
    finally:
        lock.release()
