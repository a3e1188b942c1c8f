"""Where the token of raw TCP comes from, and what is remembered of what was typed."""

from pathlib import Path

import pytest

from p2v_sync.config import Connection
from p2v_sync.errors import ConfigError
from p2v_sync.transport.address import parse_target
from p2v_sync.transport.ask import Secrets
from p2v_sync.transport.dialer import make_dialer
from p2v_sync.transport.local import LocalDialer
from p2v_sync.transport.ssh import SshDialer
from p2v_sync.transport.tcp import TcpDialer, find_token


def never() -> str:
    raise AssertionError("nobody was to be asked")


def test_the_file_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  from-file\n")
    assert find_token(path, {"P2V_TOKEN": "from-variable"}, never) == "from-file"


def test_the_variable_goes_second() -> None:
    assert find_token(None, {"P2V_TOKEN": " from-variable "}, never) == "from-variable"


def test_then_somebody_is_asked() -> None:
    assert find_token(None, {"P2V_TOKEN": ""}, lambda: "typed\n") == "typed"


def test_all_three_ways_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        find_token(None, {}, None)
    for way in ("--token-file", "P2V_TOKEN", "terminal"):
        assert way in str(caught.value)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", b"two\nlines"])
def test_files_that_hold_no_token(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="token"):
        find_token(path, {}, never)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        find_token(tmp_path / "missing", {"P2V_TOKEN": "x"}, never)


def test_what_no_token_can_be() -> None:
    with pytest.raises(ConfigError, match="P2V_TOKEN"):
        find_token(None, {"P2V_TOKEN": "\udcff"}, never)


class Person:
    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.asked = 0

    def secret(self, prompt: str) -> str:
        del prompt
        self.asked += 1
        return self._answers.pop(0)

    def confirm(self, question: str) -> bool:
        raise AssertionError(question)


def test_once_asks_once() -> None:
    secrets, person = Secrets(), Person("one", "two")
    assert [secrets.once("q", person) for _ in range(3)] == ["one"] * 3
    assert secrets.once("another", person) == "two"


def test_candidates_are_the_known_then_three() -> None:
    secrets, person = Secrets(), Person("a", "b", "c", "d")
    secrets.remember("q", "known")
    assert list(secrets.candidates("q", person)) == ["known", "a", "b", "c"]
    assert list(secrets.candidates("q", None)) == ["known"]
    assert list(secrets.candidates("other", None)) == []


@pytest.mark.parametrize(
    ("text", "kind", "streams"),
    [("images", LocalDialer, 4), ("host:/srv", SshDialer, 1), ("tcp://host:1", TcpDialer, 4)],
)
def test_each_target_has_its_dialer(
    text: str, kind: type, streams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("P2V_TOKEN", "token")
    dialer = make_dialer(parse_target(text), Connection(), 4, None)
    assert isinstance(dialer, kind)
    assert dialer.max_streams == streams
    assert dialer.is_local == (kind is LocalDialer)
    dialer.close()
