"""ssh against a real sshd: the contract, login shells, host keys, logging in, ways through."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2v_receiver import wire
from p2v_sync.engine import ports
from p2v_sync.errors import (
    AuthFailed,
    BootstrapFailed,
    ConfigError,
    ConnectFailed,
    HostKeyUnknown,
    P2vError,
    PeerLost,
)
from p2v_sync.transport import bootstrap, ssh
from p2v_sync.transport.address import SshTarget
from p2v_sync.transport.ask import Secrets
from p2v_sync.transport.ssh import SshDialer, SshOptions
from tests.contract.channel_suite import MIB, Client, ProcessSuite, noise
from tests.integration.sshd import (
    Sshd,
    login,
    make_key,
    needs_sshd,
    public_half,
    running_sshd,
)

pytestmark = needs_sshd


class Person:
    """Answers from lists, and notes what was asked."""

    def __init__(self, *secrets: str, yes: bool = False) -> None:
        self._secrets = list(secrets)
        self._yes = yes
        self.asked: list[str] = []

    def secret(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self._secrets.pop(0)

    def confirm(self, question: str) -> bool:
        self.asked.append(question)
        return self._yes


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    with running_sshd(tmp_path / "sshd", monkeypatch) as server:
        yield server


def dialer_to(
    server: Sshd,
    directory: Path | str,
    *,
    user: str = "root",
    options: SshOptions | None = None,
    ask: Person | None = None,
    secrets: Secrets | None = None,
) -> SshDialer:
    target = SshTarget(user, "127.0.0.1", server.port, str(directory))
    return SshDialer(target, options or SshOptions(), ask, secrets or Secrets())


def replicate(dialer: ports.Dialer, size: int = MIB) -> None:
    channel = dialer.dial()
    client = Client(channel)
    client.greet()
    client.copy(client.open("sda", size), noise(size))
    client.close()


class TestInBand(ProcessSuite):
    data = "inband"

    @pytest.fixture
    def dialer(self, sshd: Sshd, directory: Path) -> ports.Dialer:
        self.sshd = sshd
        return dialer_to(sshd, directory, options=SshOptions(data=self.data))

    def dialer_source(self, directory: Path) -> str:
        return (
            "from p2v_sync.transport.address import SshTarget\n"
            "from p2v_sync.transport.ssh import SshDialer, SshOptions\n"
            f"target = SshTarget('root', '127.0.0.1', {self.sshd.port}, {str(directory)!r})\n"
            f"dialer = SshDialer(target, SshOptions(data={self.data!r}), None)"
        )


class TestControlOfADirectPath(TestInBand):
    data = "direct"


# Starting the receiver

# The first five are what CI installs.
SHELLS = ("sh", "bash", "dash", "tcsh", "fish", "csh", "ksh", "zsh")


@pytest.mark.parametrize("shell", [*SHELLS[:5], *filter(shutil.which, SHELLS[5:])])
def test_login_shells(shell: str, sshd: Sshd, directory: Path, tmp_path: Path) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"needs {shell}")
    with login(f"p2v-{shell}", path, tmp_path / "login") as user:
        replicate(dialer_to(sshd, directory, user=user))
    assert (directory / "job" / "sda.img").read_bytes() == noise(MIB)


def test_noisy_start_up_files(sshd: Sshd, directory: Path, tmp_path: Path) -> None:
    home = tmp_path / "login"
    home.mkdir()
    # Debian's bash reads .bashrc for ssh commands (SSH_SOURCE_BASHRC).
    (home / ".bashrc").write_text(
        "echo Welcome to the machine; seq 1 3000; echo Oops >&2; printf '\\0\\377 no newline'\n"
    )
    with login("p2v-noisy", "/bin/bash", home) as user:
        replicate(dialer_to(sshd, directory, user=user))


def test_endless_start_up_files(sshd: Sshd, directory: Path, tmp_path: Path) -> None:
    home = tmp_path / "login"
    home.mkdir()
    (home / ".bashrc").write_text("yes\n")
    with (
        login("p2v-endless", "/bin/bash", home) as user,
        pytest.raises(BootstrapFailed, match="prints without end"),
    ):
        dialer_to(sshd, directory, user=user).dial()


@pytest.mark.parametrize("shell", ["/usr/sbin/nologin", "/bin/false"])
def test_no_shell(shell: str, sshd: Sshd, directory: Path, tmp_path: Path) -> None:
    with (
        login("p2v-none", shell, tmp_path / "login") as user,
        pytest.raises(BootstrapFailed) as caught,
    ):
        dialer_to(sshd, directory, user=user).dial()
    assert not caught.value.retryable
    assert "run commands" in str(caught.value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("internal-sftp", "only transfer files"),
        ("sleep 60", "no receiver answered"),
        ("echo for backups only", "status 0 .*\n.*for backups only"),
    ],
)
def test_a_forced_command(
    command: str,
    message: str,
    tmp_path: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "ANSWER_WITHIN_S", 2.0)
    options = f"Subsystem sftp internal-sftp\nForceCommand {command}\n"
    with (
        running_sshd(tmp_path / "sshd", monkeypatch, options) as server,
        pytest.raises(BootstrapFailed, match=message),
    ):
        dialer_to(server, directory).dial()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('test "$1 $2" = "-n --" && shift 2 && exec "$@"', None),
        ("echo sudo: a password is required >&2; exit 1", "sudo asks for a password"),
    ],
)
def test_sudo(
    script: str,
    message: str | None,
    tmp_path: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    sudo = programs / "sudo"
    sudo.write_text(f"#!/bin/sh\n{script}\n")
    sudo.chmod(0o755)
    options = f"SetEnv PATH={programs}:/usr/local/bin:/usr/bin:/bin\n"
    with running_sshd(tmp_path / "sshd", monkeypatch, options) as server:
        dialer = dialer_to(server, directory, options=SshOptions(sudo=True))
        if message is None:
            replicate(dialer)
        else:
            with pytest.raises(BootstrapFailed, match=message):
                dialer.dial()


def test_no_sudo(tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = f"SetEnv PATH={tmp_path}\n"
    with (
        running_sshd(tmp_path / "sshd", monkeypatch, options) as server,
        pytest.raises(BootstrapFailed, match="no sudo on the host"),
    ):
        dialer_to(server, directory, options=SshOptions(sudo=True)).dial()


def test_nothing_is_left_on_the_host(sshd: Sshd, directory: Path, tmp_path: Path) -> None:
    home = tmp_path / "login"
    before = set(Path("/tmp").iterdir())
    with login("p2v-clean", "/bin/sh", home) as user:
        replicate(dialer_to(sshd, directory, user=user))
    assert list(home.iterdir()) == []
    assert set(Path("/tmp").iterdir()) - before == set()


def test_a_relative_directory_is_the_homes(sshd: Sshd, tmp_path: Path) -> None:
    home = tmp_path / "login"
    with login("p2v-relative", "/bin/sh", home) as user:
        replicate(dialer_to(sshd, "ima ges", user=user))
        replicate(dialer_to(sshd, "~/o'ther", user=user))
    assert (home / "ima ges" / "job" / "sda.img").exists()
    assert (home / "o'ther" / "job" / "sda.img").exists()


def test_a_large_disk_in_band(sshd: Sshd, directory: Path) -> None:
    """Windows, rekeying and both directions, over far more than any buffer holds."""
    size = wire.MAX_BODY
    channel = dialer_to(sshd, directory).dial()
    client = Client(channel)
    client.greet()
    opened = client.open("sda", size)
    for _ in range(8):
        client.copy(opened, noise(size))
    client.close()
    written = hashlib.sha256((directory / "job" / "sda.img").read_bytes()).digest()
    assert written == hashlib.sha256(noise(size)).digest()


def test_new_keys_in_full_flow(
    sshd: Sshd, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens after 16 GiB must not break the connection."""
    monkeypatch.setattr(ssh, "_REKEY_BYTES", 5 * MIB)
    test_a_large_disk_in_band(sshd, directory)


