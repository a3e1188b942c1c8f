"""Runs a module as ``python -m`` does, but with nothing made durable: the price of fsync alone.

    python -m benchmarks.undurable p2v_receiver listen ...

fsync and fdatasync do nothing, and no SQLite database waits for its disk.
"""

import functools
import os
import runpy
import sqlite3
import sys
from typing import Any


class _Connection(sqlite3.Connection):
    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if sql.startswith("PRAGMA synchronous ="):
            sql = "PRAGMA synchronous = OFF"
        return super().execute(sql, *arguments)


def _nothing(fd: int) -> None:
    del fd


def main() -> None:
    os.fsync = os.fdatasync = _nothing  # type: ignore[assignment]
    sqlite3.connect = functools.partial(sqlite3.connect, factory=_Connection)  # type: ignore[assignment]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
