"""ssh, with paramiko: ~/.ssh/config, host keys, logging in, and a receiver behind one command.

Each connection is an ssh connection of its own: when one falls silent it can be cut without
touching those of other disks, and each has its own process to encrypt for it on the host.  Bulk
data goes beside it where that is possible (direct.py), else through it.
"""

import contextlib
import getpass
import glob
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
from paramiko.pkey import UnknownKeyType

from p2v_receiver.wire import Buffer
from p2v_sync.errors import (
    AuthFailed,
    ConfigError,
    ConnectFailed,
    HostKeyUnknown,
    P2vError,
    ProtocolError,
)
from p2v_sync.run import Tail
from p2v_sync.transport import bootstrap, direct
from p2v_sync.transport.address import SshTarget, bracketed, parse_jump
from p2v_sync.transport.ask import TYPED, Ask, Secrets
from p2v_sync.transport.bootstrap import Silence
from p2v_sync.transport.channel import StreamChannel
from p2v_sync.transport.direct import DataPath, Trust
from p2v_sync.transport.known_hosts import KnownHosts, Verdict, append, file_name_of
from p2v_sync.transport.tcp import Socket, connect, connect_through

log = logging.getLogger(__name__)

_NEGOTIATE_WITHIN_S = 20.0
_JUMPS_MOST = 8
_INCLUDES_MOST = 16
_WINDOW = 8 * 1024 * 1024
# paramiko negotiates new keys each 512 MiB, for which everything stands still; OpenSSH does it
# after 64 GiB of AES (RFC 4344, section 3.2), which this stays well below.
_REKEY_BYTES = 16 * 1024**3
_FIRST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr")
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_GLOBAL_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_STDERR_END_S = 1.0
_PROXY_END_S = 2.0
_SETTLE_S = 0.2
_BEHIND = "is reached through another one (ProxyJump or ProxyCommand), not directly"


@dataclass(frozen=True)
class SshOptions:
    """What the command line says; it goes before ~/.ssh/config."""

    identity_file: Path | None = None
    sudo: bool = False
    data: str = "auto"  # or "direct", "inband"
    streams: int = 2  # of the direct data path


@dataclass(frozen=True)
class Hop:
    """One ssh server on the way, with all that is configured about it."""

    host: str
    port: int
    user: str
    key_name: str  # in known_hosts
    identity_files: tuple[Path, ...]
    identities_only: bool
    known_hosts: tuple[Path, ...]  # the first is the one that is added to
    proxy_command: str | None

    def __str__(self) -> str:
        port = f":{self.port}" if self.port != 22 else ""
        return f"{self.user}@{bracketed(self.host)}{port}"


