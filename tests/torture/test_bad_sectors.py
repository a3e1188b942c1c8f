"""Ten bad sectors, made by device-mapper in a kernel of its own (User-Mode Linux).

This machine's kernel need have no device-mapper: linux.uml is a program, whose root is this very
file system.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from p2v_sync.extent import Extent, merged
from p2v_sync.units import KIB, MIB
from tests.conftest import LONG, Tell
from tests.integration.cli import Lab, assert_equal

ROOT = Path(__file__).parents[2]
LINUX = shutil.which("linux.uml")
MODULES = Path("/usr/lib/uml/modules")
SECTOR = 512

pytestmark = [
    pytest.mark.skipif(LINUX is None, reason="needs linux.uml (apt-get install user-mode-linux)"),
    pytest.mark.skipif(shutil.which("dmsetup") is None, reason="needs dmsetup"),
    pytest.mark.skipif(shutil.which("insmod", path="/usr/sbin:/sbin") is None, reason="needs kmod"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for the lab kernel's root"),
    pytest.mark.timeout(600),
]

SIZE = (128 if LONG else 16) * MIB
# At both ends, next to each other, across a page and alone.
BAD = [
    (0, SECTOR),
    (MIB + SECTOR, SECTOR),
    (2 * MIB - SECTOR, 2 * SECTOR),
    (5 * MIB + 4096, SECTOR),
    (7 * MIB + 7 * SECTOR, 2 * SECTOR),
    (11 * MIB, SECTOR),
    (13 * MIB + 100 * SECTOR, SECTOR),
    (SIZE - SECTOR, SECTOR),
]

_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH={path} HOME={home} PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
insmod {modules}/$(uname -r)/kernel/drivers/md/dm-mod.ko
{python} -m tests.torture.lab_guest {directory} >{directory}/guest.log 2>&1
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def run_in_the_lab(image: Path, directory: Path) -> dict[str, Any]:
    """Boot the lab kernel with ``image`` as /dev/ubda, and run lab_guest.py there."""
    init = directory / "init"
    init.write_text(
        _INIT.format(
            path=f"{ROOT}:{ROOT}/receiver",
            home=directory,
            modules=MODULES,
            # Not a version manager's shim: every process is slow there.
            python=shlex.quote(sys.executable),
            directory=directory,
        )
    )
    init.chmod(0o755)
    argv = [
        str(LINUX),
        "rootfstype=hostfs",
        "root=/dev/root",
        "rw",
        f"init={init}",
        f"ubd0={image}",
    ]
    console = ["con=null", "con0=null,fd:1", "quiet", "mem=1G"]
    done = subprocess.run(
        [*argv, *console], stdin=subprocess.DEVNULL, capture_output=True, timeout=500, check=False
    )
    log = directory / "guest.log"
    results = directory / "results.json"
    said = log.read_text() if log.exists() else done.stdout.decode(errors="replace")
    assert results.exists(), said
    found: dict[str, Any] = json.loads(results.read_text())
    return found


def test_p1_p12_ten_bad_sectors_and_then_none(lab: Lab, tell: Tell) -> None:
    assert sum(length for _, length in BAD) == 10 * SECTOR
    image = lab.noise("disk.img", size=SIZE)
    content = image.read_bytes()
    (lab.root / "bad.json").write_text(json.dumps(BAD))
    results = run_in_the_lab(image, lab.root)
    first, second = results["first"], results["second"]

    assert first["code"] == 13, first["err"]
    wanted = bytearray(content)
    for start, length in BAD:
        wanted[start : start + length] = bytes(length)
    assert (lab.root / "first.img").read_bytes() == bytes(wanted)
    found = [
        Extent(event["start"], event["length"])
        for event in first["events"]
        if event["event"] == "unreadable_found"
    ]
    assert list(merged(sorted(found))) == [Extent(*each) for each in BAD], "exactly those"

    assert second["code"] == 0, second["err"]
    notices = [each["text"] for each in second["events"] if each["event"] == "notice"]
    assert any("only what could not be read" in text for text in notices), notices
    (finished,) = [each for each in second["events"] if each["event"] == "pass_finished"]
    assert finished["counters"]["sent"] == 10 * 4 * KIB, "the pages that they are in"
    # Those blocks, and what tells the disk from others (its ends, its partition table).
    assert second["read"] < 9 * 256 * KIB + 4 * MIB
    assert_equal(image, lab.root / "second.img")
    assert hashlib.sha256(image.read_bytes()).digest() == hashlib.sha256(content).digest(), "P1"
    tell(
        f"10 sectors in {len(BAD)} places of {SIZE // MIB} MiB named and zeroed, all else copied; "
        f"after the repair {finished['counters']['sent'] // KIB} KiB sent, "
        f"{second['read'] // KIB} KiB read"
    )
