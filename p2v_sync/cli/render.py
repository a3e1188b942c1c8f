"""How a run looks: bars on a terminal, plain lines elsewhere, JSON for programs."""

import json
import sys
import threading
import time
from dataclasses import asdict
from typing import Any, Protocol

from tqdm import tqdm

from p2v_sync.errors import P2vError
from p2v_sync.events import (
    CheckpointDone,
    DiskFailed,
    Event,
    Notice,
    PassFinished,
    PassStarted,
    Progress,
    Reconnecting,
    UnreadableFound,
    Verified,
)
from p2v_sync.units import format_duration, format_size

_PLAIN_EVERY_S = 10.0
_BAR = "{desc} {percentage:3.0f}%|{bar}| {postfix}"


class Renderer(Protocol):
    """An observer with an end.  Called from any thread."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def make_renderer(*, as_json: bool) -> Renderer:
    """The one that fits where standard output (JSON) or standard error goes."""
    if as_json:
        return JsonRenderer()
    return BarRenderer() if sys.stderr.isatty() else PlainRenderer()


def show_error(error: P2vError) -> None:
    """What went wrong, and what to do, on standard error."""
    print(f"p2v-sync: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)


class JsonRenderer:
    """One JSON object a line on standard output; see JSON OUTPUT in the man page."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        fields = {"event": event_name(event), "time": round(time.time(), 3), **asdict(event)}
        with self._lock:
            print(json.dumps(fields), flush=True)
            if isinstance(event, DiskFailed):
                print(f"{event.disk}: {describe(event)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is held back."""


def event_name(event: Event) -> str:
    """``PassStarted`` → ``pass_started``."""
    name = type(event).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def describe(event: Event) -> str | None:
    """One line for the operator, or None for what only moves a bar."""
    match event:
        case PassStarted():
            verb = "resumes" if event.resumed else "begins"
            return f"{event.kind} pass {event.number} {verb}: {format_size(event.size)}"
        case Notice():
            return event.text
        case UnreadableFound():
            return f"can't be read: {event.length} bytes at {event.start}; zeros in the replica"
        case Reconnecting():
            return f"{event.reason}; next try in {format_duration(event.delay_s)}, nothing is lost"
        case PassFinished():
            return _describe_finished(event)
        case Verified():
            result = f"{len(event.mismatches)} MISMATCHES" if event.mismatches else "all equal"
            return f"verified ({event.scope}): {format_size(event.checked)} read back, {result}"
        case DiskFailed():
            return f"failed: {event.message}" + (f"\n  {event.hint}" if event.hint else "")
    return None


def _describe_finished(event: PassFinished) -> str:
    done = event.counters
    rate = format_size(done.scanned / max(event.seconds, 1e-9))
    unreadable = f", {done.unreadable} bytes unreadable" if event.unreadable else ""
    return (
        f"{event.kind} pass {event.number} complete in {format_duration(event.seconds)}: "
        f"{_describe_counters(event)}{unreadable} ({rate}/s)"
    )


def _describe_counters(event: PassFinished | Progress | CheckpointDone) -> str:
    done = event.counters
    on_link = f" ({format_size(done.wire)} on the link)" if done.wire else ""
    return (
        f"zero {format_size(done.zero)}, same {format_size(done.same)}, "
        f"sent {format_size(done.sent)}{on_link}"
    )


class _Pace:
    """Rate and time left of one disk, from when its phase began."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._scanned_before: int | None = None

    def describe(self, event: Progress) -> str:
        scanned = event.counters.scanned
        if self._scanned_before is None:
            self._scanned_before = scanned
        seconds = max(time.monotonic() - self._began, 0.1)
        rate = (scanned - self._scanned_before) / seconds
        left = f", ETA {format_duration((event.size - scanned) / rate)}" if rate > 0 else ""
        return f"{format_size(rate)}/s{left}"


class PlainRenderer:
    """Lines on standard error; progress every ten seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: dict[str, float] = {}
        self._paces: dict[tuple[str, str], _Pace] = {}

    def __call__(self, event: Event) -> None:
        with self._lock:
            text = self._progress(event) if isinstance(event, Progress) else describe(event)
            if text:
                print(f"{event.disk}: {text}" if event.disk else text, file=sys.stderr, flush=True)

    def _progress(self, event: Progress) -> str | None:
        pace = self._paces.setdefault((event.disk, event.phase), _Pace())
        text = pace.describe(event)
        now = time.monotonic()
        if now - self._shown.setdefault(event.disk, now) < _PLAIN_EVERY_S:
            return None
        self._shown[event.disk] = now
        percent = 100 * event.counters.scanned / event.size
        return f"{event.phase} {percent:.0f} %: {_describe_counters(event)}, {text}"

    def close(self) -> None:
        """Nothing is held back."""


class BarRenderer:
    """A tqdm bar for each disk, and lines above them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: dict[str, tqdm[Any]] = {}
        self._paces: dict[tuple[str, str], _Pace] = {}

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Progress):
                self._show(event)
            text = describe(event)
            if text:
                line = f"{event.disk}: {text}" if event.disk else text
                tqdm.write(line, file=sys.stderr)

    def _show(self, event: Progress) -> None:
        if event.disk not in self._bars:
            self._bars[event.disk] = tqdm(
                total=event.size, bar_format=_BAR, file=sys.stderr, leave=False, dynamic_ncols=True
            )
        bar = self._bars[event.disk]
        pace = self._paces.setdefault((event.disk, event.phase), _Pace())
        bar.set_description_str(f"{event.disk} {event.phase}", refresh=False)
        done = event.counters
        counted = (
            f"zero {format_size(done.zero)} same {format_size(done.same)} "
            f"sent {format_size(done.sent)} "
            if event.phase == "copy"
            else ""
        )
        bar.set_postfix_str(
            f"scanned {format_size(done.scanned)} {counted}{pace.describe(event)}", refresh=False
        )
        bar.n = min(done.scanned, event.size)
        bar.refresh()

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