class SshDialer:
    """Receivers started over ssh, one a connection.  Satisfies ``Dialer``.

    What ``ask`` was told is remembered in ``secrets``, for reconnects and other disks.
    """

    is_local = False
    max_streams = 1

    def __init__(
        self,
        target: SshTarget,
        options: SshOptions,
        ask: Ask | None,
        secrets: Secrets = TYPED,
        on_path: Callable[[DataPath], None] = lambda _: None,
    ) -> None:
        """``on_path`` is told the way of each session's data.  Raises ConfigError."""
        self._target = target
        self._options = options
        self._ask = ask
        self._secrets = secrets
        self._on_path = on_path
        self._trust = Trust()
        self._route = find_route(target, options)
        self._is_direct = not (self._route[1:] or self._route[0].proxy_command)
        if options.data == "direct" and not self._is_direct:
            raise ConfigError(
                f"--data direct: {self._route[-1]} {_BEHIND}",
                hint="leave --data out: the data then goes through ssh",
            )

    def dial(self) -> StreamChannel:
        """A new connection, with its direct ones for bulk data where there is a way for them.

        Raises ConnectFailed, HostKeyUnknown, AuthFailed, BootstrapFailed, ProtocolError.
        """
        objection = self._objection()
        wanted = self._options.streams if objection is None else 0
        with self._secrets.lock, contextlib.ExitStack() as on_failure:
            transport = self._connect(on_failure)
            host = _peer_of(transport) if wanted else ""
            command = _Command(str(self._target), transport)
            script = bootstrap.build_bootstrap(
                self._target.directory,
                sudo=self._options.sudo,
                options=["--direct", str(wanted), "--at", host] if wanted else [],
            )
            announcement = command.start(script, announces=bool(wanted))
            link = on_failure.pop_all()
        channel = StreamChannel(_CommandPipe(command, link.close), command.last_words)
        if wanted:
            self._go_direct(channel, host, announcement)
        else:
            self._on_path(DataPath(None, objection or None))
        return channel

    def _objection(self) -> str | None:
        """Why no direct path is tried ("": it was not asked for), or None."""
        if self._options.data == "inband":
            return ""
        if not self._is_direct:
            return f"the host {_BEHIND}"
        return self._trust.objection() if self._options.data == "auto" else None

    def _go_direct(self, channel: StreamChannel, host: str, announcement: str) -> None:
        """Raises ConnectFailed when it may not go in-band instead."""
        try:
            channel.bulk = direct.open_streams(host, announcement, self._options.streams)
        except P2vError as error:
            if self._options.data == "direct":
                channel.close()
                raise direct.refused(error) from error
            self._on_path(DataPath(None, error.message))
        except BaseException:
            channel.close()
            raise
        else:
            self._trust.began()
            self._on_path(DataPath(direct.address_of(host, announcement)))

    def _connect(self, link: contextlib.ExitStack) -> paramiko.Transport:
        """Hop by hop, each through the one before; ``link`` closes them in reverse."""
        before: paramiko.Transport | None = None
        for hop in self._route:
            sock = _reach(hop, before, link)
            link.callback(sock.close)
            before = _negotiate(sock, hop)
            link.callback(before.close)
            check_host_key(before, hop, self._ask)
            Login(before, hop, self._ask, self._secrets).run()
        if before is None:
            raise ConfigError(f"{self._target}: there is no way to it")
        return before

    def close(self) -> None:
        """Nothing is kept between connections but what was typed."""


def _peer_of(transport: paramiko.Transport) -> str:
    """The address of the host.  Not its name: that may lead to another machine the next time."""
    try:
        return str(transport.getpeername()[0])
    except OSError as error:
        raise ConnectFailed(f"the link broke after logging in: {error.strerror}") from error


# ~/.ssh/config


def find_route(target: SshTarget, options: SshOptions) -> list[Hop]:
    """The servers to pass, the target last.  Raises ConfigError."""
    return _Router(options).route(target, 0)


class _Router:
    """Looks hosts up in ~/.ssh/config."""

    def __init__(self, options: SshOptions) -> None:
        self._options = options
        path = Path("~/.ssh/config").expanduser()
        try:
            self._config = paramiko.SSHConfig.from_text("\n".join(_config_lines(path, 0)))
        except paramiko.ConfigParseError as error:
            raise ConfigError(f"{path}: {error}") from error

    def route(self, target: SshTarget, depth: int) -> list[Hop]:
        if depth > _JUMPS_MOST:
            raise ConfigError(f"{target.host}: ProxyJump leads round in circles")
        found = self._lookup(target.host)
        jumps = [jump for jump in found.get("proxyjump", "none").split(",") if jump]
        way: list[Hop] = []
        if jumps != ["none"]:
            # As with ssh -J: only the first of a list is reached by its own configured way.
            way = self.route(parse_jump(jumps[0]), depth + 1)
            way += [self._hop(parse_jump(jump), direct=False) for jump in jumps[1:]]
        return [*way, self._hop(target, direct=not way)]

    def _lookup(self, host: str) -> dict[str, Any]:
        """Strings by lower-case keyword; IdentityFile is a list of them."""
        try:
            return dict(self._config.lookup(host))
        except (paramiko.SSHException, ImportError, KeyError, ValueError) as error:
            raise ConfigError(f"~/.ssh/config, host {host}: {error}") from error

    def _hop(self, target: SshTarget, *, direct: bool) -> Hop:
        found = self._lookup(target.host)
        host = found["hostname"]
        port = target.port or _port_number(found)
        is_target = bool(target.directory)
        identity = self._options.identity_file if is_target else None
        return Hop(
            host=host,
            port=port,
            user=target.user or found.get("user") or getpass.getuser(),
            key_name=file_name_of(found.get("hostkeyalias", host), port),
            identity_files=(identity,) if identity else _identity_files(found),
            identities_only=bool(identity) or found.get("identitiesonly", "no").lower() == "yes",
            known_hosts=_known_hosts_files(found),
            proxy_command=found.get("proxycommand") if direct else None,
        )


