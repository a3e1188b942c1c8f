"""The direct data path of ssh targets: a real sshd, real ports, and what may stand between.

Address translation is played by relays on another loopback address: ssh is reached there, and the
receiver, which binds the address that sshd knows, is not, unless a relay for it is there too.
"""

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_receiver import auth, listen
from p2v_receiver.listen import DIRECT_PORTS, open_direct
from p2v_receiver.serve import Server
from p2v_sync.engine import ports
from p2v_sync.errors import AuthFailed, ConfigError, ConnectFailed, ProtocolError
from p2v_sync.transport import direct
from p2v_sync.transport.address import SshTarget
from p2v_sync.transport.channel import StreamChannel
from p2v_sync.transport.direct import DataPath, open_streams
from p2v_sync.transport.ssh import SshDialer, SshOptions
from p2v_sync.units import MIB
from tests.contract.channel_suite import Client, ProcessSuite, wait_until
from tests.integration.cli import Lab, assert_equal, stop_when
from tests.integration.sshd import Sshd, needs_sshd, public_half, running_sshd
from tests.integration.test_tcp import Proxy, hung_up

HERE = "127.0.0.1"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    with running_sshd(tmp_path / "sshd", monkeypatch) as server:
        yield server


class FarHost:
    """The same sshd at an address that its host does not know."""

    def __init__(self, sshd: Sshd) -> None:
        # Of this process alone: other tests may run at the same time.
        number = os.getpid() % 60000
        self.address = f"127.77.{1 + number // 250}.{1 + number % 250}"
        self.ssh = Proxy(sshd.port, door=(self.address, 0))
        self.port = self.ssh.target.port
        kind, key, *_ = public_half(sshd.host_key).split()
        with sshd.known_hosts.open("a") as file:
            file.write(f"[{self.address}]:{self.port} {kind} {key}\n")
        self.relays: list[Proxy] = []

    def forward(self) -> None:
        """The direct ports too."""
        self.relays = [Proxy(port, door=(self.address, port)) for port in DIRECT_PORTS]

    def close_ports(self) -> None:
        for relay in self.relays:
            relay.close()
        self.relays.clear()

    def url(self, directory: Path) -> str:
        return f"ssh://root@{self.address}:{self.port}{directory}"

    def target(self, directory: Path) -> SshTarget:
        return SshTarget("root", self.address, self.port, str(directory))


@pytest.fixture
def far(sshd: Sshd) -> Iterator[FarHost]:
    host = FarHost(sshd)
    yield host
    host.close_ports()
    host.ssh.close()


@contextlib.contextmanager
def black_holes(address: str) -> Iterator[None]:
    """Ports that answer to no SYN: their queue is full, and nobody accepts."""
    with contextlib.ExitStack() as stack:
        for port in DIRECT_PORTS:
            door = stack.enter_context(socket.socket())
            door.bind((address, port))
            door.listen(0)
            filler = stack.enter_context(socket.socket())
            filler.connect((address, port))
        yield


