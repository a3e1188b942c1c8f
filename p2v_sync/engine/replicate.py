"""One disk's run: sessions until the pass is done and verified.

A lost link ends a session, not the run: the next session goes on with what this run knows to be
durable.  Nothing is believed of the target but what the receiver's manifest says (P5), and nothing
of the source but what was read in this run.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from p2v_sync.engine.compression import make_compressor
from p2v_sync.engine.copy import Copy, Disk, Judge
from p2v_sync.engine.delta import CutoverSession
from p2v_sync.engine.knowledge import knowledge_of
from p2v_sync.engine.ports import Dialer, Ledger, Limiter, Source
from p2v_sync.engine.run import Options, Run
from p2v_sync.engine.session import OpenRequest, Session, Target
from p2v_sync.engine.verify import (
    Check,
    Verifier,
    checks_of_all,
    checks_of_sample,
    checks_of_written,
)
from p2v_sync.errors import Interrupted, P2vError, TargetLocked, VerifyMismatch, WrongPhase
from p2v_sync.events import (
    Counters,
    Event,
    Notice,
    PassFinished,
    PassStarted,
    Progress,
    Reconnecting,
    Verified,
)
from p2v_sync.extent import Extent
from p2v_sync.records import DigestSettings
from p2v_sync.units import format_size

_BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_NAMED_MISMATCHES = 5
_SHOW_EVERY_S = 0.25


@dataclass(frozen=True)
class Surroundings:
    """What one disk's run works with."""

    source: Source
    judge: Judge
    ledger: Ledger
    dialer: Dialer
    limiter: Limiter
    observe: Callable[[Event], None]


@dataclass(frozen=True)
class Outcome:
    """A pass that both sides agreed on (P7)."""

    number: int
    kind: str
    counters: Counters
    unreadable: tuple[Extent, ...]


def pass_of(target: Target, seed: bool) -> tuple[int, str]:
    """Number and kind of the pass that this run works on."""
    number = target.pass_due
    return number, "seed" if seed else "initial" if number == 1 else "incremental"


