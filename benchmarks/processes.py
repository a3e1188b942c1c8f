"""Programs that are timed and programs that serve them; whatever happens, none outlives its use."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

_LIMIT_S = 900.0  # for one contestant's program
_END_S = 10.0  # from SIGTERM to SIGKILL
_LISTEN_S = 20.0
_LISTENING = "0A"  # proc_net_tcp(5), column st


class Failed(Exception):
    """A contestant did not do its work; the message says why."""


def find(tool: str) -> str | None:
    """Where a program is: on PATH, or where servers are that users don't start."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


class Program:
    """A started program with a process group of its own, killed with all of it in the end.

    After ``wait``: ``seconds`` it took, ``peak_rss`` in bytes, ``status``, ``output``.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.argv = argv
        self.seconds = 0.0
        self.peak_rss = 0
        self.status: int | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._began = time.monotonic()
        self._popen = subprocess.Popen(
            argv,
            env=_environment(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode()

    def wait(self) -> None:
        """Until it ends by itself.  Raises Failed unless all went well."""
        self._reap(_LIMIT_S)
        if self.status:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            took_too_long = self.seconds > _LIMIT_S
            reason = f"over {_LIMIT_S:.0f} s" if took_too_long else f"status {self.status}"
            raise Failed(f"{self.argv[0]}: {reason}: {' / '.join(said[-3:])}")

    def stop(self) -> None:
        """Ask it to end, and see to it; it may have ended long ago."""
        if self.status is None:
            os.kill(self.pid, signal.SIGTERM)  # Popen.terminate would reap one that has ended
            self._reap(_END_S)

    def _reap(self, limit_s: float) -> None:
        """Wait for it; after ``limit_s`` it is killed."""
        if self.status is not None:
            return
        limit = threading.Timer(limit_s, os.killpg, (self.pid, signal.SIGKILL))
        limit.daemon = True
        limit.start()
        # While it is a zombie nobody else can have its number, so only its own group is killed.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.seconds = time.monotonic() - self._began
        limit.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        self.status = self._popen.returncode = os.waitstatus_to_exitcode(status)
        self.peak_rss = usage.ru_maxrss * 1024

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._output.close()
        self._errors.close()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours, but with Python's bytecode written, as it is for a program that was installed."""
    environ = {**os.environ, **extra}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return environ


def run(argv: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[Program, str]:
    """Run a program to its end; the second value is what it printed.  Raises Failed."""
    with Program(argv, env) as program:
        program.wait()
        return program, program.output


def pipeline(script: str) -> Program:
    """Run a line of shell of which every part must succeed.  Raises Failed."""
    program, _ = run(["bash", "-o", "pipefail", "-c", script])
    return program


@contextlib.contextmanager
def serving(
    argv: Sequence[str], port: int, env: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """A server that listens on ``port``, until the end of the ``with``.  Raises Failed."""
    with Program(argv, env) as program:
        deadline = time.monotonic() + _LISTEN_S
        while not _is_listening(port):
            if time.monotonic() > deadline:
                raise Failed(f"{argv[0]} does not listen on port {port}")
            time.sleep(0.02)
        yield program


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _is_listening(port: int) -> bool:
    """Looked up, not tried: nc(1) would take a trial for the one connection that it waits for."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                    return True
    return False
