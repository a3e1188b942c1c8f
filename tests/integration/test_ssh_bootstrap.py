"""The bootstrap without ssh: what a login shell makes of it, and every Python that may run it."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from p2v_receiver import wire
from p2v_sync.run import Tail
from p2v_sync.transport import bootstrap
from p2v_sync.transport.bootstrap import OLDEST_PYTHON, Bootstrap, Silence, build_bootstrap, explain
from p2v_sync.transport.channel import StreamChannel
from p2v_sync.transport.direct import open_streams
from tests.conftest import oldest_python
from tests.contract.channel_suite import MIB, Client, noise

# The first five are what CI installs.
SHELLS = ("sh", "bash", "dash", "tcsh", "fish", "csh", "ksh", "mksh", "zsh")


class Host:
    """What sshd does with a command: SHELL -c COMMAND, over pipes.  A pipe itself, once ready."""

    def __init__(self, script: Bootstrap, shell: Sequence[str] = ("sh",), **environ: str) -> None:
        self._process = subprocess.Popen(
            [*shell, "-c", script.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={"PATH": os.environ["PATH"], **environ},
        )
        self._script = script
        self.output = b""

    def boot(self) -> StreamChannel:
        self.start()
        return StreamChannel(self)

    def start(self) -> None:
        assert self._process.stdin is not None
        assert self._wait_for(self._script.send_mark), self.silence()
        self._process.stdin.write(self._script.bundle)
        assert self._wait_for(self._script.ready_mark), self.silence()

    def read_line(self) -> str:
        self.output = b""
        assert self._wait_for(b"\n"), self.silence()
        return self.output.decode()

    def _wait_for(self, mark: bytes) -> bool:
        """Byte by byte, so that no frame is taken."""
        assert self._process.stdout is not None
        while not self.output.endswith(mark):
            piece = self._process.stdout.read(1)
            if not piece:
                return False
            self.output += piece
        return True

    def silence(self) -> Silence:
        """What there is instead of a receiver."""
        output, errors = self._process.communicate()
        output = self.output + output
        return Silence(self._process.returncode, output.decode(errors="replace"), errors.decode())

    def recv_into(self, view: memoryview) -> int:
        assert self._process.stdout is not None
        return os.readv(self._process.stdout.fileno(), [view])

    def sendall(self, data: wire.Buffer) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        while len(view):
            view = view[os.write(self._process.stdin.fileno(), view) :]

    def close(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def replicate(host: Host, directory: Path) -> None:
    channel = host.boot()
    client = Client(channel)
    client.greet()
    client.copy(client.open("sda"), noise(MIB))
    client.close()
    host.end()
    assert (directory / "job" / "sda.img").read_bytes() == noise(MIB)


def _pythons() -> Iterator[str]:
    """All that can be found: on PATH, and those of pyenv."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(str(path) for path in versions.glob("*/bin/python3"))
    for minor in range(OLDEST_PYTHON[1], 20):
        path = shutil.which(f"python3.{minor}")
        if path is not None and "shims" not in path:
            yield path


def _version(python: str) -> tuple[int, ...]:
    code = "import sys; print(sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    version: tuple[int, ...] = ast.literal_eval(done.stdout) if done.returncode == 0 else ()
    return version


@pytest.mark.parametrize("shell", [*SHELLS[:5], *filter(shutil.which, SHELLS[5:])])
def test_shells(shell: str, tmp_path: Path) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"needs {shell}")
    replicate(
        Host(build_bootstrap(str(tmp_path), sudo=False), [path], HOME=str(tmp_path)), tmp_path
    )


def test_pythons(tmp_path: Path) -> None:
    tried = set()
    for python in _pythons():
        version = _version(python)
        if version in tried or version < OLDEST_PYTHON:
            continue
        tried.add(version)
        directory = tmp_path / "-".join(map(str, version))
        directory.mkdir()
        script = build_bootstrap(str(directory), sudo=False, pythons=(python,))
        replicate(Host(script, PYTHONPATH="/nonexistent"), directory)
    assert tried


