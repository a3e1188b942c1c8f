"""The network interfaces of a machine, with the addresses they were made with."""

import re
from pathlib import Path

from p2v_sync import run
from p2v_sync.device.attributes import SYS, names_in, read_int, read_text
from p2v_sync.device.machine import Nic
from p2v_sync.errors import CommandError

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_USB = re.compile(r"usb\d+")
# Documentation/ABI/testing/sysfs-class-net, include/uapi/linux/if_arp.h
_ETHERNET = 1
_PERMANENT = "0"


def parse_mac(text: str) -> str:
    """The address in lower case; '' for what can't be a network card's (zero, multicast, words)."""
    mac = text.strip().lower()
    if _MAC.fullmatch(mac) is None or mac == "00:00:00:00:00:00" or int(mac[:2], 16) & 1:
        return ""
    return mac


def parse_ethtool(text: str) -> str:
    """What ``ethtool -P`` says: ``Permanent address: 52:54:00:12:34:56``, or ``… not set``."""
    return parse_mac(text.partition("address:")[2])


def _ask_ethtool(name: str) -> str:
    try:
        return parse_ethtool(run.capture(["ethtool", "-P", name], timeout_s=10))
    except CommandError:
        return ""


def _mac(directory: Path, name: str, sys_root: Path) -> str:
    """The permanent address, else the one it has.

    A bond gives its members its own address and keeps theirs; any other that was changed is known
    to the driver alone, which only a living machine can ask.
    """
    if kept := parse_mac(read_text(directory / "bonding_slave" / "perm_hwaddr")):
        return kept
    address = parse_mac(read_text(directory / "address"))
    if read_text(directory / "addr_assign_type") == _PERMANENT or sys_root != SYS:
        return address
    return _ask_ethtool(name) or address


def _nic(directory: Path, name: str, sys_root: Path) -> Nic:
    device = (directory / "device").resolve()
    mac = _mac(directory, name, sys_root)
    is_usb = any(_USB.fullmatch(part) for part in device.parts)
    is_wireless = (directory / "wireless").exists() or (directory / "phy80211").exists()
    is_virtual_function = (device / "physfn").exists()
    driver = device / "driver"
    return Nic(
        name=name,
        mac=mac,
        driver=driver.resolve().name if driver.exists() else "",
        path=next((part for part in reversed(device.parts) if _PCI.fullmatch(part)), device.name),
        is_carried=bool(mac) and not (is_usb or is_wireless or is_virtual_function),
    )


def read_nics(sys_root: Path) -> tuple[Nic, ...]:
    """Those of Ethernet's kind that are hardware, as the bus counts them.

    Bonds, bridges and the like have no device of their own and are left out.
    """
    base = sys_root / "class" / "net"
    found = []
    for name in names_in(base):
        directory = base / name
        is_ethernet = read_int(directory / "type") == _ETHERNET
        if is_ethernet and (directory / "device").exists() and name.isprintable():
            nic = _nic(directory, name, sys_root)
            found.append(((nic.path, read_int(directory / "dev_port"), name), nic))
    return tuple(nic for _, nic in sorted(found, key=lambda pair: pair[0]))
