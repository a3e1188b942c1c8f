"""A kernel with device-mapper for tests: User-Mode Linux, one process whose root is this very host.

linux.uml is a program; this machine's own kernel need have no device-mapper, md or loop devices.
Inside there are the same Python, checkout and programs; one processor, slow to start processes, so
that one module should do all that a test wants.
"""

import os
import shlex
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LINUX = shutil.which("linux.uml")
MODULES = Path("/usr/lib/uml/modules")
_SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"
_MEMORY = "3G"  # at most
_MOST_IMAGES = 16  # ubda to ubdp (arch/um/drivers/ubd_kern.c)

# For ``pytestmark``: what a test needs that boots the lab kernel.
NEEDS_LAB_KERNEL = [
    pytest.mark.skipif(LINUX is None, reason="needs linux.uml (apt-get install user-mode-linux)"),
    pytest.mark.skipif(shutil.which("modprobe", path=_SBIN) is None, reason="needs kmod"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for the lab kernel's root"),
]

_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PYTHONPATH={path} HOME={directory} PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
cd {directory}
mkdir -p lib/modules
ln -sfn {modules}/$(uname -r) lib/modules/$(uname -r)
[ -z {wanted} ] || modprobe --dirname {directory} --all $(echo {wanted}) >guest.log 2>&1
{command} >>guest.log 2>&1
echo $? >guest.status
dmesg | tail -n 100 >kernel.log
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class LabRun(NamedTuple):
    """``status``: the module's exit status, -1 when the kernel ended before it.  ``log``: what it
    wrote; ``kernel``: the kernel's last messages."""

    status: int
    log: str
    kernel: str


def ubd(number: int) -> str:
    """The device that image ``number`` is: 0 → /dev/ubda."""
    return f"/dev/ubd{string.ascii_lowercase[number]}"


def run_in_lab_kernel(
    argv: Sequence[str],
    directory: Path,
    *,
    images: Sequence[Path] = (),
    modules: Sequence[str] = (),
    nics: Sequence[str] = (),
    timeout_s: float = 500,
) -> LabRun:
    """Boot the lab kernel and run ``python -m`` with ``argv``: a module's name and its arguments.

    ``directory``, on the host, is where it works, and where it leaves its results; /run is empty
    and in memory, all else is the host's and writable.  ``images``: raw files, which become
    /dev/ubda, /dev/ubdb and so on.  ``modules``: of the kernel, loaded before with what they need
    (``dm-snapshot``, ``loop``, ``raid1``; ext4, xfs and btrfs are always there).  ``nics``: their
    addresses; eth0 and so on, which lead nowhere.  Raises
    subprocess.TimeoutExpired, and AssertionError for what the kernel's command line can't say.
    """
    assert LINUX is not None
    assert len(images) <= _MOST_IMAGES
    assert not any(set(str(image)) & set(" ,:") for image in images), "separators in its options"
    init = directory / "init"
    # Not a version manager's shim: every process is slow there.
    command = shlex.join([sys.executable, "-m", *argv])
    init.write_text(
        _INIT.format(
            path=shlex.quote(f"{ROOT}:{ROOT}/receiver"),
            directory=shlex.quote(str(directory)),
            modules=MODULES,
            wanted=shlex.quote(" ".join(modules)),
            command=command,
        )
    )
    init.chmod(0o755)
    for name in ("guest.status", "guest.log", "kernel.log"):
        (directory / name).unlink(missing_ok=True)
    root = ["rootfstype=hostfs", "root=/dev/root", "rw", f"init={init}"]
    disks = [f"ubd{number:x}={image}" for number, image in enumerate(images)]
    console = ["con=null", "con0=null,fd:1", "quiet", f"mem={_MEMORY}"]
    links = [f"eth{number}=mcast,{mac}" for number, mac in enumerate(nics)]
    _boot([LINUX, *root, *disks, *links, *console], directory / "console.log", timeout_s)
    status, log, kernel, screen = (
        _text(directory / name)
        for name in ("guest.status", "guest.log", "kernel.log", "console.log")
    )
    return LabRun(int(status.strip() or -1), log, kernel or screen)


def _boot(argv: list[str], screen: Path, timeout_s: float) -> None:
    """Run the kernel to its end.  Its helpers outlive it when it is killed, so all of them are."""
    with screen.open("wb") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
