"""What runs inside the lab kernel: LVM on the second partition of /dev/ubda.

    volumes.py GROUP NAME=EXTENTS...

Says ``volume NAME START`` for each, START in bytes from the start of the disk.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

PARTITION = Path("/dev/ubda2")
SECTOR = 512
# Nothing of the host: its own configuration, devices file, locks and records stay out of it.
CONFIG = """
devices { filter = [ "a|^/dev/ubda2$|", "r|.*|" ] use_devicesfile = 0 }
global { locking_type = 1 }
activation { udev_sync = 0 udev_rules = 0 }
backup { backup = 0 archive = 0 }
"""


def lvm(*arguments: str) -> str:
    done = subprocess.run(
        ["lvm", *arguments, "--config", CONFIG],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return done.stdout


def make(group: str, volumes: dict[str, str]) -> None:
    lvm("pvcreate", str(PARTITION))
    lvm("vgcreate", group, str(PARTITION))
    for name, extents in volumes.items():
        # Not activated: who asked for them writes to the disk itself.
        new = ("-an", "--zero", "n", "--wipesignatures", "n")
        lvm("lvcreate", *new, "--extents", extents, "--name", name, group)


def starts(volumes: Iterable[str]) -> Iterator[tuple[str, int]]:
    partition = int(Path(f"/sys/class/block/{PARTITION.name}/start").read_text()) * SECTOR
    shape = ("--noheadings", "--units", "b", "--nosuffix", "--separator", ":")
    fields = "lv_name,pvseg_start,pe_start,vg_extent_size"
    for line in lvm("pvs", "--segments", *shape, "--options", fields).split():
        name, extent, first, extent_size = line.split(":")
        if name in volumes:
            yield name, partition + int(first) + int(extent) * int(extent_size)


if __name__ == "__main__":
    sizes = dict(each.split("=") for each in sys.argv[2:])
    make(sys.argv[1], sizes)
    for volume, start in starts(sizes):
        sys.stdout.write(f"volume {volume} {start}\n")
