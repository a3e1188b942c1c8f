"""The command line as a user has it: real processes, with a home, a state and a target."""

import contextlib
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from p2v_sync.cli import main
from p2v_sync.units import MIB
from tests.conftest import LONG

BIN = Path(sys.executable).parent
PATIENCE_S = 600.0 if LONG else 60.0  # long torture has disks of a GiB, and much at once


class Done(NamedTuple):
    """A program that has ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """What ``--json`` printed; nothing else may be there."""
        return [json.loads(line) for line in self.out.splitlines()]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    @property
    def complaints(self) -> list[str]:
        """The lines that say that something failed."""
        return [
            line
            for line in self.err.splitlines()
            if line.startswith(("p2v-sync: ", "p2v-receiver: ", "Error: ")) or ": failed: " in line
        ]


class Running:
    """A program that is running; what it writes goes to files."""

    def __init__(self, argv: list[str], log: Path, environ: dict[str, str]) -> None:
        """``log``: where what it writes goes; it works in that directory."""
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=log.parent,
                env=environ,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def children(self) -> list[int]:
        """Of a sender to a directory: its receiver."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        threads = path.parents[1].glob("*/children")
        return [int(pid) for each in threads for pid in each.read_text().split()]

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that happens while it runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError(f"it has ended with {self.process.returncode}: {self.err}")
            if time.monotonic() > deadline:
                raise AssertionError(f"that does not happen: {self.err}")
            time.sleep(0.02)

    def until_it_says(self, text: str) -> None:
        self.until(lambda: text in self.err or text in self.out)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and see it gone."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def wait(self, code: int = 0) -> Done:
        """Wait for its end, which must be with ``code``."""
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"it does not end: {self.out}{self.err}") from error
        return checked(Done(self.process.returncode, self.out, self.err), code)

    def end(self) -> None:
        """Whatever state it is in."""
        for stop in (self.process.terminate, self.process.kill):
            stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
                return


def checked(done: Done, code: int) -> Done:
    text = f"{done.out}{done.err}"
    assert "Traceback" not in text, text
    assert done.code == code, f"status {done.code} instead of {code}: {text}"
    return done


class Listener(Running):
    """A ``p2v-receiver listen``."""

    token: str
    command: str
    port: int

    def wait_until_it_listens(self) -> Self:
        self.until(lambda: self.out.count("\n") >= 2)
        first, second = self.out.splitlines()[:2]
        assert first.startswith("token: ")
        self.token = first.removeprefix("token: ")
        self.command = second
        found = re.search(r":(\d+)$", second)
        assert found
        self.port = int(found[1])
        return self

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"


