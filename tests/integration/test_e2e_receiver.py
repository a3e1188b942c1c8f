"""``p2v-receiver listen`` and those who come to its door."""

import contextlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import zipapp
from pathlib import Path

import pytest

from p2v_receiver import wire
from p2v_sync.units import MIB
from tests.conftest import OLDEST_PYTHON
from tests.integration.cli import BIN, Done, Lab, Running, assert_equal, checked, stop_when

RECEIVER = Path(wire.__file__).parents[1]


@pytest.mark.parametrize("how", ["tls", "--plaintext"])
def test_the_first_lines_are_a_token_and_a_command_that_works(lab: Lab, how: str) -> None:
    image = lab.image()
    listener = lab.listen(*([how] if how != "tls" else []))
    first, second = listener.out.splitlines()[:2]
    assert re.fullmatch(r"token: [0-9a-f]{32}", first)
    command = f"P2V_TOKEN={listener.token} p2v-sync sync /dev/sda {listener.url}"
    assert second == command
    path = f"{BIN}:{lab.environ()['PATH']}"
    for words in ("initial pass 1 complete", "sent 0 B"):
        done = subprocess.run(
            ["sh", "-c", command.replace("/dev/sda", str(image))],
            capture_output=True,
            text=True,
            timeout=60,
            env=lab.environ(PATH=path),
            check=False,
        )
        checked(Done(done.returncode, done.stdout, done.stderr), 0)
        assert words in done.stderr
    assert_equal(image, lab.replica("web"))
    lab.p2v("verify", "web", P2V_TOKEN=listener.token)
    assert listener.token not in listener.err


def test_the_token_from_a_file_and_none_or_a_wrong_one(lab: Lab) -> None:
    image, token, listener = lab.image(), lab.root / "token", lab.listen()
    to = ("sync", image, listener.url)
    lab.fails(3, *to, say="asks for its token.*\n.*--token-file FILE.*P2V_TOKEN")
    token.write_text("0" * 32)
    lab.fails(33, *to, "--token-file", token, say="does not accept the token\n  copy the token")
    lab.fails(33, *to, say="does not accept the token", P2V_TOKEN=listener.token[:-1])
    token.write_text("")
    lab.fails(3, *to, "--token-file", token, say="is empty")
    lab.fails(3, *to, "--token-file", lab.root / "none", say="No such file")
    assert list(lab.out.iterdir()) == []
    token.write_text(f"{listener.token}\n")
    lab.sync(image, "--token-file", token, target=listener.url)
    assert listener.err.count("turned away") == 2


