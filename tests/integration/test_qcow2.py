"""The qcow2 overlay that the receiver writes by itself, as QEMU sees it."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from p2v_receiver import qcow2
from p2v_receiver.delta import Base, Delta, Writer
from p2v_receiver.target import Image
from p2v_sync.units import GIB, MIB
from tests.contract.cutover import CHUNK, CutBench, runs_of
from tests.contract.lab import block_of


@pytest.fixture(autouse=True)
def _needs_qemu() -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("needs the program qemu-img (package qemu-utils)")


def qemu_img(*arguments: str) -> str:
    done = subprocess.run(
        ["qemu-img", *arguments], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def test_p8_replica_and_delta_are_what_qemu_reads(tmp_path: Path) -> None:
    bench = CutBench(tmp_path)
    last = bench.size - bench.size % CHUNK
    chunks = {
        0: block_of("new"),
        15 * CHUNK: block_of("over the edge of a cluster", 3 * CHUNK),
        40 * CHUNK: bytes(CHUNK),
        last: b"!" * (bench.size - last),
    }
    with bench.take() as cutover:
        bench.send(cutover, chunks)
        cutover.act({"action": "apply", "mode": "qcow2"}, b"")
    overlay = bench.place.qcow2
    info = json.loads(qemu_img("info", "--output=json", overlay))
    assert (info["format"], info["backing-filename"]) == ("qcow2", "disk.img")
    assert info["backing-filename-format"] == "raw"
    assert "No errors were found" in qemu_img("check", overlay)
    raw = tmp_path / "seen.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", overlay, str(raw))
    # A disk that is no multiple of a sector is longer to QEMU.
    assert raw.read_bytes()[: bench.size] == bench.with_delta(chunks)
    assert bench.is_replica()


@pytest.mark.parametrize("size", [MIB, 5 * GIB + 512, 3 << 40], ids=["small", "odd", "3 TiB"])
def test_large_disks(tmp_path: Path, size: int) -> None:
    """Chunks anywhere; more than one L1 cluster on the largest."""
    chance = random.Random(size)
    starts = sorted({chance.randrange(size // CHUNK) * CHUNK for _ in range(200)})
    chunks = {start: block_of(start) for start in starts}
    image = Image.create(str(tmp_path / "d.img"), size)
    writer = Writer(str(tmp_path / "d.delta"), Base("u", 1, size, CHUNK))
    runs, body = runs_of(chunks)
    writer.add(runs, body)
    writer.keep(writer.end_record())
    writer.close()
    overlay = str(tmp_path / "d.qcow2")
    with Delta(str(tmp_path / "d.delta")) as delta:
        qcow2.write_qcow2(overlay, image, delta)
    image.close()
    assert "No errors were found" in qemu_img("check", overlay)
    for start, data in list(chunks.items())[::40]:
        found = subprocess.run(
            ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -v {start} 16", overlay],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        assert data[:16].hex(" ") in found