@pytest.mark.parametrize("ssh_connection", ["192.0.2.1 1 127.0.0.1 22", "", "rubbish"])
def test_a_direct_port_with_the_oldest_python(tmp_path: Path, ssh_connection: str) -> None:
    options = ["--direct", "2", "--at", "127.0.0.1"]
    script = build_bootstrap(str(tmp_path), sudo=False, pythons=(oldest_python(),), options=options)
    host = Host(script, SSH_CONNECTION=ssh_connection)
    host.start()
    announcement = host.read_line()
    control = StreamChannel(host)
    control.bulk = open_streams("127.0.0.1", announcement, 2)
    clients = [Client(channel) for channel in (control, *control.bulk)]
    for client in clients:
        client.greet()
    opened = clients[0].open("sda")
    attach = {"session": opened["session"], "token": opened["token"]}
    for client in clients[1:]:
        client.ask(wire.FrameType.ATTACH, attach, wire.FrameType.ATTACHED)
    for client in reversed(clients):
        client.close()
    host.end()


def fake(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with sh, and no Python."""
    directory = tmp_path / "programs"
    directory.mkdir()
    (directory / "sh").symlink_to(str(shutil.which("sh")))
    return directory


def test_platform_python(tmp_path: Path, programs: Path) -> None:
    """RHEL 8: there is no python3, but what dnf runs on."""
    platform = tmp_path / "libexec" / "platform-python"
    fake(platform, f'exec {sys.executable} "$@"')
    script = build_bootstrap(str(tmp_path), sudo=False, pythons=("python3", str(platform)))
    replicate(Host(script, PATH=str(programs)), tmp_path)


def test_a_python_that_is_too_old_is_passed_over(tmp_path: Path, programs: Path) -> None:
    fake(programs / "python3", "exit 1")
    fake(programs / "python3.9", f'exec {sys.executable} "$@"')
    script = build_bootstrap(str(tmp_path), sudo=False, pythons=("python3", "python3.9"))
    replicate(Host(script, PATH=str(programs)), tmp_path)


def test_no_python(tmp_path: Path, programs: Path) -> None:
    script = build_bootstrap(str(tmp_path), sudo=False, pythons=("python3",))
    error = explain("host", Host(script, PATH=str(programs)).silence())
    assert "there is no Python on the host" in error.message
    assert error.hint is not None
    assert "install Python 3.6" in error.hint


def test_only_pythons_that_are_too_old(tmp_path: Path, programs: Path) -> None:
    fake(programs / "python3", 'test "$1" = -V && echo Python 3.4.2; exit 1')
    script = build_bootstrap(str(tmp_path), sudo=False, pythons=("python3",))
    error = explain("host", Host(script, PATH=str(programs)).silence())
    assert "no Python there can run the receiver" in error.message
    assert "python3 is Python 3.4.2" in error.message


def test_python_2_is_passed_over(tmp_path: Path, programs: Path) -> None:
    old = next(
        (path for path in _two() if subprocess.run([path, "-V"], check=False).returncode == 0), None
    )
    if old is None:
        pytest.skip("needs a Python 2")
    script = build_bootstrap(str(tmp_path), sudo=False, pythons=(old,))
    error = explain("host", Host(script, PATH=str(programs)).silence())
    assert "Python 2" in error.message


def _two() -> Iterator[str]:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from map(str, versions.glob("2*/bin/python2"))
    found = shutil.which("python2")
    if found is not None and "shims" not in found:
        yield found


def test_an_incomplete_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_LOADER", "import no_such_module\n")
    script = build_bootstrap(str(tmp_path), sudo=False)
    host = Host(script)
    with pytest.raises(AssertionError) as caught:
        host.boot()
    assert "no_such_module" in str(caught.value)
    error = explain("host", Silence(1, "", "ModuleNotFoundError: No module named 'sqlite3'"))
    assert "standard library" in error.message


def test_a_damaged_bundle_is_not_run(tmp_path: Path) -> None:
    script = build_bootstrap(str(tmp_path), sudo=False)
    damaged = bytearray(script.bundle)
    damaged[100] ^= 1
    host = Host(Bootstrap(script.command, script.send_mark, bytes(damaged), script.ready_mark))
    with pytest.raises(AssertionError):
        host.boot()
    host = Host(Bootstrap(script.command, script.send_mark, bytes(damaged), script.ready_mark))
    assert host._wait_for(script.send_mark)
    host.sendall(damaged)
    assert "arrived damaged" in explain("host", host.silence()).message


def test_the_environment_gets_in_nothing(tmp_path: Path) -> None:
    """Neither PYTHONPATH, PYTHONSTARTUP nor a module in the working directory."""
    (tmp_path / "zlib.py").write_text("raise SystemExit('taken')\n")
    (tmp_path / "json.py").write_text("raise SystemExit('taken')\n")
    script = build_bootstrap(str(tmp_path), sudo=False)
    replicate(Host(script, PYTHONPATH=str(tmp_path), PYTHONHOME="/nonexistent"), tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_nothing_can_be_written_or_run_but_in_the_directory(tmp_path: Path) -> None:
    """/tmp read-only and noexec, no home."""
    directory = tmp_path / "images"
    directory.mkdir()
    mounts = (
        f"mount -t tmpfs none /mnt && mkdir /mnt/images && mount --bind {directory} /mnt/images"
        " && mount -t tmpfs -o ro,noexec none /tmp && mount -t tmpfs -o ro,noexec none /var/tmp"
    )
    unshare = ["unshare", "-m", "sh", "-ec"]
    if subprocess.run([*unshare, mounts], capture_output=True, check=False).returncode:
        pytest.skip("needs to be allowed to mount in a namespace")
    script = build_bootstrap("/mnt/images", sudo=False)
    # sh -ec 'mounts; exec sh -c "$2"' x -c COMMAND
    shell = [*unshare, f'{mounts}; exec sh -c "$2"', "x"]
    replicate(Host(script, shell, HOME="/nonexistent"), directory)


def test_tracebacks_name_files_and_show_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = bootstrap._LOADER.replace("sys.exit(", "p2v_receiver.wire.unpack_number(None);(")
    monkeypatch.setattr(bootstrap, "_LOADER", broken)
    host = Host(build_bootstrap(str(tmp_path), sudo=False))
    host.boot().close()
    errors = host.silence().errors
    assert 'File "p2v_receiver/wire.py", line ' in errors
    assert "    if len(meta) != " in errors


def test_the_bundle_is_small(tmp_path: Path) -> None:
    assert len(build_bootstrap(str(tmp_path), sudo=False).bundle) < 40 * 1024


def test_the_command_line_is_safe_in_every_shell() -> None:
    command = build_bootstrap('/it\'s "odd" $HOME `id` \\ !x\n\udcff', sudo=True).command
    script = command.split("'")[1]
    assert command.count("'") == 2
    assert not set(script) & set("!\\\n")
    assert len(script) < 1024  # words of the old csh can't be longer
    assert command.startswith("sudo -n -- sh -c '")


def test_odd_directories(tmp_path: Path) -> None:
    directory = tmp_path / 'it\'s "odd" $HOME `id` \\ !x\n\udcff'
    directory.mkdir()
    replicate(Host(build_bootstrap(str(directory), sudo=False), HOME=str(tmp_path)), directory)


@pytest.mark.parametrize(
    ("silence", "message"),
    [
        (Silence(1, "", "sudo: a password is required"), "sudo asks for a password"),
        (Silence(1, "", "sudo: sorry, you must have a tty to run sudo"), "terminal"),
        (Silence(1, "", "ann is not in the sudoers file."), "not allowed"),
        (Silence(127, "", "bash: line 1: sudo: command not found"), "no sudo"),
        (Silence(127, "", "fish: Unknown command: sudo"), "no sudo"),
        (Silence(1, "", "sudo: Command not found."), "no sudo"),
        (Silence(1, "This service allows sftp connections only.", ""), "transfer files"),
        (Silence(1, "This account is currently not available.", ""), "no shell"),
        (Silence(1, "", ""), "status 1"),
        (Silence(71, "", ""), "damaged"),
        (Silence(None, "", ""), "no receiver answered"),
        (Silence(None, "x" * bootstrap.NOISE_MOST, ""), "prints without end"),
    ],
)
def test_explanations(silence: Silence, message: str) -> None:
    error = explain("host", silence)
    assert message in error.message
    assert error.hint


def test_the_tail_of_what_a_program_said() -> None:
    tail = Tail("test")
    for number in range(100):
        tail.add(f"line {number}\n".encode())
    tail.add(b"\xff\n")
    lines = tail.text.splitlines()
    assert lines[-2:] == ["line 99", "\ufffd"]
    assert len(lines) == 20
