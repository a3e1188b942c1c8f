"""Real Debian systems as disk images, made once and kept in the user's cache directory.

A base (mmdebstrap), unpacked; the recipe's files and an initramfs without virtio, made in a chroot;
its disks (layouts.py); and one boot that installs GRUB.  Needs root, and no device of this machine.
"""

import hashlib
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.vm import machines, recipes
from tests.vm.cache import made_once
from tests.vm.layouts import make_disks, run
from tests.vm.machines import Kernel, Machine
from tests.vm.recipes import Recipe

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Guest:
    """``variables``: of the old machine's firmware, where the boot loader has its entry."""

    recipe: Recipe
    images: tuple[Path, ...]
    variables: Path | None

    def on(self, machine: Machine) -> Machine:
        """The machine with the firmware this guest wants, with the old one's variables or none, and
        somebody who knows the passphrase."""
        is_old = machine.disk == machines.PHYSICAL.disk
        return replace(
            machine,
            is_uefi=self.recipe.is_uefi,
            variables=self.variables if is_old else None,
            passphrase=self.recipe.passphrase,
        )


class Workshop:
    """Builds what the cache does not have."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def guest(self, recipe: Recipe) -> Guest:
        sources = [_HERE / f"{name}.py" for name in ("guests", "recipes", "layouts", "volumes")]
        directory = made_once(
            self._cache,
            f"guest-{recipe.name}",
            (repr(recipe), *(path.read_text() for path in sources)),
            lambda new: _build(recipe, self._base(recipe.packages), new),
        )
        variables = directory / "variables.fd"
        images = tuple(sorted(directory.glob("disk*.img")))
        return Guest(recipe, images, variables if recipe.is_uefi else None)

    def _base(self, more: Sequence[str]) -> Path:
        """``more``: packages beside those that every guest has."""
        packages = (*recipes.PACKAGES, *more)
        wanted = (recipes.SUITE, *packages, *recipes.LEFT_OUT)
        kind = "more" if more else "base"
        directory = made_once(self._cache, kind, wanted, lambda new: _make_base(packages, new))
        return directory / "base.tar.zst"


def _make_base(packages: Sequence[str], directory: Path) -> None:
    left_out = (f"--dpkgopt=path-exclude={each}" for each in recipes.LEFT_OUT)
    include = f"--include={','.join(packages)}"
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", include]
    run([*argv, *left_out, recipes.SUITE, str(directory / "base.tar.zst")])


def _build(recipe: Recipe, base: Path, directory: Path) -> None:
    """Leaves ``disk0.img`` and so on and, for UEFI, ``variables.fd``."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        work = Path(name)
        tree = work / "tree"
        tree.mkdir()
        xattrs = ("--xattrs", "--xattrs-include=*")
        run(["tar", "--numeric-owner", *xattrs, "-C", str(tree), "-xf", str(base)])
        _furnish(tree, recipe)
        images = make_disks(recipe, tree, work)
        variables = work / "variables.fd"
        shutil.copyfile(machines.OVMF / "OVMF_VARS_4M.fd", variables)
        _install_grub(images, variables, tree, recipe)
        for image in images:
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
    return run(["unshare", "--mount", "sh", "-euc", script, str(tree), *argv], PATH=path)


def _fill(tree: Path, recipe: Recipe) -> None:
    """Random files, and the manifest of them and of the system's programs."""
    chance = random.Random(recipe.name)
    data = tree / "srv" / "data"
    data.mkdir()
    for number in range(recipes.DATA_FILES):
        (data / f"{number}.bin").write_bytes(chance.randbytes(recipes.DATA_SIZE))
    lines = []
    for directory in (data, tree / "home", tree / "usr" / "sbin"):
        for file in sorted(directory.iterdir()):
            if file.is_file() and not file.is_symlink():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                lines.append(f"{digest}  {file.relative_to(tree)}\n")
    (tree / "etc" / "manifest").write_text("".join(lines))


def _install_grub(images: Sequence[Path], variables: Path, tree: Path, recipe: Recipe) -> None:
    machine = replace(
        machines.PHYSICAL,
        is_uefi=recipe.is_uefi,
        variables=variables,
        passphrase=recipe.passphrase,
    )
    image_of_it, initrd = (next(tree.glob(f"boot/{name}-*")) for name in ("vmlinuz", "initrd.img"))
    arguments = f"root={recipe.root} console=ttyS0 init=/install"
    kernel = Kernel(image_of_it, initrd, arguments)
    done = machines.boot(machine, images, recipe.mac, keep=True, kernel=kernel)
    assert done.report == {"installed": 0}, str(done)


if __name__ == "__main__":
    workshop = Workshop(Path(sys.argv[1]))
    for each in (*recipes.RECIPES, *recipes.MORE_RECIPES):
        sys.stdout.write(f"{workshop.guest(each)}\n")