def test_the_last_words_of_a_dead_receiver_are_told(
    sshd: Sshd, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bootstrap, "_LOADER", "import sys\nsys.stdout.write(READY)\nsys.exit('no legs')\n"
    )
    channel = dialer_to(sshd, directory, options=SshOptions(data="inband")).dial()
    with pytest.raises(PeerLost, match="no legs"):
        channel.receive()
    channel.close()


# Host keys


class TestHostKeys:
    def test_unknown_and_nobody_to_ask(self, sshd: Sshd, directory: Path) -> None:
        sshd.known_hosts.unlink()
        with pytest.raises(HostKeyUnknown, match="SHA256:") as caught:
            dialer_to(sshd, directory).dial()
        assert "ssh-keyscan" in str(caught.value)
        assert not sshd.known_hosts.exists()

    def test_unknown_and_refused(self, sshd: Sshd, directory: Path) -> None:
        sshd.known_hosts.unlink()
        with pytest.raises(HostKeyUnknown, match="not accepted"):
            dialer_to(sshd, directory, ask=Person(yes=False)).dial()
        assert not sshd.known_hosts.exists()

    def test_unknown_and_accepted(self, sshd: Sshd, directory: Path) -> None:
        sshd.known_hosts.write_text("other.example ssh-ed25519 AAAA")  # no newline at its end
        person = Person(yes=True)
        dialer_to(sshd, directory, ask=person).dial().close()
        assert "SHA256:" in person.asked[0]
        dialer_to(sshd, directory).dial().close()
        lines = sshd.known_hosts.read_text().splitlines()
        assert [line.split()[0] for line in lines] == [
            "other.example",
            f"[127.0.0.1]:{sshd.port}",
        ]

    def test_changed_is_refused_whatever_anybody_says(
        self, sshd: Sshd, directory: Path, tmp_path: Path
    ) -> None:
        sshd.know_host(make_key(tmp_path / "other"))
        person = Person(yes=True)
        with pytest.raises(HostKeyUnknown, match="HAS CHANGED"):
            dialer_to(sshd, directory, ask=person).dial()
        assert person.asked == []

    def test_hashed_names(self, sshd: Sshd, directory: Path) -> None:
        subprocess.run(
            ["ssh-keygen", "-q", "-H", "-f", str(sshd.known_hosts)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert "127.0.0.1" not in sshd.known_hosts.read_text()
        dialer_to(sshd, directory).dial().close()

    def test_the_key_type_that_is_known_is_asked_for(
        self, tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A host has several; another one than ours is no changed key."""
        rsa = make_key(tmp_path / "rsa", kind="rsa")
        options = f"HostKey {rsa}\n"
        with running_sshd(tmp_path / "sshd", monkeypatch, options) as server:
            server.know_host(rsa)
            dialer_to(server, directory).dial().close()

    def test_revoked(self, sshd: Sshd, directory: Path) -> None:
        kind, text, *_ = public_half(sshd.host_key).split()
        with sshd.known_hosts.open("a") as file:
            file.write(f"@revoked * {kind} {text}\n")
        with pytest.raises(HostKeyUnknown, match="REVOKED"):
            dialer_to(sshd, directory).dial()


# Logging in


class TestLoggingIn:
    def test_nothing_fits(self, sshd: Sshd, directory: Path) -> None:
        sshd.authorized.write_text("")
        with pytest.raises(AuthFailed) as caught:
            dialer_to(sshd, directory).dial()
        assert f"key file {sshd.key}" in str(caught.value)
        assert not caught.value.retryable

    def test_an_explicit_key(self, sshd: Sshd, directory: Path, tmp_path: Path) -> None:
        key = make_key(tmp_path / "special", kind="rsa")
        sshd.authorized.write_text(public_half(key))
        dialer_to(sshd, directory, options=SshOptions(identity_file=key)).dial().close()

    def test_a_key_that_is_none(self, sshd: Sshd, directory: Path, tmp_path: Path) -> None:
        (tmp_path / "rubbish").write_text("rubbish")
        options = SshOptions(identity_file=tmp_path / "rubbish")
        with pytest.raises(AuthFailed, match="can't be used"):
            dialer_to(sshd, directory, options=options).dial()

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
    def test_an_encrypted_key(self, kind: str, sshd: Sshd, directory: Path, tmp_path: Path) -> None:
        key = make_key(tmp_path / "secret", kind=kind, passphrase="sesame")
        sshd.authorized.write_text(public_half(key))
        options, secrets = SshOptions(identity_file=key), Secrets()
        person = Person("wrong", "sesame")
        for _ in range(2):  # and is not asked again
            dialer_to(sshd, directory, options=options, ask=person, secrets=secrets).dial().close()
        assert len(person.asked) == 2
        assert str(key) in person.asked[0]

    def test_an_encrypted_key_and_nobody_to_ask(
        self, sshd: Sshd, directory: Path, tmp_path: Path
    ) -> None:
        key = make_key(tmp_path / "secret", passphrase="sesame")
        with pytest.raises(AuthFailed, match="no passphrase"):
            dialer_to(sshd, directory, options=SshOptions(identity_file=key)).dial()

    def test_the_agent(
        self, sshd: Sshd, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sshd.key.rename(tmp_path / "gone")
        agent = subprocess.Popen(
            ["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL
        )
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        while not (tmp_path / "agent").exists():
            time.sleep(0.05)
        subprocess.run(["ssh-add", "-q", str(tmp_path / "gone")], check=True)
        dialer_to(sshd, directory).dial().close()
        agent.terminate()
        agent.wait()

    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # paramiko leaves the socket open
    def test_a_dead_agent_is_no_obstacle(
        self, sshd: Sshd, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "nothing"))
        dialer_to(sshd, directory).dial().close()

    def test_a_password(self, sshd: Sshd, directory: Path, tmp_path: Path) -> None:
        sshd.authorized.write_text("")
        secrets, person = Secrets(), Person("wrong", "swordfish")
        with login("p2v-password", "/bin/sh", tmp_path / "login", "swordfish") as user:
            for _ in range(2):  # and is not asked again
                dialer_to(sshd, directory, user=user, ask=person, secrets=secrets).dial().close()
        assert person.asked == [f"Password of p2v-password@127.0.0.1:{sshd.port}"] * 2

    def test_three_wrong_passwords(self, sshd: Sshd, directory: Path, tmp_path: Path) -> None:
        sshd.authorized.write_text("")
        person = Person("a", "b", "c", "d")
        with (
            login("p2v-password", "/bin/sh", tmp_path / "login", "swordfish") as user,
            pytest.raises(AuthFailed, match="a password"),
        ):
            dialer_to(sshd, directory, user=user, ask=person).dial()
        assert len(person.asked) == 3

    def test_a_key_and_a_password(
        self, tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = "AuthenticationMethods publickey,password\n"
        with (
            running_sshd(tmp_path / "sshd", monkeypatch, options) as server,
            login("p2v-both", "/bin/sh", tmp_path / "login", "swordfish") as user,
        ):
            dialer_to(server, directory, user=user, ask=Person("swordfish")).dial().close()

    def test_too_many_tries(
        self, tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with running_sshd(tmp_path / "sshd", monkeypatch, "MaxAuthTries 2\n") as server:
            server.authorized.write_text("")
            for kind in ("rsa", "ecdsa"):
                make_key(server.home / ".ssh" / f"id_{kind}", kind=kind)
            with pytest.raises(AuthFailed, match="id_ecdsa"):
                dialer_to(server, directory).dial()


# Ways to the host


_RELAY = """
import os, socket, sys, threading
sock = socket.create_connection((sys.argv[1], sys.argv[2]))
def out():
    while data := os.read(0, 65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=out, daemon=True).start()
while data := sock.recv(65536):
    os.write(1, data)
"""


class TestWays:
    def test_nobody_there(self, sshd: Sshd, directory: Path) -> None:
        sshd.stop()
        with socket.socket() as kept:
            # Bound and not listening: nobody else gets the port meanwhile.
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind(("127.0.0.1", sshd.port))
            with pytest.raises(ConnectFailed, match="refused") as caught:
                dialer_to(sshd, directory).dial()
        assert caught.value.retryable
        sshd.start()

    @pytest.mark.usefixtures("sshd")
    def test_something_else_listens_there(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as door:
            target = SshTarget("root", "127.0.0.1", door.getsockname()[1], str(directory))
            dialer = SshDialer(target, SshOptions(), None)
            door.settimeout(5)

            def serve() -> None:
                connection, _ = door.accept()
                with connection:
                    connection.sendall(b"220 mail.example ESMTP\r\n" * 200)

            thread = threading.Thread(target=serve)
            thread.start()
            with pytest.raises(ConnectFailed, match="no ssh connection"):
                dialer.dial()
            thread.join()

    def test_the_config_file(self, sshd: Sshd, directory: Path, tmp_path: Path) -> None:
        key = make_key(tmp_path / "special")
        sshd.authorized.write_text(public_half(key))
        sshd.known_hosts.rename(tmp_path / "hosts")
        (sshd.home / ".ssh" / "more").write_text(
            f"Host backup\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User root\n"
        )
        sshd.config.write_text(
            f"Include more\nHost back*\n  IdentityFile {key}\n"
            f"  UserKnownHostsFile {tmp_path / 'hosts'}\n"
        )
        target = SshTarget(None, "backup", None, str(directory))
        replicate(SshDialer(target, SshOptions(), None))

    def test_a_proxy_jump(
        self, sshd: Sshd, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        way = f"ProxyJump root@127.0.0.1:{sshd.port}"
        self._through(way, sshd, directory, tmp_path, monkeypatch)

    def test_a_proxy_command(
        self, sshd: Sshd, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "relay.py").write_text(_RELAY)
        command = f"ProxyCommand {sys.executable} {tmp_path / 'relay.py'} %h %p"
        self._through(command, sshd, directory, tmp_path, monkeypatch)

    def test_a_chain_of_jumps(
        self, sshd: Sshd, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jump = f"root@127.0.0.1:{sshd.port}"
        self._through(f"ProxyJump {jump},{jump}", sshd, directory, tmp_path, monkeypatch)

    def _through(
        self,
        way: str,
        first: Sshd,
        directory: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        known, key = first.known_hosts.read_text(), first.key
        with running_sshd(tmp_path / "inner", monkeypatch) as inner:
            inner.known_hosts.write_text(inner.known_hosts.read_text() + known)
            first.authorized.write_text(public_half(key) + public_half(inner.key))
            inner.config.write_text(
                f"Host inner\n  HostName 127.0.0.1\n  Port {inner.port}\n  User root\n  {way}\n"
            )
            replicate(SshDialer(SshTarget(None, "inner", None, str(directory)), SshOptions(), None))

    def test_a_circle_of_jumps(self, sshd: Sshd, directory: Path) -> None:
        sshd.config.write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
        with pytest.raises(ConfigError, match="circles"):
            SshDialer(SshTarget(None, "a", None, str(directory)), SshOptions(), None)

    def test_a_config_that_makes_no_sense(self, sshd: Sshd, directory: Path) -> None:
        sshd.config.write_text("Host a\n  Port many\n")
        with pytest.raises(ConfigError, match="many"):
            SshDialer(SshTarget(None, "a", None, str(directory)), SshOptions(), None)


# Dead peers


class TestDeadPeers:
    def test_a_stopped_receiver_is_noticed(
        self, sshd: Sshd, directory: Path, grow_impatient: Callable[[], None]
    ) -> None:
        channel = dialer_to(sshd, directory).dial()
        client = Client(channel)
        client.greet()
        client.open("sda")
        stopped = ProcessSuite().receivers(directory)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        grow_impatient()
        with pytest.raises(PeerLost, match="silent"):
            channel.receive()
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)

    def test_a_sender_in_full_flow_is_woken(
        self, sshd: Sshd, directory: Path, grow_impatient: Callable[[], None]
    ) -> None:
        channel = dialer_to(sshd, directory).dial()
        client = Client(channel)
        client.greet()
        client.open("sda", 1 << 30)
        begin = {"kind": "initial", "source": {}}
        channel.send(wire.FrameType.BEGIN, wire.pack_json(begin))
        client.expect(wire.FrameType.BEGUN)
        stopped = ProcessSuite().receivers(directory)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        grow_impatient()

        def listen() -> None:
            with pytest.raises(P2vError):
                channel.receive()

        listener = threading.Thread(target=listen)
        listener.start()
        with pytest.raises(PeerLost, match="silent"):
            send_forever(channel)
        listener.join(10)
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)


def send_forever(channel: ports.Channel) -> None:
    data = bytes(wire.MAX_BODY)
    while True:
        channel.send(wire.FrameType.VERIFY, wire.Verify(0, 0, 1).pack(), data)