def _config_lines(path: Path, depth: int) -> Iterator[str]:
    """A config file with its Includes in place (paramiko knows none).  Missing ones are empty."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        keyword, _, value = line.strip().replace("=", " ", 1).partition(" ")
        if keyword.lower() == "include" and depth < _INCLUDES_MOST:
            for pattern in value.replace('"', "").split():
                whole = Path("~/.ssh").expanduser() / Path(pattern).expanduser()
                for name in sorted(glob.glob(str(whole))):
                    yield from _config_lines(Path(name), depth + 1)
        else:
            yield line


def _port_number(found: dict[str, Any]) -> int:
    text = str(found.get("port", "22"))
    if not text.isdigit():
        raise ConfigError(f"~/.ssh/config: Port {text} is not a number")
    return int(text)


def _identity_files(found: dict[str, Any]) -> tuple[Path, ...]:
    configured = found.get("identityfile")
    if configured is None:
        configured = [f"~/.ssh/{name}" for name in _DEFAULT_KEYS]
    return tuple(Path(name).expanduser() for name in configured if name != "none")


def _known_hosts_files(found: dict[str, Any]) -> tuple[Path, ...]:
    configured = found.get("userknownhostsfile", "~/.ssh/known_hosts").split()
    own = [Path(name.strip('"')).expanduser() for name in configured if name != "none"]
    return (*own, _GLOBAL_KNOWN_HOSTS)


# Connecting


def _reach(
    hop: Hop, before: paramiko.Transport | None, link: contextlib.ExitStack
) -> Socket | paramiko.Channel:
    """Something to speak ssh over.  Raises ConnectFailed."""
    if before is not None:
        try:
            return before.open_channel(
                "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=_NEGOTIATE_WITHIN_S
            )
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ConnectFailed(
                f"{hop} can't be reached through the host before it: {error}",
                hint="does that host allow TCP forwarding, and know the name?",
            ) from error
    if hop.proxy_command:
        sock, process = connect_through(hop.proxy_command)
        link.callback(process.end, _PROXY_END_S)
        return sock
    return connect(hop.host, hop.port, "is sshd running there")


def _negotiate(sock: Socket | paramiko.Channel, hop: Hop) -> paramiko.Transport:
    # Failures come to us as exceptions; paramiko's own log would show them with a traceback.
    quiet = logging.NOTSET if log.isEnabledFor(logging.DEBUG) else logging.CRITICAL
    logging.getLogger("paramiko").setLevel(quiet)
    transport = paramiko.Transport(sock, default_window_size=_WINDOW)
    try:
        _choose_algorithms(transport, hop)
        transport.start_client(timeout=_NEGOTIATE_WITHIN_S)
        transport.get_remote_server_key()  # raises when the time was up
    except paramiko.ssh_exception.IncompatiblePeer as error:
        transport.close()
        raise ProtocolError(f"{hop}: no common algorithms: {error}") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        transport.close()
        raise ConnectFailed(
            f"{hop}: no ssh connection: {str(error) or 'it hung up'}",
            hint="is that sshd's port?",
        ) from error
    return transport


def _choose_algorithms(transport: paramiko.Transport, hop: Hop) -> None:
    transport.packetizer.REKEY_BYTES = _REKEY_BYTES
    security = transport.get_security_options()
    security.ciphers = _put_first(_FIRST_CIPHERS, security.ciphers)
    # A host has keys of several types and is free in which one it shows: ask for one we know.
    known = KnownHosts(hop.known_hosts).key_types(hop.key_name)
    if "ssh-rsa" in known:  # the name of the key; its signatures have newer ones (RFC 8332)
        known += ["rsa-sha2-512", "rsa-sha2-256"]
    security.key_types = _put_first(known, security.key_types)


def _put_first(wanted: Sequence[str], have: Sequence[str]) -> tuple[str, ...]:
    first = [name for name in wanted if name in have]
    return (*dict.fromkeys(first), *(name for name in have if name not in first))


# Host keys


def check_host_key(transport: paramiko.Transport, hop: Hop, ask: Ask | None) -> None:
    """Raises HostKeyUnknown unless the key is known, or somebody says that it is right."""
    key = transport.get_remote_server_key()
    name, kind, text = hop.key_name, key.get_name(), key.get_base64()
    verdict = KnownHosts(hop.known_hosts).check(name, kind, text)
    if verdict is Verdict.KNOWN:
        return
    shown = f"{kind} {key.fingerprint}"
    if verdict is not Verdict.UNKNOWN:
        raise _changed(hop, verdict, shown)
    if ask is None:
        raise HostKeyUnknown(
            f"the host key of {name} is not known: {shown}",
            hint=f"compare it with the host's own, then add it with: ssh-keyscan -p {hop.port} "
            f"{hop.host} >> {hop.known_hosts[0]}",
        )
    question = f"The host {name} is not known. Its key is {shown}. Is that right, and go on?"
    if not ask.confirm(question):
        raise HostKeyUnknown(f"the host key of {name} was not accepted: {shown}")
    try:
        append(hop.known_hosts[0], name, kind, text)
    except OSError as error:
        log.warning("the host key can't be kept in %s: %s", hop.known_hosts[0], error)


def _changed(hop: Hop, verdict: Verdict, shown: str) -> HostKeyUnknown:
    if verdict is Verdict.REVOKED:
        return HostKeyUnknown(f"THE HOST KEY OF {hop.key_name} IS REVOKED: {shown}")
    return HostKeyUnknown(
        f"THE HOST KEY OF {hop.key_name} HAS CHANGED: it is {shown} now. Somebody may be "
        "intercepting the connection, or the host was installed anew",
        hint=f"only when you know why: ssh-keygen -R '{hop.key_name}', and connect again",
    )


# Logging in


_Attempt = Callable[[], list[str]]


class Login:
    """Tries what there is: agent, key files, password.  As ssh(1) does, in its order."""

    def __init__(
        self, transport: paramiko.Transport, hop: Hop, ask: Ask | None, secrets: Secrets
    ) -> None:
        self._transport = transport
        self._hop = hop
        self._ask = ask
        self._secrets = secrets
        self._allowed = ["publickey", "password", "keyboard-interactive"]
        self._tried: list[str] = []
        self._refused = False  # before that it is the link that broke, not the host that hung up
        self._held: list[paramiko.PKey] = []  # by the agent

    def run(self) -> None:
        """Raises AuthFailed, ConnectFailed."""
        try:
            with _agent_keys() as self._held:
                done = any(self._succeeds(name, attempt) for name, attempt in self._attempts())
        except (paramiko.SSHException, OSError, EOFError) as error:
            if self._refused:
                # sshd hangs up after MaxAuthTries (6).
                raise self._failed(f"the host hung up: {error}") from error
            raise ConnectFailed(f"{self._hop}: the link broke while logging in: {error}") from error
        if not done:
            raise self._failed("")

    def _succeeds(self, name: str, attempt: _Attempt) -> bool:
        try:
            further = attempt()
        except paramiko.BadAuthenticationType as error:
            self._allowed = error.allowed_types
            return False
        except paramiko.AuthenticationException as error:
            if not self._transport.is_active():
                raise
            self._refused = True
            log.debug("%s: %s: %s", self._hop, name, error)
            return False
        if not self._transport.is_authenticated():
            # One factor of several; the host says what may come next.
            self._allowed = further
        return self._transport.is_authenticated()

    def _attempts(self) -> Iterator[tuple[str, _Attempt]]:
        user = self._hop.user
        # Costs no try, and tells which methods the host takes.
        yield "none", lambda: self._transport.auth_none(user)
        for name, key in self._keys():
            if "publickey" not in self._allowed:
                break
            self._tried.append(name)
            yield name, lambda key=key: self._transport.auth_publickey(user, key)  # type: ignore[misc]
        yield from self._passwords()

    def _keys(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """The agent's before files: they cost no passphrase."""
        held = self._held
        wanted = {_public_half(path) for path in self._hop.identity_files}
        preferred = [key for key in held if key.get_base64() in wanted]
        others = [] if self._hop.identities_only else [key for key in held if key not in preferred]
        for key in [*preferred, *others]:
            yield f"the agent's key {key.fingerprint}", key
        for path in self._hop.identity_files:
            if path.exists() and "publickey" in self._allowed:
                loaded = self._load(path)
                if loaded is not None and loaded not in preferred:
                    yield f"key file {path}", loaded

    def _load(self, path: Path) -> paramiko.PKey | None:
        try:
            return paramiko.PKey.from_path(path)
        except (TypeError, paramiko.PasswordRequiredException):
            return self._load_encrypted(path)
        except (paramiko.SSHException, UnknownKeyType, OSError, ValueError) as error:
            self._tried.append(f"key file {path} (it can't be used: {error})")
            return None

    def _load_encrypted(self, path: Path) -> paramiko.PKey | None:
        question = f"Passphrase of the key {path}"
        for passphrase in self._secrets.candidates(question, self._ask):
            try:
                key = paramiko.PKey.from_path(path, passphrase.encode())  # type: ignore[arg-type]
            except (TypeError, ValueError, paramiko.SSHException):
                continue
            self._secrets.remember(question, passphrase)
            return key
        self._tried.append(f"key file {path} (no passphrase for it)")
        return None

    def _passwords(self) -> Iterator[tuple[str, _Attempt]]:
        methods = ("password", "keyboard-interactive")
        method = next((method for method in methods if method in self._allowed), None)
        if method is None:
            return
        for password in self._secrets.candidates(f"Password of {self._hop}", self._ask):
            self._tried.append(f"a password ({method})")
            yield method, lambda password=password: self._try(method, password)  # type: ignore[misc]
            if self._transport.is_authenticated():
                return

    def _try(self, method: str, password: str) -> list[str]:
        if method == "password":
            further = self._transport.auth_password(self._hop.user, password, fallback=False)
        else:
            answer = _Answers(password, self._ask)
            further = self._transport.auth_interactive(self._hop.user, answer)
        self._secrets.remember(f"Password of {self._hop}", password)
        return further

    def _failed(self, why: str) -> AuthFailed:
        tried = ", ".join(self._tried) or "nothing, for there is no key, no agent and no terminal"
        return AuthFailed(
            f"{self._hop} did not let us in{': ' if why else ''}{why}; tried: {tried}; the host "
            f"takes: {', '.join(self._allowed)}",
            hint="name a key with --identity, load one into the agent, or run on a terminal to be "
            "asked for the password",
        )


