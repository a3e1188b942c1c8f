"""What all tests share: a home of their own, the guard of the unit tests, no silent skips."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

IN_CI = os.environ.get("CI") == "true"
NO_SKIP = IN_CI or os.environ.get("P2V_NO_SKIP") == "1"
LONG = os.environ.get("P2V_TORTURE") == "long"

hypothesis.settings.register_profile("dev", max_examples=50, derandomize=True, deadline=None)
# Derandomized as well: a red run must come from the change that it is about.
hypothesis.settings.register_profile("ci", max_examples=100, derandomize=True, deadline=None)
hypothesis.settings.register_profile("deep", max_examples=5000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if IN_CI else "dev"))


# A place of our own.


def _isolate(patch: pytest.MonkeyPatch, home: Path) -> None:
    """No test reads the user's ~/.ssh or leaves a ledger in the system's place."""
    for name in [*os.environ]:
        if name.startswith(("P2V_", "XDG_")) and name not in _OURS:
            patch.delenv(name)
    patch.delenv("SSH_AUTH_SOCK", raising=False)
    patch.setenv("HOME", str(home))
    patch.setenv("XDG_STATE_HOME", str(home / "state"))
    patch.setenv("P2V_STATE", str(home / "p2v-state"))


_OURS = ("P2V_NO_SKIP", "P2V_OLD_PYTHONS", "P2V_TORTURE")


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that are wider than a test."""
    with pytest.MonkeyPatch.context() as patch:
        _isolate(patch, tmp_path_factory.mktemp("home"))
        yield


@pytest.fixture(autouse=True)
def home(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, _session_home: None
) -> Path:
    """The empty home directory of this test."""
    directory = tmp_path_factory.mktemp("home")
    _isolate(monkeypatch, directory)
    return directory


# The guard: what tests/unit and tests/property test is reached without programs, networks or disks.

_guarded = False


def _complain(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook (there is no way to take one out again, so it has a switch)."""
    if not _guarded:
        return
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        # A second Python of ours is allowed: only a process can be killed.
        if arguments[0] != sys.executable:
            pytest.fail(f"a unit test starts {arguments[0]!r}; see real_parts in CONTRIBUTING.md")
    elif event in ("socket.connect", "socket.bind", "socket.sendto"):
        if not isinstance(arguments[1], str | bytes):  # an AF_UNIX address is one string
            pytest.fail(f"a unit test uses the network: {event} {arguments[1]}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        pytest.fail(f"a unit test looks up {arguments[0]!r}")
    elif event == "open" and _is_disk(arguments[0]):
        pytest.fail(f"a unit test opens {arguments[0]!r}")


def _is_disk(path: Any) -> bool:
    if not str(path).startswith("/dev/"):
        return False
    with contextlib.suppress(OSError):
        return stat.S_ISBLK(os.stat(path).st_mode)
    return False


sys.addaudithook(_complain)


@pytest.fixture(autouse=True)
def _guard(request: pytest.FixtureRequest) -> Iterator[None]:
    global _guarded
    where = request.path.parent.name
    _guarded = where in ("unit", "property") and "real_parts" not in request.keywords
    yield
    _guarded = False


# Skips.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a missing part is a failure; elsewhere pytest says at the end what was skipped."""
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow. {reason}"


# What the kernel is asked.


@pytest.fixture
def seeks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ``whence`` of every lseek(2) from now on."""
    real, asked = os.lseek, list[int]()

    def lseek(fd: int, position: int, whence: int) -> int:
        asked.append(whence)
        return real(fd, position, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    return asked


# What the torture did: a test that only says "passed" could have done nothing.

Tell = Callable[[str], None]
_TOLD = "told"


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """``tell(what was done)``: a line of the summary after the tests."""
    # A property comes along with the test's report, also from another process (xdist).
    return lambda text: request.node.user_properties.append((_TOLD, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = (each for some in terminalreporter.stats.values() for each in some)
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {text}"
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, text in report.user_properties
        if name == _TOLD
    ]
    if lines:
        terminalreporter.section(f"what was done, torture {'long' if LONG else 'short'}")
    for line in lines:
        terminalreporter.write_line(line)


# Leftovers.


@pytest.fixture(scope="session", autouse=True)
def _sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Mounts and loop devices that a test left behind are taken down, and that is an error."""
    yield
    base = tmp_path_factory.getbasetemp()
    found = [*_leftover_mounts(base), *_leftover_loops(base)]
    for thing, *commands in found:
        for argv in commands:
            subprocess.run([*argv, thing], check=False)
    if found:
        pytest.fail(f"left behind by the tests: {', '.join(thing for thing, *_ in found)}")


_Leftover = tuple[str, *tuple[list[str], ...]]  # a thing, and the commands that take it down


def _leftover_mounts(base: Path) -> Iterator[_Leftover]:
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        point = line.split()[1].encode().decode("unicode_escape")
        if Path(point).is_relative_to(base):
            yield point, ["umount", "--lazy"]


def _leftover_loops(base: Path) -> Iterator[_Leftover]:
    for backing in Path("/sys/class/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(f"{base}/"):
                yield f"/dev/{backing.parts[-3]}", ["blockdev", "--setrw"], ["losetup", "--detach"]


# Old interpreters, for the receiver.


@cache
def oldest_python() -> str:
    """The oldest Python >= 3.6 of this machine: this one where there is no other.

    Looked for on PATH, under pyenv, and in P2V_OLD_PYTHONS (files, with colons between them).
    """
    found = {_version_of(python): python for python in reversed(_candidates())}
    return found[min(version for version in found if version >= (3, 6))]


def _candidates() -> list[str]:
    named = [name for name in os.environ.get("P2V_OLD_PYTHONS", "").split(":") if name]
    names = [f"python3.{minor}" for minor in range(6, sys.version_info.minor)]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    under_pyenv = [
        str(path) for name in names for path in sorted(root.glob(f"versions/*/bin/{name}"))
    ]
    return [sys.executable, *named, *under_pyenv, *names, "/usr/libexec/platform-python"]


def _version_of(python: str) -> tuple[int, ...]:
    """(0,) for what does not run or lacks a module that the receiver needs."""
    code = "import sqlite3, ssl, sys, zlib; print(*sys.version_info[:3])"
    argv = [python, "-I", "-c", code]
    try:
        answer = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return (0,)
    return tuple(map(int, answer.stdout.split()))


# Now, while HOME still is the user's.
OLDEST_PYTHON = oldest_python()