class Lab:
    """One user: files in ``root``, a target directory in ``out``, programs that end with him."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        self.out.mkdir()
        self._numbers = itertools.count()
        self._running: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in reversed(self._running):
            each.end()

    def environ(self, **changes: str) -> dict[str, str]:
        # Compiling all modules takes longer than most of what is done here.
        compiled = str(self.root.parent / "compiled")
        plain = {**os.environ, "COLUMNS": "100", "PYTHONPYCACHEPREFIX": compiled, **changes}
        plain.pop("PYTHONDONTWRITEBYTECODE", None)
        return plain

    # The sender

    def p2v(self, *arguments: str | Path, code: int = 0, **environ: str) -> Done:
        """``p2v-sync ARGUMENTS`` to its end."""
        done = subprocess.run(
            [str(BIN / "p2v-sync"), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=self.root,
            env=self.environ(**environ),
            check=False,
        )
        return checked(Done(done.returncode, done.stdout, done.stderr), code)

    def sync(
        self, source: Path, *options: str | Path, target: str | Path | None = None, **environ: str
    ) -> Done:
        """Must succeed; ``--json`` is added."""
        where = self.out if target is None else target
        return self.p2v("sync", source, where, "--json", *options, code=0, **environ)

    def fails(self, code: int, *arguments: str | Path, say: str = "", **environ: str) -> Done:
        """``p2v-sync ARGUMENTS`` must say once what is wrong: ``say``, a pattern.

        In this process: there are so many refusals that starting Python would take most of the
        time.
        """
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.chdir(self.root)
            for name, value in environ.items():
                patch.setenv(name, value)
            result = main([str(argument) for argument in arguments])
        done = checked(Done(result, out.getvalue(), err.getvalue()), code)
        assert len(done.complaints) == 1, done.err
        assert re.search(say, done.err), f"{say!r} is not said: {done.err}"
        return done

    def start(self, *arguments: str | Path, **environ: str) -> Running:
        """``p2v-sync ARGUMENTS`` in the background."""
        argv = [str(BIN / "p2v-sync"), *map(str, arguments)]
        running = Running(argv, self.root / f"log{next(self._numbers)}", self.environ(**environ))
        self._running.append(running)
        return running

    def status(self, *arguments: str | Path) -> dict[str, Any]:
        """The one disk that ``status --json`` shows."""
        (line,) = self.p2v("status", "--json", *arguments).out.splitlines()
        disk: dict[str, Any] = json.loads(line)
        return disk

    # The receiver

    def listen(
        self, *options: str | Path, argv: tuple[str, ...] = (str(BIN / "p2v-receiver"),)
    ) -> Listener:
        """``p2v-receiver listen`` on a free port of the loopback address, for ``out``."""
        command = [*argv, "listen", "--bind", "127.0.0.1"]
        if "--dir" not in options:
            command += ["--dir", str(self.out)]
        if "--port" not in options:
            command += ["--port", "0"]
        log = self.root / f"log{next(self._numbers)}"
        listener = Listener([*command, *map(str, options)], log, self.environ())
        self._running.append(listener)
        return listener.wait_until_it_listens()

    # Files

    def image(self, name: str = "web.img", size: int = 8 * MIB, seed: int = 1) -> Path:
        """Random data, zeros, a hole, text, and random data again."""
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        generator = random.Random(seed)
        with path.open("wb") as file:
            file.truncate(size)
            file.write(generator.randbytes(size // 4))
            file.write(bytes(size // 8))
            file.seek(size // 2)
            text = b"".join(b"Nov 22 03:14:07 db1 line %d\n" % n for n in range(size // 64))
            file.write(text[: size // 4])
            file.seek(size - size // 8)
            file.write(generator.randbytes(size // 8))
        return path

    def noise(self, name: str = "noise.img", size: int = 8 * MIB, seed: int = 7) -> Path:
        """Random data only: nothing to skip and nothing to compress."""
        path = self.root / name
        path.write_bytes(b"")
        fill(path, random.Random(seed), 0, size)
        return path

    def replica(self, name: str, job: str | None = None) -> Path:
        return self.out / (job or name) / f"{name}.img"


def assert_equal(one: Path, other: Path) -> None:
    """``cmp``."""
    result = subprocess.run(
        ["cmp", str(one), str(other)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def change(path: Path, start: int, data: bytes) -> None:
    """Write into a file as another program would."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def fill(path: Path, generator: random.Random, start: int, length: int) -> None:
    """Noise, in pieces: ``randbytes`` makes no more than 256 MiB."""
    with path.open("r+b") as file:
        file.seek(start)
        for at in range(0, length, 16 * MIB):
            file.write(generator.randbytes(min(16 * MIB, length - at)))


def flip(path: Path, start: int) -> None:
    """One bit of one byte."""
    with path.open("r+b") as file:
        file.seek(start)
        (byte,) = file.read(1)
        file.seek(start)
        file.write(bytes([byte ^ 1]))


def counters_add_up(event: dict[str, Any], size: int) -> bool:
    """Every byte was looked at, and is one of zero, same or sent."""
    done = event["counters"]
    parts = done["zero"] + done["same"] + done["sent"]
    return bool(done["scanned"] == parts == size)


def stop_when(running: Running, share: float) -> None:
    """Wait until a run with ``--json`` has come so far."""

    def is_there() -> bool:
        for event in progress(running):
            if event["counters"]["scanned"] >= share * event["size"]:
                return True
        return False

    running.until(is_there)


def progress(running: Running) -> Iterator[dict[str, Any]]:
    for line in running.out.splitlines(keepends=True):
        if line.endswith("\n") and line.startswith('{"event": "progress"'):
            yield json.loads(line)
