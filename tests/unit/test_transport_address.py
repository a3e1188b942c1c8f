"""What a TARGET means."""

import pytest

from p2v_receiver.auth import DEFAULT_PORT
from p2v_sync.errors import ConfigError
from p2v_sync.transport.address import (
    LocalTarget,
    SshTarget,
    Target,
    TcpTarget,
    parse_jump,
    parse_target,
)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("/srv/images", LocalTarget("/srv/images")),
        ("./images", LocalTarget("./images")),
        ("images", LocalTarget("images")),
        ("/srv/a:b", LocalTarget("/srv/a:b")),
        ("./a:b", LocalTarget("./a:b")),
        ("a/b://c", LocalTarget("a/b://c")),
        ("host:/srv", SshTarget(None, "host", None, "/srv")),
        ("ann@host:/srv", SshTarget("ann", "host", None, "/srv")),
        ("ann@host.example:images", SshTarget("ann", "host.example", None, "images")),
        ("host:~/images", SshTarget(None, "host", None, "~/images")),
        ("host:/with space/and:colon", SshTarget(None, "host", None, "/with space/and:colon")),
        ("ann@[fe80::1%eth0]:/srv", SshTarget("ann", "fe80::1%eth0", None, "/srv")),
        ("[::1]:/srv", SshTarget(None, "::1", None, "/srv")),
        ("host:./a:b", SshTarget(None, "host", None, "./a:b")),
        ("ssh://host/srv", SshTarget(None, "host", None, "/srv")),
        ("ssh://ann@host:2222/srv/x", SshTarget("ann", "host", 2222, "/srv/x")),
        ("SSH://ann@[2001:db8::1]:22/srv", SshTarget("ann", "2001:db8::1", 22, "/srv")),
        ("ssh://host/~/images", SshTarget(None, "host", None, "~/images")),
        ("tcp://host", TcpTarget("host", DEFAULT_PORT)),
        ("tcp://host:9000", TcpTarget("host", 9000)),
        ("tcp://host:9000/", TcpTarget("host", 9000)),
        ("tcp://[::1]:9000", TcpTarget("::1", 9000)),
        ("tcp://[::1]", TcpTarget("::1", DEFAULT_PORT)),
    ],
)
def test_good_forms(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("host:", "no directory is named"),
        ("host:/", "can't be the directory"),
        ("ssh://host", "no directory is named"),
        ("ssh://host:22", "no directory is named"),
        ("host:2222", "a port or a directory"),
        ("host:2222/srv", "a port or a directory"),
        ("ssh://host:0/srv", "0 is not a port"),
        ("ssh://host:99999/srv", "99999 is not a port"),
        ("ssh://host:port/srv", "not understood"),
        ("ssh:///srv", "not understood"),
        ("ssh://ann@/srv", "not understood"),
        ("-oProxyCommand=id:/srv", "starts with a dash"),
        ("ssh://-oProxyCommand=id/srv", "starts with a dash"),
        (":/srv", "not understood"),
        ("@host:/srv", "not understood"),
        ("2001:db8::1:/srv", "several colons"),
        ("[::1", "not understood"),
        ("[::1]/srv", "not understood"),
        ("tcp://host:9000/srv", "the receiver chooses the directory"),
        ("tcp://ann@host:9000", "no users"),
        ("tcp://host:x", "not understood"),
        ("tcp://", "not understood"),
        ("tcp://host:70000", "70000 is not a port"),
        ("http://host/srv", "no transport called 'http'"),
        ("a\0b", "empty"),
    ],
)
def test_wrong_forms(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_target(text)


def test_the_remedy_for_a_directory_on_raw_tcp() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_target("tcp://host:9000/srv")
    assert "p2v-receiver listen --dir /srv" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("gate", SshTarget(None, "gate", None, "")),
        ("ann@gate:2222", SshTarget("ann", "gate", 2222, "")),
        ("ssh://ann@[::1]:2222", SshTarget("ann", "::1", 2222, "")),
    ],
)
def test_jumps(text: str, target: SshTarget) -> None:
    assert parse_jump(text) == target


@pytest.mark.parametrize("text", ["", "a b", "gate:x", "gate:22/srv"])
def test_wrong_jumps(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_jump(text)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (LocalTarget("/srv"), "/srv"),
        (SshTarget("ann", "host", 22, "/srv"), "ann@host:/srv"),
        (SshTarget(None, "::1", None, "/srv"), "[::1]:/srv"),
        (TcpTarget("::1", 9000), "tcp://[::1]:9000"),
    ],
)
def test_as_text(target: Target, text: str) -> None:
    assert str(target) == text
