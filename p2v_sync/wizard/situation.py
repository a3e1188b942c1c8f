"""What the wizard finds on the machine before it asks: choices and defaults."""

import json
from pathlib import Path

from p2v_sync import run
from p2v_sync.config import plain_name
from p2v_sync.device.attributes import PROC, SYS, names_in, read_text
from p2v_sync.device.machine import Machine
from p2v_sync.device.machine_facts import read_machine
from p2v_sync.device.sysfs import Disk, scan
from p2v_sync.errors import CommandError
from p2v_sync.units import format_size
from p2v_sync.wizard.flow import DiskChoice, Situation
from p2v_sync.wizard.together import Contents, read_contents


def read_situation(sys_root: Path = SYS, proc_root: Path = PROC) -> Situation:
    """Raises DeviceError without sysfs."""
    machine = read_machine(sys_root, proc_root)
    contents = read_contents()
    # A stick that the system was copied from to memory (toram) is not mounted any more.
    disks = [
        disk
        for disk in scan(sys_root, proc_root)
        if disk.excluded is None and disk.name not in contents.media
    ]
    return Situation(
        hostname=default_name(machine),
        disks=tuple(
            DiskChoice(
                disk.name,
                disk.size,
                _describe(disk, contents),
                contents.kept_with(disk.name),
                is_pluggable=disk.removable or disk.bus == "usb",
            )
            for disk in disks
        ),
        interfaces=tuple(
            (nic.name, f"{nic.mac} {nic.driver} {_link(sys_root, nic.name)}".strip())
            for nic in machine.nics
        ),
        is_online=_is_online(),
        memory=machine.memory,
        cpus=machine.cpus.count,
        nics=tuple(nic.name for nic in machine.nics if nic.is_carried),
    )


# The live system's own name says nothing about the server.
_LIVE_NAME = "p2v-live"


def default_name(machine: Machine) -> str:
    """The job's: the host's, or what the same hardware is called again after the next boot."""
    if machine.hostname and machine.hostname != _LIVE_NAME:
        return plain_name(machine.hostname)
    model = machine.dmi.get("product_name", "server").split("(")[0].strip()
    macs = [nic.mac.replace(":", "") for nic in machine.nics if nic.mac]
    own = (machine.dmi.get("product_serial", ""), machine.uuid, *sorted(macs))
    serial = next((each for each in own if each), "")
    return plain_name("-".join(each for each in (model, serial) if each))


def _describe(disk: Disk, contents: Contents) -> str:
    """Size and model, and what is on it; 50 characters."""
    inside = "+".join(dict.fromkeys(contents.kinds[disk.name])) or disk.partition_table
    name = " ".join(part for part in (disk.model, disk.serial) if part)
    return f"{format_size(disk.size)} {name[:24]} {inside}"[:50].strip()


def _link(sys_root: Path, name: str) -> str:
    has_link = read_text(sys_root / "class" / "net" / name / "carrier") == "1"
    return "link up" if has_link else "no link"


def _is_online() -> bool:
    """Whether there is a default route."""
    try:
        routes = json.loads(run.capture(["ip", "-json", "route", "show", "default"], timeout_s=10))
    except (CommandError, ValueError):
        return False
    return bool(routes)


def interface_names(sys_root: Path = SYS) -> list[str]:
    """All network interfaces but the loopback."""
    return [name for name in names_in(sys_root / "class" / "net") if name != "lo"]
