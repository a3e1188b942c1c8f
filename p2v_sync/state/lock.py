"""One run a job: a lock the kernel gives back however the run ends, ``kill -9`` included."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2v_sync.errors import ConfigError, JobLocked
from p2v_sync.state.paths import make_state_dir, unusable

# ``is_locked`` has to take the lock for a moment to learn whether it is free; a run that starts
# in that moment waits it out instead of giving up.
_PATIENCE_S = 0.5
_RETRY_S = 0.02


@contextmanager
def job_lock(state_dir: Path, job: str) -> Iterator[None]:
    """Hold the job for this process.

    The lock file stays: removing it would let two runs lock two files of the same name.  Raises
    JobLocked, ConfigError for a name that can't be a file's, StateError.
    """
    path = _lock_path(state_dir, job)
    make_state_dir(state_dir)
    fd = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _acquired(fd, path):
            raise _locked_by(_read_pid(fd), job)
        _write_pid(fd, path)
        yield
    finally:
        os.close(fd)


def is_locked(state_dir: Path, job: str) -> bool:
    """True while some run holds the job.  Raises ConfigError, StateError."""
    path = _lock_path(state_dir, job)
    try:
        fd = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(fd, path, fcntl.LOCK_SH)
    finally:
        os.close(fd)


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` for this process, after whoever holds it now.  Raises StateError."""
    fd = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        _flock(fd, path, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock_path(state_dir: Path, job: str) -> Path:
    if not job or "/" in job or "\0" in job:
        raise ConfigError(f"{job!r} can't be the name of a job")
    return state_dir / f"{job}.lock"


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unusable(path, error) from error


def _flock(fd: int, path: Path, operation: int) -> None:
    try:
        fcntl.flock(fd, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        raise unusable(path, error) from error


def _try_lock(fd: int, path: Path, kind: int) -> bool:
    try:
        _flock(fd, path, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _acquired(fd: int, path: Path) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while not _try_lock(fd, path, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(_RETRY_S)
    return True


def _write_pid(fd: int, path: Path) -> None:
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        raise unusable(path, error) from error


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _locked_by(pid: int | None, job: str) -> JobLocked:
    who = "another run" if pid is None else f"another run (process {pid})"
    return JobLocked(
        f"{who} works on job {job}",
        hint=f"wait for it, or watch it with: p2v-sync status {job}",
    )