def test_the_zipapp_and_the_oldest_python(lab: Lab) -> None:
    app = lab.root / "p2v-receiver.pyz"
    staged = lab.root / "staged"
    shutil.copytree(
        RECEIVER / "p2v_receiver",
        staged / "p2v_receiver",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    zipapp.create_archive(staged, app, main="p2v_receiver.__main__:main")
    image = lab.image()
    listener = lab.listen(argv=(OLDEST_PYTHON, str(app)))
    lab.sync(image, "--verify", "full", target=listener.url, P2V_TOKEN=listener.token)
    assert_equal(image, lab.replica("web"))
    listener.signal(signal.SIGINT)
    listener.wait(130)


def test_once_ends_after_a_job(lab: Lab) -> None:
    image, listener = lab.noise(), lab.listen("--once")
    lab.fails(33, "sync", image, listener.url, say="token", P2V_TOKEN="wrong")
    running = lab.start("sync", image, listener.url, "--rate", "4M", P2V_TOKEN=listener.token)
    running.until_it_says("begins")
    running.kill()
    time.sleep(1)
    assert listener.process.poll() is None, "an interrupted job is not over"
    lab.sync(image, target=listener.url, P2V_TOKEN=listener.token)
    listener.wait()
    assert_equal(image, lab.replica("noise"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_on_the_listener(lab: Lab, number: signal.Signals, code: int) -> None:
    image, listener = lab.noise(), lab.listen()
    running = lab.start(
        "sync", image, listener.url, "--json", "--rate", "4M", P2V_TOKEN=listener.token
    )
    stop_when(running, 0.2)
    listener.signal(number)
    listener.wait(code)
    running.until(lambda: "reconnecting" in running.out)
    running.signal(signal.SIGINT)
    running.wait(130)


def receiver_fails(lab: Lab, *arguments: str | Path, say: str) -> None:
    argv = [str(BIN / "p2v-receiver"), *map(str, arguments)]
    running = Running(argv, lab.root / "receiver", lab.environ())
    running.process.wait(30)
    done = checked(Done(running.process.returncode, running.out, running.err), 1)
    assert len(done.err.splitlines()) == 1, done.err
    assert re.search(say, done.err), done.err


def test_a_listener_that_can_not_start(lab: Lab) -> None:
    listener = lab.listen()
    where = ("listen", "--dir", lab.out, "--bind", "127.0.0.1")
    receiver_fails(lab, *where, "--port", str(listener.port), say="in use")
    receiver_fails(lab, *where, "--port", "99999", say="99999")
    receiver_fails(lab, "listen", "--dir", lab.root / "none", say="there is no such directory")
    receiver_fails(lab, *where, "--port", "0", "--token-file", "/nope/x", say="/nope/x")


def test_browsers_and_scanners(lab: Lab) -> None:
    image, listener = lab.image(), lab.listen()
    at = ("127.0.0.1", listener.port)
    for words in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\0" * 5000, b""):
        with socket.create_connection(at, 10) as visitor:
            visitor.sendall(words)
            visitor.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert visitor.recv(100) in (b"", b"p2v-sync-1\r\n\x01")
    context = ssl.create_default_context()
    with pytest.raises(OSError), socket.create_connection(at, 10) as visitor:  # noqa: PT011
        context.wrap_socket(visitor, server_hostname="localhost")
    silent = [socket.create_connection(at, 10) for _ in range(100)]
    lab.sync(image, target=listener.url, P2V_TOKEN=listener.token)
    for each in silent:
        each.close()
    assert listener.process.poll() is None
    assert "Traceback" not in listener.err
    assert_equal(image, lab.replica("web"))


def test_something_else_listens_there(lab: Lab) -> None:
    """A web server, and one that never says a word."""
    image = lab.image(size=MIB)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        running = lab.start("sync", image, url, P2V_TOKEN="x" * 32)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            running.process.wait(60)
        assert running.process.returncode in (31, 32, 33, 35), running.err
        assert "Traceback" not in running.err
        assert "p2v-receiver" in running.err


def test_nobody_listens_there(lab: Lab) -> None:
    image = lab.image(size=MIB)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    url = f"tcp://127.0.0.1:{port}"
    lab.fails(31, "sync", image, url, say="is p2v-receiver listen running", P2V_TOKEN="x" * 32)
    assert time.monotonic() - began < 20, "what was never reached is not tried again"


def test_a_receiver_of_another_version(lab: Lab) -> None:
    image = lab.image(size=MIB)
    copy = lab.root / "copy"
    shutil.copytree(RECEIVER / "p2v_receiver", copy / "p2v_receiver")
    source = copy / "p2v_receiver" / "wire.py"
    text, count = re.subn(r"(?m)^VERSION = \d+", "VERSION = 99", source.read_text())

    assert count == 1
    source.write_text(text)
    start = f"import sys; sys.path.insert(0, {str(copy)!r}); from p2v_receiver.__main__ import main"
    listener = lab.listen(argv=(sys.executable, "-P", "-c", f"{start}; sys.exit(main())"))
    done = lab.fails(36, "sync", image, listener.url, say="version", P2V_TOKEN=listener.token)
    assert "same version" in done.err
    assert list(lab.out.iterdir()) == []


def test_source_is_target_over_loopback(lab: Lab) -> None:
    image, listener = lab.image(size=MIB), lab.listen()
    token = {"P2V_TOKEN": listener.token}
    lab.sync(image, target=listener.url, P2V_TOKEN=listener.token)
    before = lab.replica("web").read_bytes()
    to = ("sync", lab.replica("web"), listener.url, "--job", "web")
    lab.fails(5, *to, "--state", lab.root / "other", say="is the source itself", **token)
    assert lab.replica("web").read_bytes() == before


def test_p10_names_that_lead_elsewhere_never_reach_the_receiver(lab: Lab) -> None:
    image, listener = lab.image(size=MIB), lab.listen()
    token = {"P2V_TOKEN": listener.token}
    to = ("sync", image, listener.url)
    lab.fails(3, *to, "--job", "../../etc", say="can't be the name", **token)
    assert "opened" not in listener.err
