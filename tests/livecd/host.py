"""The host of the virtual machines to be: a receiver, and a web server with a preseed."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-thirty-two-characters"
AS_SEEN = "10.0.2.2"  # the loopback, from QEMU's user network


class Relay:
    """Passes connections on to a port of the loopback, and counts what goes there."""

    def __init__(self, to: int) -> None:
        self.sent = 0  # bytes
        self._to = to
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        # Alone, close() does not end an accept() in another thread.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        to = ("127.0.0.1", self._to)
        with near, contextlib.suppress(OSError), socket.create_connection(to) as far:
            back = threading.Thread(target=_pass_on, args=(far, near), daemon=True)
            back.start()
            for length in _passed_on(near, far):
                with self._lock:
                    self.sent += length
            back.join()


def _passed_on(source: socket.socket, sink: socket.socket) -> Iterator[int]:
    """Length by length, until there is no more, or nobody who wants it."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
            yield len(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    for _ in _passed_on(source, sink):
        pass


class Host:
    """On ports of the loopback.  ``images``: what the receiver's --dir is."""

    def __init__(self, directory: Path) -> None:
        self.images, self._web = directory / "images", directory / "web"
        self.images.mkdir()
        self._web.mkdir()
        port, self._web_port = free_port(), free_port()
        receiver = [sys.executable, "-m", "p2v_receiver", "listen", "--bind", "127.0.0.1"]
        receiver += ["--dir", str(self.images), "--port", str(port)]
        environ = {**os.environ, "P2V_TOKEN": TOKEN, "PYTHONPATH": str(ROOT / "receiver")}
        web = [sys.executable, "-m", "http.server", str(self._web_port), "--bind", "127.0.0.1"]
        self._processes = [
            subprocess.Popen(receiver, env=environ, stdout=subprocess.DEVNULL),
            subprocess.Popen(web, cwd=self._web, stderr=subprocess.DEVNULL),
        ]
        self._relay = Relay(port)
        self.target = f"tcp://{AS_SEEN}:{self._relay.port}"

    @property
    def sent(self) -> int:
        """Bytes that went to the receiver up to now, by the count of the network."""
        return self._relay.sent

    def offer(self, **answers: str) -> str:
        """Kernel parameters for a preseed with these besides the target."""
        lines = [f'{key.replace("_", ".", 1)} = "{value}"' for key, value in answers.items()]
        text = f'target = "{self.target}"\nauto = true\nlogin.token = "{TOKEN}"\n'
        (self._web / "site.toml").write_text(text + "\n".join(lines))
        return f"p2v.config=http://{AS_SEEN}:{self._web_port}/site.toml p2v.auto"

    def close(self) -> None:
        self._relay.close()
        for process in self._processes:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