def listening(pid: int) -> set[int]:
    """TCP ports on which a process listens."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(fd)))
    rows = [
        row.split()
        for table in ("tcp", "tcp6")
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


def dialled(
    target: SshTarget, data: str, *, sudo: bool = False, streams: int = 2
) -> tuple[StreamChannel, DataPath]:
    """A connection, and the way that was told for it."""
    told: list[DataPath] = []
    options = SshOptions(data=data, streams=streams, sudo=sudo)
    channel = SshDialer(target, options, None, on_path=told.append).dial()
    (path,) = told
    return channel, path


class OverDirect:
    """The direct connection itself, as a channel that one opens sessions with."""

    is_local = False
    max_streams = 1

    def __init__(self, target: SshTarget) -> None:
        self._dialer = SshDialer(target, SshOptions(data="direct", streams=1), None)
        self._controls: list[StreamChannel] = []

    def dial(self) -> StreamChannel:
        self._controls.append(self._dialer.dial())
        (channel,) = self._controls[-1].bulk
        return channel

    def close(self) -> None:
        for control in self._controls:
            control.close()


class TestDirect(ProcessSuite):
    pytestmark = needs_sshd

    @pytest.fixture
    def dialer(self, sshd: Sshd, directory: Path) -> Iterator[ports.Dialer]:
        self.sshd = sshd
        dialer = OverDirect(SshTarget("root", HERE, sshd.port, str(directory)))
        yield dialer
        dialer.close()

    def dialer_source(self, directory: Path) -> str:
        return (
            "from p2v_sync.transport.address import SshTarget\n"
            "from tests.integration.test_direct import OverDirect\n"
            f"target = SshTarget('root', {HERE!r}, {self.sshd.port}, {str(directory)!r})\n"
            "dialer = OverDirect(target)"
        )


class TestTheWholeTool:
    pytestmark = needs_sshd

    def test_auto_is_direct(self, lab: Lab, sshd: Sshd) -> None:
        images = [lab.image(), lab.image("db.img", seed=2)]
        url = f"ssh://root@{HERE}:{sshd.port}{lab.out}"
        done = lab.p2v("sync", *images, url, "--json", "--job", "both", "--streams", "3")
        chosen = done.named("data_path_chosen")
        assert {each["disk"] for each in chosen} == {"web", "db"}
        for each in chosen:
            assert each["path"] == "direct"
            assert each["reason"] is None
            assert re.fullmatch(r"127\.0\.0\.1:\d+", each["address"])
        for image in images:
            assert_equal(image, lab.replica(image.stem, "both"))
        assert "data path: direct, TLS to 127.0.0.1:" in lab.p2v("sync", images[0], url).err
        (chosen_again,) = lab.p2v("verify", "web", "--json").named("data_path_chosen")
        assert chosen_again["path"] == "direct"

    def test_inband_on_request(self, lab: Lab, sshd: Sshd) -> None:
        image = lab.image()
        url = f"ssh://root@{HERE}:{sshd.port}{lab.out}"
        (chosen,) = lab.sync(image, "--data", "inband", target=url).named("data_path_chosen")
        assert (chosen["path"], chosen["address"], chosen["reason"]) == ("inband", None, None)
        assert_equal(image, lab.replica("web"))

    def test_a_refused_port(self, lab: Lab, far: FarHost) -> None:
        image = lab.image()
        done = lab.p2v("sync", image, far.url(lab.out))
        said = rf"web: data path: in-band over ssh: {far.address}:\d+: Connection refused"
        assert re.search(said, done.err)
        assert_equal(image, lab.replica("web"))

    def test_a_black_hole(self, lab: Lab, far: FarHost) -> None:
        image = lab.image()
        with black_holes(far.address):
            done = lab.sync(image, target=far.url(lab.out))
        (chosen,) = done.named("data_path_chosen")
        assert chosen["path"] == "inband"
        assert chosen["reason"].endswith("no answer within 3 s")
        assert chosen["address"] is None
        (started,) = done.named("pass_started")
        assert started["time"] - chosen["time"] < 2
        assert_equal(image, lab.replica("web"))

    def test_direct_or_not_at_all(self, lab: Lab, far: FarHost) -> None:
        image = lab.image(size=MIB)
        to = ("sync", image, far.url(lab.out), "--data", "direct")
        began_s = time.monotonic()
        with black_holes(far.address):
            lab.fails(31, *to, say=r"--data direct: .*no answer within 3 s\n  let TCP ports 7721")
        assert time.monotonic() - began_s < 10
        lab.fails(31, *to, say=r"--data direct: .*Connection refused\n  let TCP ports 7721 to 7736")
        assert list(lab.out.iterdir()) == []

    def test_a_cut_goes_on_directly(self, lab: Lab, far: FarHost) -> None:
        far.forward()
        image = lab.noise(size=16 * MIB)
        running = lab.start("sync", image, far.url(lab.out), "--json", "--rate", "4M")
        stop_when(running, 0.4)
        for relay in far.relays:
            relay.cut()
        done = running.wait()
        assert len(done.named("reconnecting")) == 1
        assert [each["path"] for each in done.named("data_path_chosen")] == ["direct"] * 2
        assert sum(map(len, far.ssh.recorded)) < MIB, "data went through ssh"
        assert_equal(image, lab.replica("noise"))

    def test_a_cut_goes_on_in_band_where_the_port_is_shut(self, lab: Lab, far: FarHost) -> None:
        far.forward()
        image = lab.noise(size=16 * MIB)
        running = lab.start("sync", image, far.url(lab.out), "--json", "--rate", "4M")
        stop_when(running, 0.4)
        far.close_ports()
        done = running.wait()
        assert len(done.named("reconnecting")) == 1
        assert [each["path"] for each in done.named("data_path_chosen")] == ["direct", "inband"]
        assert_equal(image, lab.replica("noise"))


class TestDialing:
    pytestmark = needs_sshd

    def test_the_port_is_shut_when_all_are_in(self, sshd: Sshd, directory: Path) -> None:
        channel, path = dialled(SshTarget("root", HERE, sshd.port, str(directory)), "auto")
        client = Client(channel)
        client.greet()
        client.open("sda")
        (pid,) = ProcessSuite().receivers(directory)
        wait_until(lambda: not listening(pid), within_s=3)
        assert path.address is not None
        port = int(path.address.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HERE, port), 5)
        channel.close()

    def test_in_band_opens_none(self, sshd: Sshd, directory: Path) -> None:
        target = SshTarget("root", HERE, sshd.port, str(directory))
        channel, path = dialled(target, "inband")
        assert path == DataPath(None)
        assert channel.bulk == ()
        client = Client(channel)
        client.greet()
        client.open("sda")
        (pid,) = ProcessSuite().receivers(directory)
        assert listening(pid) == set()
        channel.close()

    def test_without_what_sshd_says(
        self, tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """sudo takes SSH_CONNECTION out of the environment."""
        sudo = tmp_path / "bin" / "sudo"
        sudo.parent.mkdir()
        sudo.write_text('#!/bin/sh\nshift 2\nexec env -u SSH_CONNECTION "$@"\n')
        sudo.chmod(0o755)
        options = f"SetEnv PATH={sudo.parent}:/usr/local/bin:/usr/bin:/bin\n"
        with running_sshd(tmp_path / "sshd", monkeypatch, options) as server:
            target = SshTarget("root", HERE, server.port, str(directory))
            channel, path = dialled(target, "direct", sudo=True)
        assert path.address is not None
        channel.close()

    def test_something_that_says_nothing_is_there(
        self, far: FarHost, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auth, "TIMEOUT_S", 1.0)
        with contextlib.ExitStack() as stack:
            for port in DIRECT_PORTS:
                stack.enter_context(socket.create_server((far.address, port)))
            channel, path = dialled(far.target(directory), "auto", streams=1)
        assert path.address is None
        assert str(path.reason).endswith("no answer within 1 s")
        Client(channel).greet()
        channel.close()

    def test_a_way_that_leads_through_another_host(self, sshd: Sshd, directory: Path) -> None:
        sshd.config.write_text(
            f"Host inner\n  HostName {HERE}\n  Port {sshd.port}\n  User root\n"
            f"  ProxyJump root@{HERE}:{sshd.port}\n"
        )
        target = SshTarget(None, "inner", None, str(directory))
        channel, path = dialled(target, "auto")
        assert path.address is None
        assert "ProxyJump" in str(path.reason)
        channel.close()
        with pytest.raises(ConfigError, match="ProxyJump") as caught:
            SshDialer(target, SshOptions(data="direct"), None)
        assert "leave --data out" in str(caught.value)

    def test_the_token_is_nowhere_to_be_seen(
        self,
        sshd: Sshd,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        announced: list[str] = []

        def spy(host: str, announcement: str, total: int) -> list[StreamChannel]:
            announced.append(announcement)
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    for name in ("cmdline", "environ"):
                        announced.append(Path("/proc", pid, name).read_text(errors="replace"))
            return open_streams(host, announcement, total)

        monkeypatch.setattr(direct, "open_streams", spy)
        caplog.set_level(logging.DEBUG)
        channel, _ = dialled(SshTarget("root", HERE, sshd.port, str(directory)), "direct")
        channel.close()
        token = announced[0].split()[1]
        assert len(token) == 32
        assert any("import hashlib,sys,zlib" in each for each in announced[1:]), "not the receiver"
        assert not any(token in each for each in announced[1:])
        assert token not in caplog.text


# The receiver's port, without ssh


@pytest.fixture
def server(directory: Path) -> Server:
    return Server(str(directory))


def knock(announcement: str) -> socket.socket:
    sock = socket.create_connection((HERE, int(announcement.split()[0])), 5)
    sock.settimeout(15)
    return sock


def shut(announcement: str) -> bool:
    try:
        knock(announcement).close()
    except ConnectionRefusedError:
        return True
    return False


def test_strangers_keep_nobody_out(server: Server) -> None:
    announcement = open_direct(server, 2, [HERE])
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(knock(announcement)) for _ in range(100)]
        silent[-1].sendall(auth.PREAMBLE)
        with knock(announcement) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert hung_up(browser)
        channels = open_streams(HERE, announcement, 2)
        for channel in channels:
            Client(channel).greet()
            channel.close()
    wait_until(lambda: shut(announcement), within_s=3)


def test_a_wrong_token_is_refused_and_takes_no_place(server: Server) -> None:
    announcement = open_direct(server, 1, [HERE])
    port, token = announcement.split()
    wrong = f"{port} {token[::-1]}"
    for _ in range(3):
        with pytest.raises(AuthFailed, match="does not accept the token"):
            open_streams(HERE, wrong, 1)
    (channel,) = open_streams(HERE, announcement, 1)
    Client(channel).greet()
    channel.close()


def test_the_token_of_one_port_is_worthless_at_another(server: Server) -> None:
    first, second = (open_direct(server, 1, [HERE]) for _ in range(2))
    assert first.split()[0] != second.split()[0]
    with pytest.raises(AuthFailed):
        open_streams(HERE, f"{second.split()[0]} {first.split()[1]}", 1)
    for announcement in (first, second):
        open_streams(HERE, announcement, 1)[0].close()


def test_nobody_comes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "DIRECT_OPEN_S", 0.5)
    announcement = open_direct(server, 1, [HERE])
    with knock(announcement) as stranger:
        wait_until(lambda: shut(announcement), within_s=5)
        stranger.close()


def test_all_the_usual_ports_are_taken(server: Server) -> None:
    address = f"127.78.0.{1 + os.getpid() % 250}"
    with contextlib.ExitStack() as stack:
        for port in DIRECT_PORTS:
            stack.enter_context(socket.create_server((address, port)))
        announcement = open_direct(server, 1, [address])
        assert int(announcement.split()[0]) not in DIRECT_PORTS
        open_streams(address, announcement, 1)[0].close()


def test_only_the_address_that_ssh_came_through(server: Server) -> None:
    announcement = open_direct(server, 1, ["192.0.2.77", HERE])  # the first one is nobody's
    other = f"127.79.0.{1 + os.getpid() % 250}"
    with pytest.raises(ConnectFailed, match="refused"):
        open_streams(other, announcement, 1)
    open_streams(HERE, announcement, 1)[0].close()


def test_no_address_of_this_host(server: Server) -> None:
    announcement = open_direct(server, 1, ["192.0.2.77"])
    assert announcement.startswith("- ")
    with pytest.raises(ConnectFailed, match="can't open a port: Cannot assign"):
        open_streams(HERE, announcement, 1)


def test_ipv6(server: Server) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("needs IPv6 on loopback")
    announcement = open_direct(server, 1, ["::1"])
    assert direct.address_of("::1", announcement).startswith("[::1]:")
    open_streams("::1", announcement, 1)[0].close()


@pytest.mark.parametrize("said", ["", "7721", "70000000 " + "a" * 32, "7721 token", "\x1b[2J"])
def test_a_receiver_that_announces_nonsense(said: str) -> None:
    with pytest.raises(ProtocolError):
        open_streams(HERE, said, 1)
