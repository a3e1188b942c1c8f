"""The live CD, built when a test first wants it."""

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2v_sync.units import MIB
from tests.livecd.host import ROOT, Host
from tests.vm.cache import CACHE, made_once
from tests.vm.machines import OVMF, QEMU

_BUILD_S = 1800.0  # a quarter of it on a machine that does nothing else

_missing = [
    each for each in (QEMU, "mmdebstrap", "mksquashfs", "xorriso") if shutil.which(each) is None
]
# Building the medium may be part of a test's time.
NEEDS_MEDIUM = [
    pytest.mark.skipif(bool(_missing), reason=f"needs {', '.join(_missing)}"),
    pytest.mark.skipif(not OVMF.exists(), reason="needs OVMF (apt-get install ovmf)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(7200),
]


def _sources() -> Iterator[Path]:
    for directory in ("livecd", "p2v_sync", "receiver"):
        for path in sorted((ROOT / directory).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
    yield from (ROOT / "pyproject.toml", ROOT / "requirements.txt")


def build(directory: Path, *options: str) -> None:
    """p2v.iso, what ``--pxe`` writes in ``pxe``, and the ``log``."""
    argv = [str(ROOT / "livecd" / "build"), "--out", "p2v.iso", "--pxe", "pxe", *options]
    done = subprocess.run(
        argv, cwd=directory, capture_output=True, text=True, timeout=_BUILD_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (directory / "log").write_text(done.stdout)


def made_of_sources(kind: str, make: Callable[[Path], None], *inputs: str) -> Path:
    """The directory that ``make`` filled with a medium."""
    sources = (f"{path.relative_to(ROOT)} {path.read_bytes()!r}" for path in _sources())
    return made_once(CACHE, kind, (*inputs, *sources), make)


@pytest.fixture(scope="session")
def medium() -> Path:
    """The directory of a medium that knows nothing beforehand."""
    return made_of_sources("medium", build)


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's disk: a partition with an ext4 file system that was not unmounted, and data."""
    directory = tmp_path_factory.mktemp("disk")
    part, point, image = directory / "part", directory / "point", directory / "disk.img"
    with part.open("wb") as file:
        file.truncate(100 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(part)], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(part), str(point)], check=True)
    try:
        (point / "file").write_bytes(random.Random(1).randbytes(MIB))
        subprocess.run(["sync", "-f", str(point)], check=True)
        dirty = part.read_bytes()
    finally:
        subprocess.run(["umount", str(point)], check=True)
    with image.open("wb") as file:
        file.truncate(400 * MIB)
        file.seek(MIB)
        file.write(dirty)
        file.seek(150 * MIB)
        file.write(random.Random(2).randbytes(200 * MIB))
    table = "start=2048, size=204800, type=83\n"
    subprocess.run(["sfdisk", "-q", str(image)], input=table, text=True, check=True)
    features = subprocess.run(["dumpe2fs", "-h", str(part)], check=True, capture_output=True)
    assert b"has_journal" in features.stdout
    return image


@pytest.fixture
def copy_of_disk(disk: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(disk, tmp_path / "server.img"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    try:
        yield host
    finally:
        host.close()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
