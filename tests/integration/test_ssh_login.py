"""Logging in with keyboard-interactive, which OpenSSH's sshd only offers together with PAM."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL
from paramiko.server import InteractiveQuery

from p2v_sync.errors import AuthFailed, ConnectFailed
from p2v_sync.transport.ask import Secrets
from p2v_sync.transport.ssh import Hop, Login
from tests.integration.sshd import make_key

HOP = Hop("host", 22, "ann", "host", (), True, (), None)


class Server(paramiko.ServerInterface):
    """Asks ``questions`` and wants ``answers``."""

    def __init__(self, questions: list[tuple[str, bool]], answers: list[str]) -> None:
        self._questions = questions
        self._answers = answers

    def get_allowed_auths(self, username: str) -> str:
        del username
        return "keyboard-interactive"

    def check_auth_interactive(self, username: str, submethods: str) -> int | InteractiveQuery:
        del username, submethods
        return InteractiveQuery("", "", *self._questions)

    def check_auth_interactive_response(self, responses: list[str]) -> int | InteractiveQuery:
        right = responses == self._answers
        return AUTH_SUCCESSFUL if right else AUTH_FAILED


class Vanishing(Server):
    """Hangs up at a question of the protocol, as a link does that breaks just then."""

    def __init__(self, pair: "Pair", at: str) -> None:
        super().__init__([("Password: ", False)], ["swordfish"])
        self._pair = pair
        self._at = at

    def get_allowed_auths(self, username: str) -> str:
        self._vanish("methods")
        return super().get_allowed_auths(username)

    def check_auth_interactive_response(self, responses: list[str]) -> int | InteractiveQuery:
        self._vanish("answer")
        return super().check_auth_interactive_response(responses)

    def _vanish(self, at: str) -> None:
        if at == self._at:
            self._pair.cut()


class Person:
    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def secret(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self._answers.pop(0)

    def confirm(self, question: str) -> bool:
        raise AssertionError(question)


class Pair:
    """A client's transport, connected to a server in this process."""

    def __init__(self, key: Path) -> None:
        self._sockets = socket.socketpair()
        self.client = paramiko.Transport(self._sockets[0])
        self.server = paramiko.Transport(self._sockets[1])
        self.server.add_server_key(paramiko.PKey.from_path(key))

    def start(self, server: Server) -> paramiko.Transport:
        self.server.start_server(server=server, event=threading.Event())
        self.client.start_client(timeout=10)
        return self.client

    def cut(self) -> None:
        self._sockets[1].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for transport in (self.client, self.server):
            transport.close()
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    pair = Pair(make_key(tmp_path / "host"))
    yield pair
    pair.close()


def test_one_hidden_question_is_the_password(pair: Pair) -> None:
    transport = pair.start(Server([("Password: ", False)], ["swordfish"]))
    person, secrets = Person("wrong", "swordfish"), Secrets()
    Login(transport, HOP, person, secrets).run()
    assert transport.is_authenticated()
    assert person.asked == ["Password of ann@host"] * 2
    assert list(secrets.candidates("Password of ann@host", None)) == ["swordfish"]


def test_further_questions_are_asked(pair: Pair) -> None:
    questions = [("Password: ", False), ("Code from your phone: ", True)]
    transport = pair.start(Server(questions, ["swordfish", "123456"]))
    person = Person("swordfish", "123456")
    Login(transport, HOP, person, Secrets()).run()
    assert transport.is_authenticated()
    assert person.asked[1] == "Code from your phone: "


def test_what_was_typed_does_for_a_reconnect_without_a_terminal(pair: Pair) -> None:
    transport = pair.start(Server([("Password: ", False)], ["swordfish"]))
    secrets = Secrets()
    secrets.remember("Password of ann@host", "swordfish")
    Login(transport, HOP, None, secrets).run()
    assert transport.is_authenticated()


def test_nobody_to_ask(pair: Pair) -> None:
    transport = pair.start(Server([("Password: ", False)], ["swordfish"]))
    with pytest.raises(AuthFailed, match="no terminal") as caught:
        Login(transport, HOP, None, Secrets()).run()
    assert "keyboard-interactive" in str(caught.value)


def test_a_link_that_breaks_is_no_refusal(pair: Pair) -> None:
    transport = pair.start(Server([], []))
    pair.server.close()
    with pytest.raises(ConnectFailed):
        Login(transport, HOP, None, Secrets()).run()


@pytest.mark.parametrize("at", ["methods", "answer"])
def test_a_link_that_breaks_in_the_middle_is_no_refusal_either(pair: Pair, at: str) -> None:
    """A run that reconnects just then must try again, not ask the operator for a key."""
    transport = pair.start(Vanishing(pair, at))
    with pytest.raises(ConnectFailed, match="the link broke"):
        Login(transport, HOP, Person("swordfish"), Secrets()).run()
