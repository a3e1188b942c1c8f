"""What runs inside the lab kernel: a disk with bad sectors is copied, repaired, and copied again.

    lab_guest.py DIRECTORY

DIRECTORY (on the host) has ``bad.json``, [start, length] pairs in bytes; ``results.json`` and the
replica after each run, ``first.img`` and ``second.img``, are put there.  /dev/ubda is the disk.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from p2v_sync.cli import main

SECTOR = 512
NAME = "p2v-lab-bad"
JOB = ("--job", "old", "--json")
# Not on the host: hostfs changes a file's times after it was flushed.
OUT = Path("/run/p2v-lab")
DISK = Path("/dev/mapper", NAME)


def dmsetup(*arguments: str, table: str = "") -> None:
    # There is no udev to wait for.
    subprocess.run(["dmsetup", "--noudevsync", *arguments], input=table, text=True, check=True)


def table(bad: list[list[int]], size: int) -> str:
    """The disk with ``bad`` extents mapped to the error target, as sectors."""
    rows, at = [], 0
    for start, length in [*bad, [size, 0]]:
        good = (at // SECTOR, (start - at) // SECTOR)
        rows += [f"{good[0]} {good[1]} linear /dev/ubda {good[0]}"] if good[1] else []
        rows += [f"{start // SECTOR} {length // SECTOR} error"] if length else []
        at = start + length
    return "\n".join(rows)


def sync(replica: Path, *options: str) -> dict[str, Any]:
    """One run of the command, its replica, and how many bytes of the disk it read."""
    before = read_so_far()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["sync", str(DISK), str(OUT), *JOB, *options])
    shutil.copyfile(OUT / "old" / f"{NAME}.img", replica)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    return {"code": code, "events": events, "err": err.getvalue(), "read": read_so_far() - before}


def read_so_far() -> int:
    number = DISK.stat().st_rdev
    stat = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text()
    return int(stat.split()[2]) * SECTOR


def run(directory: Path) -> None:
    bad = json.loads((directory / "bad.json").read_text())
    size = int(Path("/sys/class/block/ubda/size").read_text()) * SECTOR
    os.environ["P2V_STATE"] = str(directory / "state")
    dmsetup("create", NAME, table=table(bad, size))
    dmsetup("mknodes")
    first = sync(directory / "first.img")
    dmsetup("reload", NAME, table=table([], size))
    dmsetup("suspend", NAME)
    dmsetup("resume", NAME)
    second = sync(directory / "second.img", "--verify", "none")  # it would read more
    (directory / "results.json").write_text(json.dumps({"first": first, "second": second}))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
