"""The right dialer for a target."""

import importlib
import os
from collections.abc import Callable
from typing import Protocol

from p2v_sync.config import Connection
from p2v_sync.transport.address import LocalTarget, Target, TcpTarget
from p2v_sync.transport.ask import TYPED
from p2v_sync.transport.ask import Ask as Ask
from p2v_sync.transport.channel import StreamChannel
from p2v_sync.transport.direct import DataPath as DataPath
from p2v_sync.transport.local import LocalDialer
from p2v_sync.transport.tcp import TcpDialer, find_token


class CloseableDialer(Protocol):
    """The engine's ``Dialer``, with an end."""

    @property
    def max_streams(self) -> int: ...

    @property
    def is_local(self) -> bool: ...

    def dial(self) -> StreamChannel: ...

    def close(self) -> None: ...


def make_dialer(
    target: Target,
    connection: Connection,
    streams: int,
    ask: Ask | None,
    on_path: Callable[[DataPath], None] = lambda _: None,
) -> CloseableDialer:
    """``on_path`` is told how each session's data goes to an ssh target.  Raises ConfigError."""
    if isinstance(target, LocalTarget):
        return LocalDialer(target.directory, streams)
    if isinstance(target, TcpTarget):
        prompt = (lambda: TYPED.once(f"Token of {target}", ask)) if ask else None
        return TcpDialer(target, find_token(connection.token_file, os.environ, prompt), streams)
    # Only now: paramiko takes a third of the start-up time, and seconds on an emulated machine.
    ssh = importlib.import_module("p2v_sync.transport.ssh")
    options = ssh.SshOptions(
        connection.identity_file, connection.sudo, data=connection.data, streams=streams
    )
    dialer: CloseableDialer = ssh.SshDialer(target, options, ask, on_path=on_path)
    return dialer
