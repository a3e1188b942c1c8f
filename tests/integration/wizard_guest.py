"""What runs inside the lab kernel: the wizard on a machine with a disk and a stick.

    wizard_guest.py DIRECTORY

``ubda`` is the disk, ``ubdb`` the stick; udev's rule has no udev here, so that the flags are set as
it sets them.  ``results.json`` in DIRECTORY says how each run ended, and what was found then.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from p2v_sync.cli import main
from p2v_sync.overlay import cow
from p2v_sync.units import MIB
from p2v_sync.wizard import network
from p2v_sync.wizard.settings import Value
from p2v_sync.wizard.stick import MOUNT_POINT

DISK, STICK = ("/dev/ubda", "/dev/ubda1"), ("/dev/ubdb", "/dev/ubdb1")


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def flags() -> dict[str, int]:
    return {each: int(run("blockdev", "--getro", each)) for each in (*DISK, *STICK)}


def wizard(directory: Path, **answers: str) -> dict[str, object]:
    """One run that asks nothing."""
    values = {
        "target": str(directory / "target"),
        "action": "sync",
        "name": "box",
        "disks": "ubda",
        "network.mode": "none",
        **answers,
    }
    preseed = directory / "site.toml"
    preseed.write_text("auto = true\n" + "".join(f'{k} = "{v}"\n' for k, v in values.items()))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = main(["wizard", "--preseed", str(preseed)])
    return {
        "status": status,
        "said": said.getvalue(),
        "flags": flags(),
        "is_mounted": os.path.ismount(MOUNT_POINT),
    }


def results(directory: Path) -> Iterator[tuple[str, object]]:
    label = "LABEL=P2VSTICK"
    yield "kept", wizard(directory, state=label)
    yield "again", wizard(directory, state=label)
    run("mount", "-o", "ro", STICK[1], "/mnt")
    yield "on the stick", sorted(each.name for each in Path("/mnt/p2v-sync").iterdir())
    run("umount", "/mnt")
    yield "all", wizard(directory, state=label, disks="all")
    yield "on the disk", wizard(directory, state="LABEL=ROOT")
    with mock.patch.object(cow, "memory_available", return_value=MIB):
        yield "no memory", wizard(directory, action="convert", name="vm")


def bond_and_vlan() -> dict[str, object]:
    """What the kernel made of it; twice, as after Back on the screens."""
    values: dict[str, Value] = {
        "network.mode": "static",
        "network.bond": ("eth0", "eth1"),
        "network.vlan": 7,
        "network.address": "192.0.2.7/24",
        "network.gateway": "192.0.2.1",
    }
    for _ in range(2):
        network.bring_up(values, ["eth0", "eth1"])
    links = {each["ifname"]: each for each in json.loads(run("ip", "-json", "address"))}
    (address,) = (
        each["local"] for each in links["p2vbond.7"]["addr_info"] if each["family"] == "inet"
    )
    return {
        "masters": [links[name].get("master") for name in ("eth0", "eth1")],
        "link": links["p2vbond.7"]["link"],
        "address": address,
        "default": json.loads(run("ip", "-json", "route", "show", "default"))[0]["dev"],
    }


def main_in_guest(directory: Path) -> None:
    os.environ["P2V_LOG"] = str(directory / "log")
    for each in (*DISK, *STICK):
        run("blockdev", "--setro", each)
    found = {**dict(results(directory)), "bond": bond_and_vlan()}
    (directory / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main_in_guest(Path(sys.argv[1]))
