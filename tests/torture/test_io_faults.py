"""EIO and ENOSPC from each call that changes the target, one after the other.

After such a failure nothing is recorded any more (P2), the error's class, and so the exit code,
says what it was, and the next run heals it.  Of SQLite it is the statements that fail: the calls
that it makes itself can't be reached from here.
"""

import contextlib
import errno
import functools
import itertools
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from p2v_receiver import target as target_module
from p2v_receiver.manifest import Manifest
from p2v_sync.errors import P2vError, TargetFull, TargetIOError
from tests.conftest import Tell
from tests.contract.bench import Bench
from tests.contract.host import Host
from tests.contract.lab import BLOCK, SEGMENT, Lab, MemorySource, letters, patterned, ram_directory

SIZE = 2 * SEGMENT + 3 * BLOCK
EXPECTED = {errno.EIO: TargetIOError, errno.ENOSPC: TargetFull}
SQL = {errno.EIO: "disk I/O error", errno.ENOSPC: "database or disk is full"}
RECORDS = ("commit", "finish_pass", "begin_pass", "forget_blocks", "reset", "recut", "distrust")


class Faults:
    """Counts the calls that change something; the ``at``-th of ``kind`` fails with ``number``."""

    def __init__(self, kind: str = "", at: int = 0, number: int = 0) -> None:
        self.kind, self.at, self.number = kind, at, number
        self.seen: Counter[str] = Counter()
        self.has_struck = False
        self.recorded_after: list[str] = []

    def _is_due(self, kind: str) -> bool:
        self.seen[kind] += 1
        is_due = kind == self.kind and self.seen[kind] == self.at
        self.has_struck |= is_due
        return is_due

    def call(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """``real``, which is a system call."""

        def faulty(*arguments: Any) -> Any:
            if self._is_due(kind):
                raise OSError(self.number, os.strerror(self.number))
            return real(*arguments)

        return faulty

    def connection(self) -> type[sqlite3.Connection]:
        faults = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                word = sql.split()[0]
                if word in _CHANGING and faults._is_due(f"SQL {word}"):
                    raise sqlite3.OperationalError(SQL[faults.number])
                return super().execute(sql, *arguments)

        return Connection

    def record(self, name: str) -> Callable[..., Any]:
        """A change of the manifest that says more than before; afterwards none may succeed."""
        real = getattr(Manifest, name)

        def watched(manifest: Manifest, *arguments: Any, **options: Any) -> None:
            real(manifest, *arguments, **options)
            if self.has_struck:
                self.recorded_after.append(name)

        return watched

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in ("pwrite", "fdatasync", "fsync", "ftruncate", "rename", "mkdir"):
                fake = self.call(name, getattr(os, name))
                stack.enter_context(mock.patch.object(os, name, fake))
            for name in RECORDS:
                stack.enter_context(mock.patch.object(Manifest, name, self.record(name)))
            fake = self.call("punch", target_module._fallocate)
            stack.enter_context(mock.patch.object(target_module, "_fallocate", fake))
            connect = functools.partial(sqlite3.connect, factory=self.connection())
            stack.enter_context(mock.patch.object(sqlite3, "connect", connect))
            yield


_CHANGING = ("BEGIN", "INSERT", "UPDATE", "DELETE", "COMMIT", "CREATE")


def first_pass(root: Path) -> Lab:
    return Lab(root, MemorySource(patterned(2) + letters("a0b")))


def second_pass(root: Path) -> Lab:
    """Blocks that change, become zero and stay."""
    lab = first_pass(root)
    lab.sync(streams=1)
    lab.source.fill(5 * BLOCK, letters("xy0000z"))
    lab.source.fill(SEGMENT + 250 * BLOCK, letters("0000000xy"))
    return lab


PASSES = {"first": first_pass, "second": second_pass}


def meet(root: Path, make: Callable[[Path], Lab], faults: Faults) -> bool:
    """A pass into the fault and a pass after it.  Whether the first one failed.

    Two passes are hardly ever alike call by call (two workers, a clock), so the last calls of a
    kind may not come again.
    """
    host = Host()
    with host.installed():
        lab = make(root)
        assert lab.source.size == SIZE
        where = f"{faults.kind} {faults.at} {os.strerror(faults.number)}"
        failure: P2vError | None = None
        with faults.installed():
            try:
                lab.sync(streams=1, verify="none")
            except P2vError as error:
                failure = error
        if failure is None:
            assert lab.is_equal(), f"{where}: success, and the target differs"
            return False
        assert type(failure) is EXPECTED[faults.number], f"{where}: {failure!r}"
        assert not faults.recorded_after, f"{where}: {faults.recorded_after} came after it"
        if faults.kind == "fdatasync":
            # The kernel calls clean what it could not write, and returns it for a while.
            host.drop_unflushed()
        else:
            host.come_back(is_lost=lambda: True, time_goes_back=True)
        if lab.image.exists() and lab.manifest.exists():
            Bench(root, SIZE).certain()
        lab.sync(streams=1, verify="none")
        host.evict()
        assert lab.is_equal(), f"{where}: the next run does not heal it"
    return True


@pytest.mark.parametrize("number", EXPECTED, ids=errno.errorcode.get)
@pytest.mark.parametrize("which", PASSES)
def test_p2_each_call_of_a_pass_fails_once(which: str, number: int, tell: Tell) -> None:
    with ram_directory() as base:
        roots = (base / str(n) for n in itertools.count())

        def run(faults: Faults) -> bool:
            root = next(roots)
            root.mkdir()
            return meet(root, PASSES[which], faults)

        dry = Faults()
        run(dry)
        assert {"pwrite", "fdatasync", "SQL COMMIT"} <= {*dry.seen}
        assert "punch" in dry.seen or which == "first"
        cases = [(kind, n) for kind, count in dry.seen.items() for n in range(1, count + 1)]
        failed, harmless, missed = 0, set(), 0
        for case in cases:
            faults = Faults(*case, number)
            if run(faults):
                failed += 1
            elif faults.has_struck:
                harmless.add(case[0])
            else:
                missed += 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in dry.seen.items())
    tell(f"{len(cases)} faults ({kinds}); {failed} ended the run; tolerated: {harmless or 0}")
    assert missed < 5
    assert not harmless & {"pwrite", "punch", "fdatasync", "SQL COMMIT", "ftruncate"}
