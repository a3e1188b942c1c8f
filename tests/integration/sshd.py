"""A real sshd on loopback, with keys, users and a client's home of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")

needs_sshd = [
    pytest.mark.skipif(SSHD is None, reason="needs sshd (apt-get install openssh-server)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for sshd and its users"),
]

_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {host_key}
PidFile {root}/pid
AuthorizedKeysFile {root}/authorized_keys
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication yes
MaxStartups 100
PrintMotd no
LogLevel VERBOSE
"""


def make_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)]
    subprocess.run(argv, check=True)
    return path


def public_half(path: Path) -> str:
    return path.with_name(f"{path.name}.pub").read_text()


class Sshd:
    """``home`` is the client's; its key and the host's are in place."""

    def __init__(self, root: Path, options: str = "") -> None:
        self.root = root
        self.home = root / "home"
        ssh_directory = self.home / ".ssh"
        ssh_directory.mkdir(parents=True)
        self.host_key = make_key(root / "host_key")
        self.key = make_key(ssh_directory / "id_ed25519")
        self.authorized = root / "authorized_keys"
        self.authorized.write_text(public_half(self.key))
        self.known_hosts = ssh_directory / "known_hosts"
        self.config = ssh_directory / "config"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])
        self.know_host()
        text = _CONFIG.format(port=self.port, host_key=self.host_key, root=root) + options
        (root / "sshd_config").write_text(text)
        self.start()

    def know_host(self, key: Path | None = None) -> None:
        kind, text, *_ = public_half(key or self.host_key).split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {text}\n")

    def start(self) -> None:
        assert SSHD is not None
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself in before a login
        self.log = (self.root / "log").open("ab")
        argv = [SSHD, "-D", "-e", "-f", str(self.root / "sshd_config")]
        self._process = subprocess.Popen(argv, stderr=self.log, stdin=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert time.monotonic() < deadline_s, (self.root / "log").read_text()
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of the one that listens."""
        return self._process.pid

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self.log.close()


@contextlib.contextmanager
def running_sshd(root: Path, monkeypatch: pytest.MonkeyPatch, options: str = "") -> Iterator[Sshd]:
    """A server, and this process' home set to that of its client."""
    root.mkdir()
    server = Sshd(root, options)
    monkeypatch.setenv("HOME", str(server.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def login(name: str, shell: str, home: Path, password: str | None = None) -> Iterator[str]:
    """A user with root's rights, so that he gets into the tests' directories, and that shell."""
    home.mkdir(exist_ok=True)
    options = ["-o", "-u", "0", "-g", "0", "-M", "-d", str(home), "-s", shell]
    subprocess.run(["userdel", name], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["useradd", *options, name], check=True, stderr=subprocess.DEVNULL)
    try:
        secret = password or "locked-out-of-passwords"
        subprocess.run(["chpasswd"], input=f"{name}:{secret}\n", text=True, check=True)
        yield name
    finally:
        # -f: it says that root's processes are his.
        subprocess.run(["userdel", "-f", name], stderr=subprocess.DEVNULL, check=True)