class _Answers:
    """keyboard-interactive: the first hidden question is the password's."""

    def __init__(self, password: str, ask: Ask | None) -> None:
        self._password: str | None = password
        self._ask = ask

    def __call__(self, title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        del title, instructions
        return [self._answer(prompt, shown) for prompt, shown in prompts]

    def _answer(self, prompt: str, shown: bool) -> str:
        # Runs in paramiko's thread: an exception would end the connection.
        if self._password is not None and not shown:
            answer, self._password = self._password, None
            return answer
        return self._ask.secret(prompt) if self._ask is not None else ""


@contextlib.contextmanager
def _agent_keys() -> Iterator[list[paramiko.PKey]]:
    """They sign through the agent's socket, so only inside."""
    with contextlib.ExitStack() as stack:
        keys: list[paramiko.PKey] = []
        try:
            agent = paramiko.Agent()
            stack.callback(agent.close)
            keys = list(agent.get_keys())
        except (paramiko.SSHException, OSError) as error:
            log.debug("the ssh agent can't be used: %s", error)
        yield keys


def _public_half(path: Path) -> str | None:
    try:
        words = path.with_name(f"{path.name}.pub").read_text().split()
    except (OSError, UnicodeDecodeError):
        return None
    return words[1] if len(words) > 1 else None


# The receiver's command


class _Command:
    """A remote command: its start, and what it leaves behind when it dies."""

    def __init__(self, name: str, transport: paramiko.Transport) -> None:
        self._name = name
        self._transport = transport
        self._errors = Tail(name)
        self._late = threading.Event()
        self.leftover = b""
        self.channel = self._open()
        stream = self.channel.makefile_stderr("rb")
        self._reader = threading.Thread(
            target=self._errors.follow, args=(stream,), name="ssh stderr", daemon=True
        )
        self._reader.start()

    def _open(self) -> paramiko.Channel:
        try:
            return self._transport.open_session(timeout=_NEGOTIATE_WITHIN_S)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ConnectFailed(f"{self._name}: no ssh session: {error}") from error

    def start(self, script: bootstrap.Bootstrap, *, announces: bool) -> str:
        """Until the receiver is ready for frames.  Raises BootstrapFailed, ConnectFailed.

        Returns the line in which it announces a port, where it was told to open one.
        """
        watchdog = threading.Timer(bootstrap.ANSWER_WITHIN_S, self._give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            self.channel.exec_command(script.command)
            self._skip_to(script.send_mark)
            self.channel.sendall(script.bundle)
            self._skip_to(script.ready_mark)
            return self._wait_for(b"\n").decode(errors="replace") if announces else ""
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._failed(str(error)) from error
        finally:
            watchdog.cancel()

    def _give_up(self) -> None:
        self._late.set()
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            self.channel.close()

    def _skip_to(self, mark: bytes) -> None:
        noise = self._wait_for(mark)
        if noise:
            log.debug("%s: skipped %d bytes of the login shell", self._name, len(noise))

    def _wait_for(self, mark: bytes) -> bytes:
        """What comes before ``mark``; what comes after it is kept."""
        heard = self.leftover
        while mark not in heard:
            piece = self.channel.recv(32768) if len(heard) < bootstrap.NOISE_MOST else b""
            if not piece:
                raise self._failed(heard.decode(errors="replace"))
            heard += piece
        before, _, self.leftover = heard.partition(mark)
        return before

    def _failed(self, output: str) -> P2vError:
        if not self._has_link():
            return ConnectFailed(f"{self._name}: the link broke while the receiver was started")
        ended = not self._late.is_set() and self.channel.status_event.wait(_STDERR_END_S)
        if ended:
            self._reader.join(_STDERR_END_S)
        status = self.channel.exit_status if ended else None
        return bootstrap.explain(self._name, Silence(status, output, self._errors.text))

    def _has_link(self) -> bool:
        # paramiko wakes the readers of a dead link a moment before it calls it dead.
        self._transport.join(_SETTLE_S)
        return self._transport.is_active()

    def last_words(self) -> str:
        """What it wrote before it died, if it did."""
        channel = self.channel
        if not (self._has_link() and channel.status_event.wait(_STDERR_END_S)):
            return ""
        self._reader.join(_STDERR_END_S)
        return self._errors.text if channel.exit_status else ""


class _CommandPipe:
    """A pipe over a command's standard input and output."""

    def __init__(self, command: _Command, close: Callable[[], None]) -> None:
        self._channel = command.channel
        self._leftover = memoryview(command.leftover)
        self._close = close

    def recv_into(self, view: memoryview) -> int:
        if not len(self._leftover):
            self._leftover = memoryview(self._channel.recv(len(view)))
        count = min(len(view), len(self._leftover))
        view[:count] = self._leftover[:count]
        self._leftover = self._leftover[count:]
        return count

    def sendall(self, data: Buffer) -> None:
        view = memoryview(data)
        while len(view):
            try:
                count = self._channel.send(view)  # type: ignore[arg-type]
            except paramiko.SSHException as error:
                raise OSError(None, str(error)) from error
            if not count:
                raise BrokenPipeError(None, "the ssh channel was closed")
            view = view[count:]

    def close(self) -> None:
        self._close()
