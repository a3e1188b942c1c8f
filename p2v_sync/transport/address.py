"""What a TARGET on the command line means.  Pure: nothing is looked up."""

import re
from dataclasses import dataclass

from p2v_receiver.auth import DEFAULT_PORT
from p2v_sync.errors import ConfigError

_FORMS = "write it as /dir, user@host:/dir, ssh://user@host:port/dir or tcp://host:port"

# [v6] or a name without colons; the rest of each form is taken apart around it.
_HOST = r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<name>[^\s:/@\[\]]+))"
_USER = r"(?:(?P<user>[^\s:/@]+)@)?"
_SCP = re.compile(rf"{_USER}{_HOST}:(?P<rest>.*)", re.DOTALL)
_SSH_URL = re.compile(rf"{_USER}{_HOST}(?::(?P<port>\d+))?(?P<rest>/.*)?", re.DOTALL)
_TCP_URL = re.compile(rf"{_HOST}(?::(?P<port>\d+))?(?P<rest>/.*)?", re.DOTALL)


@dataclass(frozen=True)
class LocalTarget:
    """A directory of this machine."""

    directory: str

    def __str__(self) -> str:
        return self.directory


@dataclass(frozen=True)
class SshTarget:
    """A directory of a host; a relative one starts at the login's home."""

    user: str | None
    host: str
    port: int | None
    directory: str

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{user}{bracketed(self.host)}:{self.directory}"


@dataclass(frozen=True)
class TcpTarget:
    """A ``p2v-receiver listen``; the directory is the receiver's choice."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{bracketed(self.host)}:{self.port}"


Target = LocalTarget | SshTarget | TcpTarget


def bracketed(host: str) -> str:
    """``host`` as it stands before a colon."""
    return f"[{host}]" if ":" in host else host


def parse_target(text: str) -> Target:
    """TARGET as typed → what it means.  Raises ConfigError."""
    if not text or "\0" in text:
        raise ConfigError("the target is empty", hint=_FORMS)
    scheme, separator, rest = text.partition("://")
    if separator and "/" not in scheme:
        return _parse_url(scheme.lower(), rest, text)
    # As with scp and rsync, a colon before the first slash makes it another host's.
    if ":" in text.partition("/")[0] or text.startswith("["):
        return _parse_scp(text)
    return LocalTarget(text)


def parse_jump(text: str) -> SshTarget:
    """One hop of a ProxyJump: ``[user@]host[:port]`` or ``ssh://…``.  Raises ConfigError."""
    match = _SSH_URL.fullmatch(text.strip().removeprefix("ssh://"))
    if match is None or (match["rest"] or "/") != "/":
        raise ConfigError(f"ProxyJump {text!r} is not understood", hint="write user@host:port")
    return SshTarget(match["user"], _host(match), _port(match, text), "")


def _parse_url(scheme: str, rest: str, text: str) -> Target:
    if scheme == "tcp":
        return _parse_tcp(rest, text)
    if scheme == "ssh":
        return _parse_ssh(rest, text)
    raise ConfigError(f"{text!r}: there is no transport called {scheme!r}", hint=_FORMS)


def _parse_tcp(rest: str, text: str) -> TcpTarget:
    if "@" in rest:
        raise ConfigError(f"{text!r}: there are no users on raw TCP", hint="write tcp://host:port")
    match = _TCP_URL.fullmatch(rest)
    if match is None:
        raise ConfigError(f"{text!r} is not understood", hint="write tcp://host:port")
    if (match["rest"] or "/") != "/":
        raise ConfigError(
            f"{text!r}: on raw TCP the receiver chooses the directory",
            hint="write tcp://host:port here, and the directory at the host: "
            f"p2v-receiver listen --dir {match['rest']}",
        )
    return TcpTarget(_host(match), _port(match, text) or DEFAULT_PORT)


def _parse_ssh(rest: str, text: str) -> SshTarget:
    match = _SSH_URL.fullmatch(rest)
    if match is None:
        raise ConfigError(f"{text!r} is not understood", hint="write ssh://user@host:port/dir")
    directory = match["rest"] or ""
    # ssh://host/~/images is the home directory's, as with git.
    directory = directory[1:] if directory.startswith("/~") else directory
    return _ssh_target(match, _port(match, text), directory, text)


def _parse_scp(text: str) -> SshTarget:
    match = _SCP.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not understood", hint=_FORMS)
    directory = match["rest"]
    if ":" in directory.partition("/")[0]:
        raise ConfigError(
            f"{text!r} is not understood: there are several colons",
            hint="write an IPv6 address in brackets: user@[2001:db8::1]:/dir",
        )
    if re.fullmatch(r"\d+(/.*)?", directory):
        raise ConfigError(
            f"{text!r}: is {directory.partition('/')[0]} a port or a directory?",
            hint="write ssh://user@host:port/dir for a port, host:./dir for a directory",
        )
    return _ssh_target(match, None, directory, text)


def _ssh_target(match: re.Match[str], port: int | None, directory: str, text: str) -> SshTarget:
    if directory in ("", "/"):
        what = "no directory is named" if not directory else "/ can't be the directory for images"
        raise ConfigError(f"{text!r}: {what}", hint=_FORMS)
    if (match["name"] or "").startswith("-") or (match["user"] or "").startswith("-"):
        raise ConfigError(f"{text!r}: no name starts with a dash", hint=_FORMS)
    return SshTarget(match["user"], _host(match), port, directory)


def _host(match: re.Match[str]) -> str:
    return match["v6"] or match["name"]


def _port(match: re.Match[str], text: str) -> int | None:
    if match["port"] is None:
        return None
    port = int(match["port"])
    if not 0 < port < 65536:
        raise ConfigError(f"{text!r}: {port} is not a port (1 to 65535)")
    return port
