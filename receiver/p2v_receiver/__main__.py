"""``p2v-receiver listen`` for raw TCP; ``serve`` is what a sender starts over ssh or as a child."""

import argparse
import array
import os
import signal
import socket
import sys
import threading
from typing import Any, Iterable, Iterator, List, Optional

from . import __version__, auth, listen, wire
from .live import log
from .serve import Server
from .stream import FdPipe, FrameStream, SocketPipe


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="p2v-receiver", description="Receive disks from p2v-sync and keep them as images."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="listen")
    commands.required = True
    tcp = commands.add_parser("listen", help="wait for senders on a TCP port")
    tcp.add_argument("--dir", required=True, help="where images go, as DIR/JOB/DISK.img")
    tcp.add_argument("--bind", default="0.0.0.0", metavar="ADDR", help="(default: all addresses)")
    tcp.add_argument(
        "--port", type=int, default=auth.DEFAULT_PORT, help="(default: %(default)s; 0: any free)"
    )
    tcp.add_argument("--once", action="store_true", help="exit after one job")
    tcp.add_argument(
        "--plaintext", action="store_true", help="no encryption; the token is still needed"
    )
    tcp.add_argument(
        "--token-file",
        metavar="FILE",
        help="keep the token in FILE, so that senders go on by themselves after a restart",
    )
    tcp.add_argument(
        "--allow-run",
        action="store_true",
        help="let senders define and start virtual machines here, which means: run anything",
    )
    tcp.set_defaults(run=_listen)
    child = commands.add_parser("serve")
    child.add_argument("--dir", required=True)
    child.add_argument("--door", type=int, help="an inherited socket that connections come through")
    child.add_argument("--direct", type=int, help="open a port for so many connections")
    child.add_argument("--at", help="this host's address as the sender knows it")
    child.set_defaults(run=_serve)
    return parser


def _fail(text: str) -> int:
    sys.stderr.write("p2v-receiver: {}\n".format(text))
    return 1


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_directory(path: str) -> Optional[str]:
    """Why images can't be kept there, or None."""
    if os.path.exists(path) and not os.path.isdir(path):
        return "--dir {}: it is not a directory; name another".format(path)
    if not os.path.isdir(path):
        return "--dir {}: there is no such directory; make it first".format(path)
    if not os.access(path, os.W_OK | os.X_OK):
        return "--dir {}: it can't be written to; choose another or change its owner".format(path)
    return None


def _listen(options: Any) -> int:
    problem = _check_directory(options.dir)
    if problem:
        return _fail(problem)
    token = os.environ.get("P2V_TOKEN") or auth.new_token()
    try:
        if options.token_file:
            token = listen.read_or_make_token(options.token_file)
    except OSError as error:
        return _fail("--token-file {}: {}".format(options.token_file, _reason(error)))
    try:
        sock = listen.bind(options.bind, options.port)
    except (OSError, OverflowError) as error:
        return _fail(
            "can't listen on {}:{}: {}; choose others with --bind and --port".format(
                options.bind, options.port, _reason(error)
            )
        )
    server = Server(os.path.abspath(options.dir), may_run=options.allow_run)

    def is_over() -> bool:
        return bool(options.once and server.closed_in_due_form) and not server.live_sessions

    listen.announce(token, options.bind, sock.getsockname()[1])
    try:
        listen.Listener(server, token, options.plaintext).run(sock, is_over)
    finally:
        server.shut_down()
    return 0


def _serve(options: Any) -> int:
    """Serve whoever comes through an inherited socket, or standard input and output."""
    # Who started us could start anything else, too.
    server = Server(os.path.abspath(options.dir), may_run=True)
    if options.direct:
        _announce_direct(server, options)
    pipes: Iterable[Any] = [_standard_pipe()] if options.door is None else _visitors(options.door)
    threads = []
    try:
        for pipe in pipes:
            stream = FrameStream(pipe, wire.RECEIVER)
            threads.append(threading.Thread(target=server.handle, args=(stream,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
    finally:
        server.shut_down()
    return 0


def _announce_direct(server: Server, options: Any) -> None:
    # sshd(8): client's address and port, ours and port.  sudo takes it out of the environment.
    ours = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    sys.stdout.write(listen.open_direct(server, options.direct, [*ours, options.at]) + "\n")
    sys.stdout.flush()


def _standard_pipe() -> FdPipe:
    # Whatever prints to standard output from here on must not land between two frames.
    output = os.dup(1)
    os.dup2(2, 1)
    return FdPipe(0, output)


def _visitors(door_fd: int) -> Iterator[SocketPipe]:
    """The connections that the sender hands in (SCM_RIGHTS, unix(7)), until it shuts the door."""
    room = socket.CMSG_SPACE(array.array("i", [0]).itemsize)
    with socket.socket(fileno=door_fd) as door:
        while True:
            knock, passed, _, _ = door.recvmsg(1, room)
            if not knock:
                return
            for _, _, fds in passed:
                yield SocketPipe(socket.socket(fileno=array.array("i", fds)[0]))


def _stop(signum: int, frame: Any) -> None:
    del frame
    sys.exit(128 + signum)


def main(arguments: Optional[List[str]] = None) -> int:
    """The command line.  Exit status: 0, 1 can't start, 2 usage, 128 + signal."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except OSError as error:
        log(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
