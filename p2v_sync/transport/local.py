"""The receiver as a child process: the embedded default, for a directory of this machine."""

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

from p2v_receiver import wire
from p2v_receiver.stream import SocketPipe
from p2v_sync.errors import CommandError, ConfigError, ConnectFailed
from p2v_sync.run import Process
from p2v_sync.transport.channel import StreamChannel

_DEATH_S = 1.0  # a process whose connection broke is either gone by then, or alive and well
_CLOSE_WITHIN_S = 60.0  # a last commit may have to flush what the page cache holds


class LocalDialer:
    """Connections to a receiver that we start and end ourselves.  Satisfies ``Dialer``.

    One child serves all sessions; connections are socket pairs, handed to it through a socket
    of its own (the door).  When it died, the next ``dial`` starts another.
    """

    is_local = True

    def __init__(self, directory: str, streams: int) -> None:
        """``directory`` may be missing (the receiver makes it).  Raises ConfigError."""
        check_directory(directory)
        self.max_streams = streams
        self._directory = os.path.abspath(directory)
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def dial(self) -> StreamChannel:
        """A new connection.  Raises ConnectFailed."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                child = self._knock(theirs)
            except (OSError, CommandError) as error:
                ours.close()
                raise ConnectFailed(f"the receiver can't be started: {error}") from error
        return StreamChannel(SocketPipe(ours), child.last_words)

    def _knock(self, theirs: socket.socket) -> "_Child":
        with self._lock:
            if self._child is None or not self._child.process.is_running:
                self._shut()
                self._child = _Child(self._directory)
            # One that died at once: who reads from the connection is told its last words.
            with contextlib.suppress(BrokenPipeError):
                socket.send_fds(self._child.door, [b"c"], [theirs.fileno()])
            return self._child

    def _shut(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def close(self) -> None:
        """Let the receiver finish its last commit and end.  Idempotent."""
        with self._lock:
            self._shut()

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return self._child.process.pid if self._child else None


class _Child:
    """A running receiver and its door."""

    def __init__(self, directory: str) -> None:
        # The child must run the very code that this process speaks to, wherever that came from.
        path = [str(Path(wire.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        argv = [sys.executable, "-P", "-m", "p2v_receiver", "serve", f"--dir={directory}"]
        with contextlib.ExitStack() as on_failure:
            self.door, theirs = socket.socketpair()
            on_failure.callback(self.door.close)
            with theirs:
                self.process = Process(
                    [*argv, f"--door={theirs.fileno()}"],
                    fds=[theirs.fileno()],
                    environ={"PYTHONPATH": os.pathsep.join(filter(None, path))},
                )
            on_failure.pop_all()

    def last_words(self) -> str:
        return self.process.error_text() if self.process.ends_within(_DEATH_S) else ""

    def close(self) -> None:
        self.door.close()
        self.process.end(_CLOSE_WITHIN_S)


def check_directory(directory: str) -> None:
    """Raises ConfigError when something other than a directory is there."""
    path = Path(directory)
    if not path.exists() or path.is_dir():
        return
    kind = "a block device" if path.is_block_device() else "a file"
    raise ConfigError(
        f"the target {directory} is {kind}, not a directory",
        hint="name a directory; the image is kept there as JOB/DISK.img",
    )
