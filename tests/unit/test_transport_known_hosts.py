"""known_hosts files."""

import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from p2v_sync.transport.known_hosts import KnownHosts, Verdict, append, file_name_of

KEY, OTHER = "AAAAkey", "AAAAother"
TYPE = "ssh-ed25519"


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ("", Verdict.UNKNOWN),
        (f"host {TYPE} {KEY}", Verdict.KNOWN),
        (f"host {TYPE} {KEY} comment of ann", Verdict.KNOWN),
        (f"  host\t{TYPE}   {KEY}", Verdict.KNOWN),
        (f"other,host,192.0.2.1 {TYPE} {KEY}", Verdict.KNOWN),
        (f"ho* {TYPE} {KEY}", Verdict.KNOWN),
        (f"h?st {TYPE} {KEY}", Verdict.KNOWN),
        (f"HOST {TYPE} {KEY}", Verdict.KNOWN),
        (f"*,!host {TYPE} {KEY}", Verdict.UNKNOWN),
        (f"hosts {TYPE} {KEY}", Verdict.UNKNOWN),
        (f"h.st {TYPE} {KEY}", Verdict.UNKNOWN),
        (f"# host {TYPE} {KEY}", Verdict.UNKNOWN),
        (f"host {TYPE} {OTHER}", Verdict.CHANGED),
        (f"host ssh-rsa {OTHER}", Verdict.CHANGED),
        (f"host {TYPE} {OTHER}\nhost {TYPE} {KEY}", Verdict.KNOWN),
        (f"{hashed('host')} {TYPE} {KEY}", Verdict.KNOWN),
        (f"{hashed('host')} {TYPE} {OTHER}", Verdict.CHANGED),
        (f"{hashed('hosts')} {TYPE} {KEY}", Verdict.UNKNOWN),
        (f"|1|rubbish {TYPE} {KEY}", Verdict.UNKNOWN),
        (f"|1|*|* {TYPE} {KEY}", Verdict.UNKNOWN),
        (f"host {TYPE} {KEY}\n@revoked host {TYPE} {KEY}", Verdict.REVOKED),
        (f"@cert-authority * {TYPE} {OTHER}", Verdict.UNKNOWN),
        (f"host {TYPE}\nrubbish\n@\n\xff\nhost {TYPE} {KEY}", Verdict.KNOWN),
    ],
)
def test_verdicts(lines: str, verdict: Verdict, tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(lines)
    assert KnownHosts([tmp_path / "missing", path]).check("host", TYPE, KEY) is verdict


def test_ports_have_entries_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"[host]:2222 {TYPE} {KEY}\n")
    hosts = KnownHosts([path])
    assert hosts.check(file_name_of("Host", 2222), TYPE, KEY) is Verdict.KNOWN
    assert hosts.check(file_name_of("host", 22), TYPE, KEY) is Verdict.UNKNOWN
    assert hosts.check(file_name_of("host", 22222), TYPE, KEY) is Verdict.UNKNOWN


def test_key_types(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"host ssh-rsa {KEY}\n@revoked host {TYPE} {KEY}\nother {TYPE} {KEY}\n")
    assert KnownHosts([path]).key_types("host") == ["ssh-rsa"]


def test_append_makes_the_directory(tmp_path: Path) -> None:
    path = tmp_path / ".ssh" / "known_hosts"
    append(path, "host", TYPE, KEY)
    assert path.read_text() == f"host {TYPE} {KEY}\n"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_append_minds_a_missing_line_end(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"other {TYPE} {OTHER}")
    append(path, "host", TYPE, KEY)
    assert path.read_text() == f"other {TYPE} {OTHER}\nhost {TYPE} {KEY}\n"
