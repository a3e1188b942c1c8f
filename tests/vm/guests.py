"""Real Debian systems as disk images, made once and kept in the user's cache directory.

A base (mmdebstrap), unpacked; the recipe's files and an initramfs without virtio, made in a chroot;
file systems filled by mke2fs; volumes made in the lab kernel; and one boot that installs GRUB.
Needs root, and no device of this machine.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.contract.lab_kernel import run_in_lab_kernel
from tests.vm import machines, recipes
from tests.vm.cache import made_once
from tests.vm.machines import Kernel, Machine
from tests.vm.recipes import MIB, Recipe

_HERE = Path(__file__).parent
_ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
_LVM = "e6d6d379-f507-44c2-a23c-238f2a3df928"
_ROOT_SIZE, _SWAP_SIZE, _ESP_SIZE = 2048 * MIB, 256 * MIB, 64 * MIB
_EXTENT = 4 * MIB  # LVM's default, and where it starts is told to it


@dataclass(frozen=True)
class Guest:
    """``variables``: of the old machine's firmware, where the boot loader has its entry."""

    recipe: Recipe
    image: Path
    variables: Path | None

    def on(self, machine: Machine) -> Machine:
        """The machine with the firmware this guest wants, with the old one's variables or none."""
        is_old = machine.disk == machines.PHYSICAL.disk
        return replace(
            machine, is_uefi=self.recipe.is_uefi, variables=self.variables if is_old else None
        )


class Workshop:
    """Builds what the cache does not have."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def guest(self, recipe: Recipe) -> Guest:
        sources = [_HERE / f"{name}.py" for name in ("guests", "recipes", "volumes")]
        directory = made_once(
            self._cache,
            f"guest-{recipe.name}",
            (repr(recipe), *(path.read_text() for path in sources)),
            lambda new: _build(recipe, self._base(), new),
        )
        variables = directory / "variables.fd"
        return Guest(recipe, directory / "disk.img", variables if recipe.is_uefi else None)

    def _base(self) -> Path:
        wanted = (recipes.SUITE, *recipes.PACKAGES, *recipes.LEFT_OUT)
        return made_once(self._cache, "base", wanted, _make_base) / "base.tar.zst"


def _make_base(directory: Path) -> None:
    left_out = (f"--dpkgopt=path-exclude={each}" for each in recipes.LEFT_OUT)
    include = f"--include={','.join(recipes.PACKAGES)}"
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", include]
    _run([*argv, *left_out, recipes.SUITE, str(directory / "base.tar.zst")])


def _run(argv: Sequence[str], *, stdin: str = "", **environ: str) -> str:
    done = subprocess.run(
        argv,
        input=stdin,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environ},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{argv[0]} failed with status {done.returncode}: {done.stdout}"
    return done.stdout


def _build(recipe: Recipe, base: Path, directory: Path) -> None:
    """Leaves ``disk.img`` and, for UEFI, ``variables.fd``."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        work = Path(name)
        tree = work / "tree"
        tree.mkdir()
        xattrs = ("--xattrs", "--xattrs-include=*")
        _run(["tar", "--numeric-owner", *xattrs, "-C", str(tree), "-xf", str(base)])
        _furnish(tree, recipe)
        image = work / "disk.img"
        _make_disk(image, tree, recipe)
        variables = work / "variables.fd"
        shutil.copyfile(machines.OVMF / "OVMF_VARS_4M.fd", variables)
        _install_grub(image, variables, tree, recipe)
        image.rename(directory / image.name)
        if recipe.is_uefi:
            variables.rename(directory / variables.name)


# The system.


def _furnish(tree: Path, recipe: Recipe) -> None:
    files = {
        **recipe.files,
        "/etc/hostname": f"{recipe.name}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {recipe.name}\n",
        "/etc/machine-id": f"{recipes.MACHINE_ID}\n",
        "/etc/initramfs-tools/conf.d/modules": "MODULES=list\n",
        "/etc/initramfs-tools/modules": "".join(f"{each}\n" for each in recipe.modules),
        "/etc/systemd/system/report.service": recipes.REPORT_UNIT,
    }
    programs = {
        "/usr/local/sbin/report": recipes.REPORT,
        "/install": recipes.INSTALL.format(mounts=recipe.mounts, grub=recipe.grub),
    }
    for path, text in {**files, **programs}.items():
        file = tree / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if path in programs else 0o644)
    units = ["report.service"]
    if any(path.endswith(".network") for path in recipe.files):
        units.append("systemd-networkd.service")
    _in_tree(tree, ["systemctl", "enable", *units])
    # Five more login prompts, where there is no D-Bus to start them when they are wanted.
    _in_tree(tree, ["systemctl", "mask", "getty-static.service"])
    _in_tree(tree, ["update-initramfs", "-u", "-k", "all"])
    _fill(tree, recipe)


