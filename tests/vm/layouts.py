"""The disks of a guest, made from the tree of its files without a device of this machine: file
systems are filled by their mkfs, what is below them is made in the lab kernel."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.contract.lab_kernel import run_in_lab_kernel
from tests.vm import recipes
from tests.vm.recipes import MIB, Layout, Recipe

_ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
_LVM = "e6d6d379-f507-44c2-a23c-238f2a3df928"
_DISK, _ROOT, _SWAP, _ESP_SIZE, _BOOT = (each * MIB for each in (2560, 2048, 256, 64, 128))
_SUPERBLOCK = 8 * MIB  # more than md keeps for itself
_LUKS_HEADER = 16 * MIB
_EXTENT = 4 * MIB  # LVM's default, and where it starts is told to it

# In this order: dm-crypt needs an encrypted-keys that finds cbc(aes).
ENCRYPTION = ("cbc", "xts", "algif_skcipher", "dm-crypt")


def run(argv: Sequence[str], *, stdin: str = "", **environ: str) -> str:
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


def make_disks(recipe: Recipe, tree: Path, directory: Path) -> list[Path]:
    """Raw images in ``directory``: disk0.img and so on, in the order of /dev/sda, /dev/sdb."""
    return _LAYOUTS[recipe.layout](tree, directory)


def _partitions(tree: Path, directory: Path) -> list[Path]:
    table = f"label: dos\nstart=1MiB, size={_ROOT // MIB}MiB, bootable\n"
    disk = _disk(directory, f"{table}size={_SWAP // MIB}MiB, type=82\n")
    _place(_ext4(directory / "root.img", _ROOT, tree), disk, MIB)
    _place(_swap(directory), disk, MIB + _ROOT)
    return [disk]


def _volumes(tree: Path, directory: Path) -> list[Path]:
    table = f"label: gpt\nstart=1MiB, size={_ESP_SIZE // MIB}MiB, type={_ESP}\ntype={_LVM}\n"
    disk = _disk(directory, table)
    esp = _blank(directory / "esp.img", _ESP_SIZE)
    run(["mkfs.vfat", "-F", "32", "-i", "0e5dc0de", str(esp)])
    _place(esp, disk, MIB)
    parts = {"root-fs": _ext4(directory / "root.img", _ROOT, tree), "swap": _swap(directory)}
    sizes = [f"{name}={path.stat().st_size // _EXTENT}" for name, path in parts.items()]
    for line in _in_lab([disk], ["dm-mod"], "lvm", "vg-old", *sizes).splitlines():
        if line.startswith("volume "):
            _, name, start = line.split()
            _place(parts.pop(name), disk, int(start))
    assert not parts
    return [disk]


def _mirrors(tree: Path, directory: Path) -> list[Path]:
    sizes = [(each + _SUPERBLOCK) // MIB for each in (_ROOT, _SWAP)]
    table = f"label: dos\nstart=1MiB, size={sizes[0]}MiB, type=fd, bootable\n"
    table += f"size={sizes[1]}MiB, type=fd\n"
    disks = [_disk(directory, table, number) for number in range(2)]
    contents = [_ext4(directory / "root.img", _ROOT, tree), _swap(directory)]
    arrays = [f"{uuid}={path}" for uuid, path in zip(recipes.ARRAYS, contents, strict=True)]
    _in_lab(disks, ["raid1"], "mirrors", *arrays)
    for path in contents:
        path.unlink()
    return disks


def _subvolumes(tree: Path, directory: Path) -> list[Path]:
    table = f"label: dos\nstart=1MiB, size={_ROOT // MIB}MiB, bootable\n"
    disk = _disk(directory, f"{table}size={_SWAP // MIB}MiB, type=82\n")
    root = _blank(directory / "root.img", _ROOT)
    run(["mkfs.btrfs", "--quiet", "--rootdir", str(tree), str(root)])
    _place(root, disk, MIB)
    _place(_swap(directory), disk, MIB + _ROOT)
    _in_lab([disk], [], "subvolumes")
    return [disk]


def _encrypted(tree: Path, directory: Path) -> list[Path]:
    table = f"label: dos\nstart=1MiB, size={_BOOT // MIB}MiB, bootable\n"
    table += f"size={_SWAP // MIB}MiB, type=82\nsize={(_ROOT + _LUKS_HEADER) // MIB}MiB\n"
    disk = _disk(directory, table)
    boot = tree / "boot"
    _place(_ext4(directory / "boot.img", _BOOT, boot), disk, MIB)
    _place(_swap(directory), disk, MIB + _BOOT)
    aside = boot.rename(directory / "boot")
    boot.mkdir()
    root = _ext4(directory / "root.img", _ROOT, tree)
    boot.rmdir()
    aside.rename(boot)
    key = directory / "key"
    key.write_text(recipes.PASSPHRASE)
    _in_lab([disk], ENCRYPTION, "encrypted", recipes.LUKS, str(key), str(root))
    root.unlink()
    return [disk]


_LAYOUTS: dict[Layout, Callable[[Path, Path], list[Path]]] = {
    Layout.PARTITIONS: _partitions,
    Layout.VOLUMES: _volumes,
    Layout.MIRRORS: _mirrors,
    Layout.SUBVOLUMES: _subvolumes,
    Layout.ENCRYPTED: _encrypted,
}


def _blank(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def _disk(directory: Path, table: str, number: int = 0) -> Path:
    """Partitioned."""
    image = _blank(directory / f"disk{number}.img", _DISK)
    run(["sfdisk", str(image)], stdin=table)
    return image


def _ext4(path: Path, size: int, tree: Path) -> Path:
    # As the guest's own mke2fs would: its GRUB can't read what is newer.
    system = tree if (tree / "etc").exists() else tree.parent
    config = str(system / "etc" / "mke2fs.conf")
    argv = ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(_blank(path, size))]
    run(argv, MKE2FS_CONFIG=config)
    return path


def _swap(directory: Path) -> Path:
    path = _blank(directory / "swap.img", _SWAP)
    run(["mkswap", str(path)])
    return path


def _place(part: Path, image: Path, start: int) -> None:
    argv = ["dd", "bs=1M", "oflag=seek_bytes", "conv=notrunc,sparse", "status=none"]
    run([*argv, f"if={part}", f"of={image}", f"seek={start}"])
    part.unlink()


def _in_lab(images: Sequence[Path], modules: Sequence[str], *arguments: str) -> str:
    done = run_in_lab_kernel(
        ["tests.vm.volumes", *arguments], images[0].parent, images=images, modules=modules
    )
    assert done.status == 0, done.log + done.kernel
    return done.log
