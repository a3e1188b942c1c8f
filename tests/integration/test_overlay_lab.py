"""Overlays in a kernel with device-mapper: one boot of the lab kernel runs all of overlay_guest.py.

The functions there that begin with ``check_`` are the tests; here each is reported on its own.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from p2v_sync.units import MIB
from tests.contract.lab_kernel import NEEDS_LAB_KERNEL, run_in_lab_kernel
from tests.integration import overlay_guest

PROGRAMS = (
    "dmsetup", "lvm", "mdadm", "cryptsetup", "btrfs", "mkfs.btrfs", "mkfs.xfs", "mkfs.ext4",
    "sfdisk", "debugfs", "mkswap",
)  # fmt: skip
# In this order: dm-crypt needs an encrypted-keys that finds cbc(aes).
MODULES = ("cbc", "xts", "algif_skcipher", "dm-crypt", "dm-snapshot", "loop", "raid1")

pytestmark = [
    *NEEDS_LAB_KERNEL,
    *(
        pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}")
        for program in PROGRAMS
    ),
    pytest.mark.slow,
    pytest.mark.timeout(1000),  # an idle machine needs a fifth of that,
]


def run(*argv: object, stdin: str = "") -> None:
    subprocess.run(
        list(map(str, argv)), input=stdin, check=True, capture_output=True, text=True, timeout=60
    )


def blank(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def put(part: Path, image: Path, start: int) -> None:
    with part.open("rb") as source, image.open("r+b") as target:
        target.seek(start)
        shutil.copyfileobj(source, target)


def make_gpt_disk(directory: Path) -> Path:
    """Its size is no multiple of a chunk, and its second file system has a journal to replay."""
    image = blank(directory / "gpt.img", 48 * MIB + 3 * 512)
    table = 'label: gpt\nstart=1MiB, size=24MiB, name="my root, 1"\nsize=16MiB\nsize=4MiB\n'
    run("sfdisk", "--quiet", image, stdin=table)
    root = blank(directory / "root", 24 * MIB)
    run("mkfs.ext4", "-q", "-L", "root", root)
    put(root, image, MIB)
    dirty = blank(directory / "dirty", 16 * MIB)
    run("mkfs.ext4", "-q", "-J", "size=4", dirty)
    run("debugfs", "-w", "-R", "feature needs_recovery", dirty)
    put(dirty, image, 25 * MIB)
    swap = blank(directory / "swap", 4 * MIB)
    run("mkswap", swap)
    put(swap, image, 41 * MIB)
    return image


def make_images(directory: Path) -> list[Path]:
    """The disks of overlay_guest.py, in its order."""
    xfs = blank(directory / "xfs.img", 304 * MIB)
    run("mkfs.xfs", "-q", xfs)
    parted = [blank(directory / f"part{number}.img", 33 * MIB) for number in range(4)]
    for image in parted:
        run("sfdisk", "--quiet", image, stdin="label: dos\nstart=1MiB\n")
    btrfs = [blank(directory / f"btrfs{number}.img", 80 * MIB) for number in range(2)]
    run("mkfs.btrfs", "-q", *btrfs)
    luks = blank(directory / "luks.img", 24 * MIB)
    key = directory / overlay_guest.KEY
    key.write_text("secret")
    weak = ("--type", "luks1", "--pbkdf-force-iterations", "1000")
    run("cryptsetup", "luksFormat", "--batch-mode", *weak, luks, key)
    return [make_gpt_disk(directory), xfs, *parted, *btrfs, luks]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("overlay")
    argv = ["tests.integration.overlay_guest", str(directory)]
    images = make_images(directory)
    done = run_in_lab_kernel(argv, directory, images=images, modules=MODULES, timeout_s=900)
    assert done.status == 0, done.log + done.kernel
    found: dict[str, str] = json.loads((directory / "results.json").read_text())
    return found


@pytest.mark.parametrize("name", overlay_guest.checks())
def test_in_the_lab_kernel(results: dict[str, str], name: str) -> None:
    assert not results[name], results[name]


def test_p1_no_origin_was_written_to(results: dict[str, str]) -> None:
    assert not results["p1"], results["p1"]
