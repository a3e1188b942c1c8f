"""Ten bad sectors, made by device-mapper in a kernel of its own (User-Mode Linux)."""

import hashlib
import json
import shutil

import pytest

from p2v_sync.extent import Extent, merged
from p2v_sync.units import KIB, MIB
from tests.conftest import LONG, Tell
from tests.contract.lab_kernel import NEEDS_LAB_KERNEL, run_in_lab_kernel
from tests.integration.cli import Lab, assert_equal

SECTOR = 512

pytestmark = [
    *NEEDS_LAB_KERNEL,
    pytest.mark.skipif(shutil.which("dmsetup") is None, reason="needs dmsetup"),
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


def test_p1_p12_ten_bad_sectors_and_then_none(lab: Lab, tell: Tell) -> None:
    assert sum(length for _, length in BAD) == 10 * SECTOR
    image = lab.noise("disk.img", size=SIZE)
    content = image.read_bytes()
    (lab.root / "bad.json").write_text(json.dumps(BAD))
    argv = ["tests.torture.lab_guest", str(lab.root)]
    done = run_in_lab_kernel(argv, lab.root, images=[image], modules=["dm-mod"])
    assert done.status == 0, done.log + done.kernel
    results = json.loads((lab.root / "results.json").read_text())
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
