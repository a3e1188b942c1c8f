"""How a run looks: bars on a terminal, plain lines elsewhere, JSON for programs."""

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import asdict
from typing import Any, Protocol, TextIO

from p2v_sync.errors import P2vError
from p2v_sync.events import (
    CheckpointDone,
    DataPathChosen,
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
_WIDE = 100  # columns from which on there is room for a bar beside the figures


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
    _say(f"p2v-sync: {error.message}", sys.stderr)
    if error.hint:
        _say(f"  {error.hint}", sys.stderr)


def _say(line: str, stream: TextIO) -> None:
    """Never raises: a copy goes on when the log's disk is full or its reader went away."""
    try:
        print(line, file=stream, flush=True)
    except OSError:
        # What is still in the buffer would fail again when Python ends.
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


class JsonRenderer:
    """One JSON object a line on standard output; see JSON OUTPUT in the man page."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        fields = {"event": event_name(event), "time": round(time.time(), 3), **asdict(event)}
        with self._lock:
            _say(json.dumps(fields), sys.stdout)
            if isinstance(event, DiskFailed):
                _say(f"{event.disk}: {describe(event)}", sys.stderr)

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
        case DataPathChosen():
            way = f"direct, TLS to {event.address}" if event.address else "in-band over ssh"
            return f"data path: {way}" + (f": {event.reason}" if event.reason else "")
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

    def measure(self, event: Progress) -> tuple[float, float | None]:
        """``(bytes a second, seconds left)``; None before there is a rate."""
        scanned = event.counters.scanned
        if self._scanned_before is None:
            self._scanned_before = scanned
        seconds = max(time.monotonic() - self._began, 0.1)
        rate = (scanned - self._scanned_before) / seconds
        return rate, (event.size - scanned) / rate if rate > 0 else None

    def describe(self, event: Progress) -> str:
        rate, left_s = self.measure(event)
        left = "" if left_s is None else f", ETA {format_duration(left_s)}"
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
                _say(f"{event.disk}: {text}" if event.disk else text, sys.stderr)

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
        from tqdm import tqdm  # only for a terminal: it takes a tenth of the start-up time

        self._tqdm = tqdm
        self._lock = threading.Lock()
        self._bars: dict[str, tqdm[Any]] = {}
        self._paces: dict[tuple[str, str], _Pace] = {}

    def __call__(self, event: Event) -> None:
        # As with _say: the terminal may go away before we do.
        with self._lock, contextlib.suppress(OSError):
            if isinstance(event, Progress):
                self._show(event)
            text = describe(event)
            if text:
                line = f"{event.disk}: {text}" if event.disk else text
                self._tqdm.write(line, file=sys.stderr)

    def _show(self, event: Progress) -> None:
        pace = self._paces.setdefault((event.disk, event.phase), _Pace())
        columns = _terminal_columns()
        line = format_bar(event, *pace.measure(event), columns)
        bar = self._bars.get(event.disk)
        if bar is None:
            bar = self._bars[event.disk] = self._tqdm(
                total=event.size, bar_format=line, file=sys.stderr, leave=False, ncols=columns
            )
        bar.bar_format, bar.ncols, bar.total = line, columns, event.size
        bar.n = min(event.counters.scanned, event.size)
        bar.refresh()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            for bar in self._bars.values():
                bar.close()


def _terminal_columns() -> int:
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        columns = 0
    return columns or 80  # serial consoles don't say


def format_bar(event: Progress, rate: float, left_s: float | None, columns: int) -> str:
    """A tqdm format: all figures within 80 columns, and a bar where there is room for one."""
    done = event.counters
    name = event.disk if event.phase == "copy" else f"{event.disk} {event.phase}"
    head = f"{name} {100 * done.scanned / event.size:.0f}%"
    figures = f"{_short(rate)}/s ETA {_clock(left_s)} scanned {_short(done.scanned)}"
    if event.phase == "copy":
        figures += f" zero {_short(done.zero)} same {_short(done.same)} sent {_short(done.sent)}"
    if columns >= _WIDE:
        return f"{head} |{{bar}}| {figures}"
    return f"{head} {figures}"[: columns - 1]


def _short(length: float) -> str:
    """Bytes in six characters at most: ``47.8G``."""
    for unit in "BKMG":
        if length < 999.5:
            return f"{length:.3g}{unit}"
        length /= 1024
    return f"{length:.3g}T"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "--:--"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"