class Replication:
    """Replicates one disk: ``replicate`` for a pass, ``verify`` for a full comparison."""

    def __init__(self, request: OpenRequest, surroundings: Surroundings, options: Options) -> None:
        self._run = Run()
        self._request = replace(request, run=self._run.id)
        self._around = surroundings
        self._options = options
        self._stop = threading.Event()
        self._session: Session | None = None
        self._outcome: Outcome | None = None
        self._verified = 0
        self._showing = threading.Lock()
        self._shown = 0.0
        self._was_connected = False
        self._disk = Disk(
            name=request.disk,
            source=surroundings.source,
            judge=surroundings.judge,
            ledger=surroundings.ledger,
            observe=surroundings.observe,
            check_stop=self._check_stop,
        )

    def interrupt(self) -> None:
        """End the run soon, from any thread; ``replicate`` raises Interrupted."""
        self._stop.set()
        session = self._session
        if session is not None:
            session.abort(Interrupted("interrupted"))

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Interrupted("interrupted")

    def replicate(self) -> Outcome:
        """A whole pass, over as many sessions as it takes, and its verification.

        Raises P2vError; whatever it is, the same call in a new process goes on from there.
        """
        self._with_retries(self._copy_and_verify)
        if self._outcome is None:
            raise AssertionError("a pass without a failure has an outcome")
        return self._outcome

    def verify(self) -> None:
        """Compare all of the target with the source.  Raises VerifyMismatch."""
        self._with_retries(lambda session: self._verify(session, "full"))

    # Sessions

    def _with_retries(self, work: Callable[[Session], None]) -> None:
        failures = 0
        given_up_at = time.monotonic() + self._options.retry_for_s
        while True:
            progress = self._progress_mark()
            try:
                self._in_session(work)
            except P2vError as error:
                self._check_stop()
                if self._progress_mark() != progress:
                    failures = 0
                    given_up_at = time.monotonic() + self._options.retry_for_s
                delay_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
                is_over = time.monotonic() + delay_s > given_up_at
                # Once we were connected, the lock is held by our own former session, which may
                # have much to flush yet.
                may_go_away = error.retryable or isinstance(error, TargetLocked)
                # What was never reached is more likely a wrong address than a broken link.
                if not may_go_away or is_over or not self._was_connected:
                    raise
                failures += 1
                self._around.observe(Reconnecting(self._disk.name, error.message, delay_s))
                if self._stop.wait(delay_s):
                    raise Interrupted("interrupted") from error
            else:
                return

    def _progress_mark(self) -> tuple[int, bool]:
        # Not the segments that are done: a slow link may never live long enough for a whole one.
        return self._run.generation, self._outcome is not None

    def _in_session(self, work: Callable[[Session], None]) -> None:
        session = self._open()
        self._was_connected = True
        try:
            self._around.judge.check_source(session.target.source)
            self._run.adapt_to(session.target)
            work(session)
            session.close()
        except BaseException as error:
            session.abort(error)
            session.join_readers()  # none of them may touch run and ledger once the next one does
            raise

    def _open(self) -> Session:
        try:
            return self._open_as_requested()
        except WrongPhase:
            if not self._request.create or self._request.take_back:
                raise
        # P10: the machine that the delta was made for may be another one than this.
        asked = CutoverSession(self._around.dialer, self._around.limiter)
        try:
            asked.open(self._request)
            self._around.judge.check_source(asked.target.source)
        finally:
            asked.hang_up()
        self._request = replace(self._request, take_back=True)
        return self._open_as_requested()

    def _open_as_requested(self) -> Session:
        session = Session(self._around.dialer, self._around.limiter)
        self._session = session
        self._check_stop()
        session.open(self._request, self._options.streams)
        return session

    def _copy_and_verify(self, session: Session) -> None:
        if self._outcome is None or not self._is_as_left(session.target):
            self._outcome = self._copy(session)
        if self._options.verify != "none":
            self._verify(session, self._options.verify)

    def _is_as_left(self, target: Target) -> bool:
        """False when something happened to a finished image between two sessions (P7)."""
        return target.state == self._around.ledger.target_state() and not target.reasons

    # The pass

    def _copy(self, session: Session) -> Outcome:
        target = session.target
        number, kind = pass_of(target, self._options.seed)
        knowledge = knowledge_of(session, self._around.ledger)
        compressor = make_compressor(
            self._options.compress, session.codecs, is_local=self._around.dialer.is_local
        )
        self._begin(session, number, kind)
        copy = Copy(self._disk, self._run, session, knowledge, compressor)
        session.on_commit = copy.on_commit
        session.on_refused = copy.on_refused
        copy.run(self._retry(target))
        outcome = Outcome(number, kind, self._run.tally.counters, tuple(self._run.unreadable))
        seconds = time.monotonic() - self._run.started
        self._around.observe(
            PassFinished(
                self._disk.name, number, kind, outcome.counters, seconds, outcome.unreadable
            )
        )
        return outcome

    def _begin(self, session: Session, number: int, kind: str) -> None:
        target = session.target
        for note in target.notes:
            self._around.observe(Notice(self._disk.name, note))
            self._around.ledger.event(note)
        for reason in target.reasons:
            self._around.observe(
                Notice(self._disk.name, f"{reason}: the image is compared block by block")
            )
            self._around.ledger.event(reason)
        session.begin(kind, self._around.judge.identity())
        self._around.ledger.set_digest_settings(
            DigestSettings(target.digest, f"{target.seed:016x}", target.layout.block_size)
        )
        self._around.ledger.begin_pass(number, kind)
        # Only now: who hears of a pass finds it in the ledger.
        self._around.observe(
            PassStarted(
                self._disk.name,
                target.layout.size,
                number,
                kind,
                resumed=not target.pass_complete and target.pass_number > 0,
            )
        )

    def _retry(self, target: Target) -> tuple[Extent, ...]:
        """A finished pass that lacks some sectors is completed by reading just those (P12).

        Only while nothing else can have changed: else it is an ordinary pass, which tries them too.
        """
        is_current = target.pass_complete and target.quiesced and not target.reasons
        if not (target.unreadable and is_current and not target.created and not self._options.seed):
            return ()
        if not self._around.judge.is_untouched(target.source):
            return ()
        length = sum(extent.length for extent in target.unreadable)
        self._around.observe(
            Notice(
                self._disk.name,
                "the source was not written to since the last pass: only what could not be read "
                f"is tried again, {format_size(length)} in {len(target.unreadable)} places",
            )
        )
        return target.unreadable

    # Verification

    def _verify(self, session: Session, scope: str) -> None:
        layout = session.target.layout
        checks: Iterable[Check] = checks_of_all(layout)
        size = layout.size
        self._verified = 0
        if scope != "full":
            written = self._run.written if scope == "auto" else {}
            sample = list(checks_of_sample(layout))
            checks = chain(checks_of_written(written), sample)
            size = sum(check.length(layout) for check in chain(checks_of_written(written), sample))
        if self._is_moving():
            # The source is not what the pass read of it any more: what was sent is what counts.
            checks = (check._replace(against_source=False) for check in checks)
        verifier = Verifier(
            session, self._around.source, lambda n: self._show_verified(n, size), self._check_stop
        )
        checked, wrong = verifier.run(iter(checks))
        mismatches = tuple((extent.start, extent.length) for extent in wrong)
        self._around.observe(Verified(self._disk.name, scope, checked, mismatches))
        if wrong:
            self._around.ledger.doubt("verification found differences")
            session.close()
            raise mismatch_error(wrong)

    def _is_moving(self) -> bool:
        """Whether the source may differ from what this run's pass has read of it."""
        if self._outcome is None:
            return False
        return self._options.seed or self._around.judge.changed_since_start() is not None

    def _show_verified(self, length: int, size: int) -> None:
        with self._showing:
            self._verified += length
            now = time.monotonic()
            if now < self._shown + _SHOW_EVERY_S:
                return
            self._shown = now
            counters = Counters(scanned=self._verified)
            self._around.observe(Progress(self._disk.name, "verify", size, counters))


def mismatch_error(wrong: Sequence[Extent]) -> VerifyMismatch:
    """Names the first few extents; the event has them all."""
    named = ", ".join(str(extent) for extent in wrong[:_NAMED_MISMATCHES])
    more = f" and {len(wrong) - _NAMED_MISMATCHES} more" if len(wrong) > _NAMED_MISMATCHES else ""
    return VerifyMismatch(
        f"the target differs from what it should be at {named}{more} (start+length)",
        hint="run the same sync again: it repairs them; then look at the host's disk and memory",
    )
