"""The only place where processes are started: always from a list, never through a shell."""

import contextlib
import logging
import os
import subprocess
import threading
from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import IO

from p2v_sync.errors import CommandError

log = logging.getLogger(__name__)

_TAIL_LINES = 20
_LINE_MOST = 2000  # bytes of one line that are kept
_KILL_AFTER_S = 5.0


class Tail:
    """The last lines a program wrote to its standard error; each is logged as it comes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)

    def add(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._lines.append(text)
            log.debug("%s: %s", self._name, text)

    def follow(self, stream: IO[bytes]) -> None:
        """Add what ``stream`` has to say until its end."""
        while line := stream.readline(_LINE_MOST):
            self.add(line)

    @property
    def text(self) -> str:
        return "\n".join(self._lines)


class Process:
    """A running program.  Nothing of ours is inherited but ``fds`` and what is passed as stdin."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        fds: Iterable[int] = (),
        stdio: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``stdio``: a descriptor for standard input and output.  Raises CommandError."""
        log.debug("running %s", " ".join(argv))
        null = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=null if stdio is None else stdio,
                stdout=null if stdio is None else stdio,
                stderr=subprocess.PIPE,
                pass_fds=tuple(fds),
                env={**os.environ, **(environ or {})},
                # Ctrl-C is for us: we end it in good order.
                start_new_session=True,
            )
        except OSError as error:
            raise CommandError(f"{argv[0]} can't be started: {error.strerror}") from error
        self._tail = Tail(os.path.basename(argv[0]))
        self._reader = threading.Thread(target=self._read, name="stderr", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._process.stderr or open(os.devnull, "rb") as stream:
            self._tail.follow(stream)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def ends_within(self, seconds: float) -> bool:
        """Wait so long for it to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            self._reader.join(seconds)
        return not self.is_running

    def error_text(self) -> str:
        """The last lines of its standard error."""
        return self._tail.text

    def end(self, within_s: float) -> int:
        """Wait for it to end by itself, then make it.  Returns its exit status (-N: signal N)."""
        for stop, patience_s in ((self._process.terminate, within_s), (self.kill, _KILL_AFTER_S)):
            try:
                return self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                log.warning("process %d does not end by itself and is stopped", self.pid)
                stop()
        return self._process.wait()

    def stop(self) -> int:
        """Ask it to end (SIGTERM), make it if it does not, and return its exit status."""
        self._process.terminate()
        return self.end(_KILL_AFTER_S)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


def capture(
    argv: Sequence[str],
    *,
    stdin: str | bytes = "",
    timeout_s: float = 60.0,
    statuses: Container[int] = (0,),
    environ: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return its standard output.  ``environ`` is added to ours.

    Raises CommandError, also for an exit status that is not among ``statuses``.
    """
    log.debug("running %s", " ".join(argv))
    try:
        done = subprocess.run(
            argv,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environ or {})},
            check=False,
        )
    except OSError as error:
        raise CommandError(f"{argv[0]} can't be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{argv[0]} did not end within {timeout_s:.0f} s") from error
    if done.returncode not in statuses:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        tail = "\n".join(said[-_TAIL_LINES:])
        raise CommandError(f"{argv[0]} failed with status {done.returncode}: {tail}")
    return done.stdout.decode(errors="replace")


def capture_start(argv: Sequence[str], most: int, *, timeout_s: float = 60.0) -> bytes:
    """The first ``most`` bytes of a program's standard output, however much it has to say.

    Raises CommandError when it fails before that.
    """
    log.debug("running %s", " ".join(argv))
    environ = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
        )
    except OSError as error:
        raise CommandError(f"{argv[0]} can't be started: {error.strerror}") from error
    stuck = threading.Timer(timeout_s, process.kill)
    stuck.start()
    try:
        with process, process.stdout or open(os.devnull, "rb") as stream:
            start = stream.read(most)
            if len(start) == most:
                process.kill()
    finally:
        stuck.cancel()
    if len(start) < most and process.returncode:
        text = start.decode(errors="replace").strip()
        raise CommandError(f"{argv[0]} failed with status {process.returncode}: {text}")
    return start
