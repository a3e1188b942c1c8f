"""The composition root: adapters and engine put together into ``sync`` and ``verify``.

Every disk runs in a thread of its own with its own source, connection and ledger, so that what
happens to one does not touch the others.
"""

import contextlib
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from p2v_receiver.wire import Json
from p2v_sync.config import Connection, SyncConfig, check_job_name, common_name, plain_name
from p2v_sync.device.identity import Identity, difference, read_identity
from p2v_sync.device.mounts import users_of, writers_of
from p2v_sync.device.readonly import read_only
from p2v_sync.device.source import DiskSource, OnReadError
from p2v_sync.device.topology import read_topology
from p2v_sync.device.used import Surveyor, UsedSource, check_tools
from p2v_sync.engine.replicate import Replication, Surroundings
from p2v_sync.engine.run import Options
from p2v_sync.engine.session import OpenRequest
from p2v_sync.errors import (
    DeviceBusy,
    DeviceChanged,
    DuplicateSource,
    Interrupted,
    P2vError,
    SourceIsTarget,
    SourceMissing,
    SourceReadError,
    StateError,
    TargetTaken,
)
from p2v_sync.events import DataPathChosen, DiskFailed, Notice, Observer
from p2v_sync.extent import Extent
from p2v_sync.records import UNUSED
from p2v_sync.state.disk import DiskLedger
from p2v_sync.state.ledger import JobLedger, Ledger
from p2v_sync.state.lock import job_lock
from p2v_sync.transport.address import LocalTarget, Target, parse_target
from p2v_sync.transport.dialer import Ask, CloseableDialer, DataPath, make_dialer
from p2v_sync.transport.throttle import Throttle

_STOP_WITHIN_S = 15.0  # what still hangs then, in a connect or a flush, is left behind


@dataclass(frozen=True)
class NamedSource:
    """A source and what it is called in the job."""

    path: Path
    name: str


def kernel_name(path: Path) -> str:
    """Of a block device (dm: its device-mapper name); the file stem of anything else."""
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = 0
    if not stat.S_ISBLK(mode):
        return path.stem
    number = path.stat().st_rdev
    node = read_topology(Path("/sys")).by_dev(f"{os.major(number)}:{os.minor(number)}")
    return (node.dm_name or node.name) if node else path.resolve().name


def disk_name(path: Path) -> str:
    """What a source is called in its job: sda, cciss_c0d0."""
    return plain_name(kernel_name(path))


def name_sources(paths: Sequence[Path]) -> list[NamedSource]:
    """The sources with their names.  Raises DuplicateSource, SourceMissing."""
    files = [_file_key(path) for path in paths]
    sources = [NamedSource(path, disk_name(path)) for path in paths]
    for index, (path, key) in enumerate(zip(paths, files, strict=True)):
        if key in files[:index]:
            first = paths[files.index(key)]
            raise DuplicateSource(
                f"{path} and {first} are the same disk", hint="name each disk once"
            )
    twice = common_name([source.name for source in sources])
    if twice:
        raise DuplicateSource(
            f"two sources would both become {twice}.img",
            hint="copy them in separate runs with --job, or rename one",
        )
    return sources


