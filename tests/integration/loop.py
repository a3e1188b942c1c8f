"""Loop devices and the programs around them, for tests that are root."""

import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

Attach = Callable[..., Path]


def tool(*argv: str | Path, stdin: str = "") -> str:
    """Run a program to its end; a missing one is named in the skip."""
    if shutil.which(argv[0]) is None:
        pytest.skip(f"needs the program {argv[0]}")
    return subprocess.run(
        list(map(str, argv)), input=stdin, check=True, capture_output=True, text=True, timeout=30
    ).stdout


def attach_file(cleanup: ExitStack, file: Path, *options: str) -> Path:
    """``file`` as a loop device until ``cleanup`` ends; ``options`` are losetup's."""
    loop = Path(tool("losetup", "--find", "--show", *options, file).strip())
    cleanup.callback(tool, "losetup", "--detach", loop)
    if "--read-only" not in options:
        # The flag outlives what a loop device showed: before, after a kill -9 for instance …
        tool("blockdev", "--setrw", loop)
        # … and what comes after it must not find ours.
        cleanup.callback(tool, "blockdev", "--setrw", loop)
    return loop