def _in_tree(tree: Path, argv: Sequence[str]) -> str:
    """The output of a program, run in a chroot whose mounts go when it ends."""
    script = 'mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"'
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    return _run(["unshare", "--mount", "sh", "-euc", script, str(tree), *argv], PATH=path)


def _fill(tree: Path, recipe: Recipe) -> None:
    """Random files, and the manifest of them and of the system's programs."""
    chance = random.Random(recipe.name)
    data = tree / "srv" / "data"
    data.mkdir()
    for number in range(recipes.DATA_FILES):
        (data / f"{number}.bin").write_bytes(chance.randbytes(recipes.DATA_SIZE))
    lines = []
    for directory in (data, tree / "usr" / "sbin"):
        for file in sorted(directory.iterdir()):
            if file.is_file() and not file.is_symlink():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                lines.append(f"{digest}  {file.relative_to(tree)}\n")
    (tree / "etc" / "manifest").write_text("".join(lines))


# The disk.


def _make_disk(image: Path, tree: Path, recipe: Recipe) -> None:
    with image.open("wb") as file:
        file.truncate(recipes.DISK_SIZE)
    root, swap, esp = (image.with_name(name) for name in ("root.img", "swap.img", "esp.img"))
    for part, size in ((root, _ROOT_SIZE), (swap, _SWAP_SIZE), (esp, _ESP_SIZE)):
        with part.open("wb") as file:
            file.truncate(size)
    # As the guest's own mke2fs would: its GRUB can't read what is newer.
    config = str(tree / "etc" / "mke2fs.conf")
    _run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(root)], MKE2FS_CONFIG=config)
    _run(["mkswap", str(swap)])
    if not recipe.is_uefi:
        table = f"label: dos\nstart=1MiB, size={_ROOT_SIZE // MIB}MiB, bootable\n"
        table += f"size={_SWAP_SIZE // MIB}MiB, type=82\n"
        _run(["sfdisk", str(image)], stdin=table)
        _place(root, image, MIB)
        _place(swap, image, MIB + _ROOT_SIZE)
        return
    _run(["mkfs.vfat", "-F", "32", "-i", "0e5dc0de", str(esp)])
    table = f"label: gpt\nstart=1MiB, size={_ESP_SIZE // MIB}MiB, type={_ESP}\ntype={_LVM}\n"
    _run(["sfdisk", str(image)], stdin=table)
    _place(esp, image, MIB)
    _place_volumes(image, {"root-fs": root, "swap": swap})


def _place_volumes(image: Path, volumes: dict[str, Path]) -> None:
    """Make the volumes one after the other in partition 2, and write them where they are."""
    sizes = [f"{name}={path.stat().st_size // _EXTENT}" for name, path in volumes.items()]
    done = run_in_lab_kernel(
        ["tests.vm.volumes", "vg-old", *sizes], image.parent, images=[image], modules=["dm-mod"]
    )
    assert done.status == 0, done.log + done.kernel
    for line in done.log.splitlines():
        if line.startswith("volume "):
            _, name, start = line.split()
            _place(volumes.pop(name), image, int(start))
    assert not volumes, done.log


def _place(part: Path, image: Path, start: int) -> None:
    argv = ["dd", "bs=1M", "oflag=seek_bytes", "conv=notrunc,sparse", "status=none"]
    _run([*argv, f"if={part}", f"of={image}", f"seek={start}"])
    part.unlink()


def _install_grub(image: Path, variables: Path, tree: Path, recipe: Recipe) -> None:
    machine = replace(machines.PHYSICAL, is_uefi=recipe.is_uefi, variables=variables)
    image_of_it, initrd = (next(tree.glob(f"boot/{name}-*")) for name in ("vmlinuz", "initrd.img"))
    arguments = f"root={recipe.root} console=ttyS0 init=/install"
    kernel = Kernel(image_of_it, initrd, arguments)
    done = machines.boot(machine, [image], recipe.mac, keep=True, kernel=kernel)
    assert done.report == {"installed": 0}, str(done)


if __name__ == "__main__":
    workshop = Workshop(Path(sys.argv[1]))
    for each in recipes.RECIPES:
        sys.stdout.write(f"{workshop.guest(each)}\n")