def _file_key(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise SourceMissing(f"there is no {path}", hint="'p2v-sync disks' lists disks") from error
    except OSError:
        return (hash(path),)  # opening it will say what is wrong
    if stat.S_ISBLK(status.st_mode):
        return (0, status.st_rdev)
    return (1, status.st_dev, status.st_ino)


def default_job(sources: Sequence[NamedSource]) -> str:
    """The host's name; for image files the stem of the first."""
    first = sources[0]
    if first.path.is_block_device():
        return plain_name(os.uname().nodename)
    return first.name


class SourceView:
    """What of the source is copied or compared: all of it, or what its file systems use."""

    def __init__(
        self, source: UsedSource, surveyor: Surveyor, notice: Callable[[str], None]
    ) -> None:
        self.source = source
        self.unused: str | None = None  # digest of the map of what counts as zero; None: nothing
        self._surveyor = surveyor
        self._notice = notice
        self._is_chosen = False

    def choose(self, *, used_only: bool) -> None:
        """Decide for the rest of the run.  Raises what ``Surveyor.survey`` raises."""
        self._is_chosen = True
        if used_only:
            unused = self._surveyor.survey()
            self.source.leave_out(unused)
            self.unused = unused.digest

    def adapt_to(self, recorded: Json | None) -> None:
        """Where nothing was chosen: as the replica was made, by its manifest's record."""
        if self._is_chosen:
            return
        made_with = recorded.get(UNUSED) if recorded else None
        if made_with is not None:
            self._notice(
                "the replica was made with --used-only:"
                " what the file systems do not use counts as zero"
            )
        self.choose(used_only=made_with is not None)
        if made_with != self.unused:
            self._notice("the file systems use other places now than in that pass")


class SourceJudge:
    """What the engine asks about the source beyond its bytes.  Satisfies ``engine.copy.Judge``."""

    def __init__(self, source: DiskSource, view: SourceView) -> None:
        self._source = source
        self._view = view
        self._identity = read_identity(source)
        self._stamp = source.stamp()
        self._ledger: DiskLedger | None = None
        self.change: str | None = None

    def identity(self) -> Json:
        # What the replica is a copy of: not all of the disk, when something is left out.
        left_out = {UNUSED: self._view.unused}
        return {**self._identity.to_dict(), **left_out, "stamp": self._lasting_stamp()}

    def _lasting_stamp(self) -> list[object]:
        """The stamp, made to differ after a reboot where it counts from boot."""
        return [boot_id() if self._source.is_block else None, *self._stamp]

    def is_untouched(self, recorded: Json | None) -> bool:
        now = self._lasting_stamp()
        # Without a boot id a device's counters may be of another boot.
        is_told = now[0] is not None or not self._source.is_block
        if recorded is None or recorded.get(UNUSED) != self._view.unused:
            return False
        return is_told and recorded.get("stamp") == now

    def check_ledger(self, ledger: DiskLedger) -> None:
        """P10: the disk this job copied up to now.  Raises DeviceChanged."""
        recorded = ledger.identity()
        reason = self._difference(recorded)
        if reason:
            raise DeviceChanged(
                f"{self._source.path} is not the disk that this job copies: {reason}",
                hint="name another --job for this disk",
            )
        self._ledger = ledger

    def check_source(self, recorded: Json | None) -> None:
        reason = self._difference(recorded)
        if reason:
            raise TargetTaken(
                f"the image there is the copy of another disk than {self._source.path}: {reason}",
                hint="name another --job for this disk",
            )
        self._view.adapt_to(recorded)
        # Not before: a disk that was named by mistake must not become the job's.
        if self._ledger is not None:
            self._ledger.set_identity(self.identity())

    def _difference(self, recorded: Json | None) -> str | None:
        if recorded is None:
            return None
        try:
            return difference(Identity.from_dict(recorded), self._identity)
        except ValueError:
            return None  # an unreadable record says nothing; the content is compared anyway

    def changed_since_start(self) -> str | None:
        self._source.check_size()
        self.change = self._source.changed_since(self._stamp)
        return self.change


def place_of(source: DiskSource) -> Json:
    """Where the source is, so that a receiver on the same machine notices itself (jobs can't)."""
    status = os.stat(source.path)
    return {
        "dev": status.st_dev,
        "ino": status.st_ino,
        "rdev": status.st_rdev,
        "boot_id": boot_id(),
    }


def boot_id() -> str | None:
    """This boot of this machine (random(4)), or None where the kernel does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


class DiskRun:
    """One disk of a run: opens everything, replicates, says how it ended."""

    def __init__(self, source: NamedSource, job: "JobRun") -> None:
        self.name = source.name
        self.error: BaseException | None = None
        self._path = source.path
        self._job = job
        self._replication: Replication | None = None
        self._interrupted = False

    def _notice(self, text: str) -> None:
        self._job.observe(Notice(self.name, text))

    def _surveyor(self, source: DiskSource) -> Surveyor:
        return Surveyor(source, self._notice, self._check_stop)

    def _check_stop(self) -> None:
        if self._interrupted:
            raise Interrupted("interrupted")

    def interrupt(self) -> None:
        self._interrupted = True
        if self._replication is not None:
            self._replication.interrupt()

    def run(self, work: "Work") -> None:
        """``work`` on the disk; never raises, the outcome is in ``error``."""
        ledger: DiskLedger | None = None
        try:
            with contextlib.ExitStack() as stack:
                locked = self._lock_source(stack)
                source = self._open(stack)
                ledger = self._job.ledger.disk(self.name, path=str(self._path), size=source.size)
                if locked:
                    ledger.note_set_read_only(True)
                view = SourceView(UsedSource(source), self._surveyor(source), self._notice)
                judge = SourceJudge(source, view)
                judge.check_ledger(ledger)
                if self._job.create:
                    view.choose(used_only=self._job.config.used_only)
                dialer = stack.enter_context(contextlib.closing(self._dialer()))
                self._replication = self._make(source, view, judge, ledger, dialer)
                self._check_stop()
                work(self._replication, judge)
        except Interrupted as error:
            self.error = error  # no failure of this disk's; the job says it once for all
        except P2vError as error:
            self._fail(error, ledger)
        except BaseException as error:  # noqa: BLE001 - raised again by the job's thread
            self.error = error

    def _lock_source(self, stack: contextlib.ExitStack) -> bool:
        """P1: read-only before anything else.  True when we set the flag, and clear it at the end.

        It is noted in the ledger only after it was set: a run killed in between leaves the disk
        read-only, but a flag that somebody else set is never taken for ours.
        """
        if self._job.config.seed:
            return False
        earlier = None
        with contextlib.suppress(StateError):
            earlier = self._job.ledger.find_disk(self.name)
        stack.callback(self._unnote_flag)
        left_by_us = earlier is not None and earlier.was_set_read_only()
        return bool(stack.enter_context(read_only(self._path, left_by_us=left_by_us)))

    def _unnote_flag(self) -> None:
        with contextlib.suppress(StateError):
            ledger = self._job.ledger.find_disk(self.name)
            if ledger.was_set_read_only():
                ledger.note_set_read_only(False)

    def _open(self, stack: contextlib.ExitStack) -> DiskSource:
        source = stack.enter_context(
            DiskSource(self._path, on_read_error=cast(OnReadError, self._job.config.on_read_error))
        )
        users = users_of(self._path)
        if users and not self._job.config.seed:
            raise DeviceBusy(
                f"{self._path} is in use: {', '.join(users)}",
                hint="stop that, or add --seed for a first pass from the running system",
            )
        if self._job.config.used_only and (writers := writers_of(self._path)):
            raise DeviceBusy(
                f"{self._path} is in use: {', '.join(writers)}; what its file systems use changes"
                " under the copy",
                hint="leave out --used-only, or mount them read-only",
            )
        return source

    def _dialer(self) -> CloseableDialer:
        def tell(path: DataPath) -> None:
            name = "direct" if path.address else "inband"
            self._job.observe(DataPathChosen(self.name, name, path.address, path.reason))

        job = self._job
        return make_dialer(job.target, job.config.connection, job.config.streams, job.ask, tell)

    def _make(
        self,
        source: DiskSource,
        view: SourceView,
        judge: SourceJudge,
        ledger: DiskLedger,
        dialer: CloseableDialer,
    ) -> Replication:
        config = self._job.config
        request = OpenRequest(
            job=self._job.name,
            disk=self.name,
            size=source.size,
            run="",
            block_size=config.block_size,
            digest=config.digest,
            source_file=place_of(source),
            create=self._job.create,
        )
        surroundings = Surroundings(
            view.source, judge, ledger, dialer, self._job.throttle, self._job.observe
        )
        options = Options(
            streams=config.streams,
            compress=config.compress,
            seed=config.seed,
            verify=config.verify,
            retry_for_s=config.retry_for_s,
        )
        return Replication(request, surroundings, options)

    def _fail(self, error: P2vError, ledger: DiskLedger | None) -> None:
        self.error = error
        if ledger is not None:
            with contextlib.suppress(P2vError):
                ledger.failed(error.message)
        self._job.observe(
            DiskFailed(self.name, type(error).__name__, error.message, error.hint, error.exit_code)
        )
        error.is_reported = True


@dataclass(frozen=True)
class JobRun:
    """What the disks of one run share."""

    name: str
    config: SyncConfig
    target: Target
    ledger: JobLedger
    throttle: Throttle
    observe: Observer
    ask: Ask | None
    create: bool


def sync(config: SyncConfig, observe: Observer, ask: Ask | None) -> None:
    """Replicate all sources at once; resumes or goes on by itself.

    Raises the first disk's failure after all have ended, Interrupted after Ctrl-C.
    """
    if config.used_only:
        check_tools()
    sources = name_sources(config.sources)
    name = check_job_name(default_job(sources) if config.job is None else config.job)
    _run_job(name, config, sources, observe, ask, _replicate)


def verify(
    job: str, state_dir: Path, connection: Connection, observe: Observer, ask: Ask | None
) -> None:
    """Compare every disk of a job with its replica, completely.  Raises as ``sync`` does."""
    with Ledger.open(state_dir, _no_notice) as ledger:
        recorded = ledger.find_job(job)
        places = recorded.disks()
        target = recorded.target
    sources = [NamedSource(Path(place.path), place.name) for place in places]
    config = SyncConfig(
        sources=tuple(source.path for source in sources),
        target=target,
        state_dir=state_dir,
        job=job,
        connection=connection,
    )
    _run_job(job, config, sources, observe, ask, _verify)


def reach(target: str, connection: Connection, ask: Ask | None) -> None:
    """Connect to a receiver, log in, and leave.  Raises what a run would fail with."""
    with contextlib.closing(make_dialer(parse_target(target), connection, 1, ask)) as dialer:
        dialer.dial().close()


def _no_notice(text: str) -> None:
    del text


def _replicate(replication: Replication, judge: SourceJudge) -> None:
    outcome = replication.replicate()
    if outcome.unreadable:
        raise unreadable_error(outcome.unreadable)
    if judge.change and outcome.kind != "seed":
        raise DeviceChanged(
            f"the source was changed while it was read ({judge.change})",
            hint="the replica is no consistent picture; run the same command again",
        )


def _verify(replication: Replication, judge: SourceJudge) -> None:
    del judge
    replication.verify()


def unreadable_error(extents: Sequence[Extent]) -> SourceReadError:
    """P12: said with places, after everything else was copied."""
    named = ", ".join(str(extent) for extent in extents[:5])
    more = f" and {len(extents) - 5} more places" if len(extents) > 5 else ""
    length = sum(extent.length for extent in extents)
    return SourceReadError(
        f"{length} bytes could not be read and are zeros in the replica: {named}{more}"
        " (start+length)",
        hint="the rest is complete; run the same command again to retry just those",
    )


Work = Callable[[Replication, SourceJudge], None]


def _run_job(
    name: str,
    config: SyncConfig,
    sources: Sequence[NamedSource],
    observe: Observer,
    ask: Ask | None,
    work: Work,
) -> None:
    target = parse_target(config.target)
    _refuse_source_as_target(sources, target, name)
    throttle = Throttle(config.rate)

    def notice(text: str) -> None:
        observe(Notice("", text))

    with (
        job_lock(config.state_dir, name),
        Ledger.open(config.state_dir, notice) as ledger,
        contextlib.closing(throttle),
    ):
        job = JobRun(
            name=name,
            config=config,
            target=target,
            ledger=ledger.job(name, _lasting(config.target, target)),
            throttle=throttle,
            observe=observe,
            ask=ask,
            create=work is not _verify,
        )
        disks = [DiskRun(source, job) for source in sources]
        _run_disks(disks, throttle, work)
    for disk in disks:
        if disk.error is not None:
            raise disk.error


def _lasting(typed: str, target: Target) -> str:
    """The target as it means the same from any directory, for ``verify`` and ``status``."""
    return os.path.abspath(target.directory) if isinstance(target, LocalTarget) else typed


def _run_disks(
    disks: Sequence[DiskRun],
    throttle: Throttle,
    work: Work,
) -> None:
    # Waited for through a queue: a Thread.join that Ctrl-C ends takes the thread for ended
    # (Python 3.11, bpo-45274), and the disks would stay read-only.
    ended: queue.SimpleQueue[DiskRun] = queue.SimpleQueue()

    def run(disk: DiskRun) -> None:
        disk.run(work)
        ended.put(disk)

    running = list(disks)
    for disk in disks:
        threading.Thread(target=run, args=(disk,), name=disk.name, daemon=True).start()
    try:
        while running:
            running.remove(ended.get())
    except KeyboardInterrupt as error:
        throttle.close()
        for disk in disks:
            disk.interrupt()
        given_up_at = time.monotonic() + _STOP_WITHIN_S
        with contextlib.suppress(queue.Empty):
            while running:
                running.remove(ended.get(timeout=max(given_up_at - time.monotonic(), 0.0)))
        raise Interrupted("interrupted: nothing is lost") from error


def _refuse_source_as_target(sources: Sequence[NamedSource], target: Target, job: str) -> None:
    """The receiver checks this too; here it costs no connection."""
    if not isinstance(target, LocalTarget):
        return
    for source in sources:
        image = Path(target.directory) / job / f"{source.name}.img"
        with contextlib.suppress(OSError):
            if os.path.samefile(source.path, image):
                raise SourceIsTarget(
                    f"{source.path} is source and target at once",
                    hint="choose another target directory or --job",
                )
