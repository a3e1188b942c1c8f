"""A real sshd on loopback, with keys and a client's home directory of its own."""

import contextlib
import getpass
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import find, free_port, serving

_SERVER = """\
ListenAddress 127.0.0.1:{port}
HostKey {root}/host_key
AuthorizedKeysFile {root}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
MaxStartups 100
"""
_CLIENT = """\
Host {name}
HostName 127.0.0.1
Port {port}
User {user}
IdentityFile {home}/.ssh/id_ed25519
UserKnownHostsFile {home}/.ssh/known_hosts
"""


@dataclass(frozen=True)
class Host:
    """``name`` is known to who has ``home`` as his home."""

    home: Path
    name: str = "target-host"

    @property
    def shell(self) -> str:
        """The command line of ssh(1) up to the host; it asks for no home but the one in passwd."""
        return f"ssh -F {self.home}/.ssh/config"

    @property
    def ssh(self) -> str:
        """A command for the host goes behind it."""
        return f"{self.shell} {self.name}"


@contextlib.contextmanager
def running_sshd(root: Path) -> Iterator[Host]:
    """Raises Failed."""
    host = Host(root / "home")
    port = free_port()
    _make_keys(root, host, port)
    config = root / "sshd_config"
    config.write_text(_SERVER.format(port=port, root=root))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself in before a login
    with serving([find("sshd") or "sshd", "-D", "-e", "-f", str(config)], port):
        yield host


def _make_keys(root: Path, host: Host, port: int) -> None:
    directory = host.home / ".ssh"
    directory.mkdir(parents=True)
    for key in (root / "host_key", directory / "id_ed25519"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(argv, check=True)
    (root / "authorized_keys").write_text((directory / "id_ed25519.pub").read_text())
    host_key = (root / "host_key.pub").read_text()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    client = _CLIENT.format(name=host.name, port=port, user=getpass.getuser(), home=host.home)
    (directory / "config").write_text(client)
