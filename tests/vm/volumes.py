"""What runs inside the lab kernel: what is between the partitions of /dev/ubda and a file system.

    volumes.py lvm GROUP NAME=EXTENTS...       on partition 2; says "volume NAME START" for each,
                                               START in bytes from the start of the disk
    volumes.py mirrors UUID=CONTENT...         RAID1 of partition 1 of both disks, of partition 2…
    volumes.py subvolumes                      the btrfs on partition 1 becomes @, its home @home
    volumes.py encrypted UUID KEY CONTENT      LUKS2 on partition 3

CONTENT is the image of a file system.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

SECTOR = 512
GROUP_ON = Path("/dev/ubda2")
# Nothing of the host: its own configuration, devices file, locks and records stay out of it.
CONFIG = """
devices { filter = [ "a|^/dev/ubda2$|", "r|.*|" ] use_devicesfile = 0 }
global { locking_type = 1 }
activation { udev_sync = 0 udev_rules = 0 }
backup { backup = 0 archive = 0 }
"""
# Little work, so that an emulated machine opens it in a second.
WEAK = ("--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4")


def run(*argv: str) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def fill(device: str, content: str) -> None:
    """A device that holds zeros.  What the file system does not use stays unwritten."""
    run("dd", f"if={content}", f"of={device}", "bs=1M", "conv=sparse,fsync", "status=none")


# LVM


def lvm(*arguments: str) -> str:
    return run("lvm", *arguments, "--config", CONFIG)


def make_group(group: str, *sizes: str) -> None:
    lvm("pvcreate", str(GROUP_ON))
    lvm("vgcreate", group, str(GROUP_ON))
    volumes = dict(each.split("=") for each in sizes)
    for name, extents in volumes.items():
        # Not activated: who asked for them writes to the disk itself.
        new = ("-an", "--zero", "n", "--wipesignatures", "n")
        lvm("lvcreate", *new, "--extents", extents, "--name", name, group)
    for volume, start in starts(volumes):
        sys.stdout.write(f"volume {volume} {start}\n")


def starts(volumes: Iterable[str]) -> Iterator[tuple[str, int]]:
    partition = int(Path(f"/sys/class/block/{GROUP_ON.name}/start").read_text()) * SECTOR
    shape = ("--noheadings", "--units", "b", "--nosuffix", "--separator", ":")
    fields = "lv_name,pvseg_start,pe_start,vg_extent_size"
    for line in lvm("pvs", "--segments", *shape, "--options", fields).split():
        name, extent, first, extent_size = line.split(":")
        if name in volumes:
            yield name, partition + int(first) + int(extent) * int(extent_size)


# The others


def make_mirrors(*arrays: str) -> None:
    for number, array in enumerate(arrays):
        uuid, content = array.split("=")
        device = f"/dev/md{number}"
        kind = ("--level=1", "--raid-devices=2", "--metadata=1.2", "--assume-clean")
        name = ("--homehost=any", f"--name={number}", f"--uuid={uuid}")
        members = [f"/dev/ubd{letter}{number + 1}" for letter in "ab"]
        run("mdadm", "--create", device, "--run", *kind, *name, *members)
        fill(device, content)
        run("mdadm", "--stop", device)


def make_subvolumes() -> None:
    with tempfile.TemporaryDirectory(dir="/run") as name:
        top = Path(name)
        run("mount", "-t", "btrfs", "/dev/ubda1", name)
        there = [str(path) for path in top.iterdir()]
        run("btrfs", "subvolume", "snapshot", name, f"{name}/@")
        run("btrfs", "subvolume", "create", f"{name}/@home")
        run("rm", "-rf", *there)
        for path in top.glob("@/home/*"):
            run("mv", str(path), f"{name}/@home")
        run("umount", name)


def make_encrypted(uuid: str, key: str, content: str) -> None:
    partition, name = "/dev/ubda3", "new-root"
    new = ("--type", "luks2", "--uuid", uuid, "--batch-mode", *WEAK)
    run("cryptsetup", "luksFormat", *new, "--key-file", key, partition)
    run("cryptsetup", "open", "--disable-keyring", "--key-file", key, partition, name)
    fill(f"/dev/mapper/{name}", content)
    run("cryptsetup", "close", name)


WAYS: dict[str, Callable[..., None]] = {
    "lvm": make_group,
    "mirrors": make_mirrors,
    "subvolumes": make_subvolumes,
    "encrypted": make_encrypted,
}

if __name__ == "__main__":
    WAYS[sys.argv[1]](*sys.argv[2:])
