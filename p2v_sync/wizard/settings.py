"""Every question there is, as a table: its name in a preseed, its type, and what may be answered.

The table is the documentation: preseeds, the kernel command line and the screens all follow it.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from p2v_sync.config import check_job_name
from p2v_sync.errors import ConfigError
from p2v_sync.transport.address import parse_target
from p2v_sync.units import MIB, parse_size

Value = str | int | bool | tuple[str, ...]
Parse = Callable[[Any], Value]

ALL = "all"
ACTIONS = ("sync", "convert", "cutover")
ENDS = ("poweroff", "reboot", "shell")

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")  # IFNAMSIZ is 16 with the NUL
_DISK = re.compile(r"[A-Za-z0-9][A-Za-z0-9!_-]*")
_FILE_SYSTEM = re.compile(r"(LABEL|UUID)=.+")
_MEMORY_LEAST = 64 * MIB


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text that is not empty")
    if any(ord(each) < 32 for each in value):
        raise ValueError("must have no control characters")
    return value.strip()


def _one_of(*allowed: str) -> Parse:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(value)

    return parse


def _truth(value: Any) -> bool:
    """Of a kernel parameter without a value: true."""
    if isinstance(value, bool):
        return value
    words = {
        "": True,
        "1": True,
        "yes": True,
        "true": True,
        "0": False,
        "no": False,
        "false": False,
    }
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError("must be true or false")
    return words[value.lower()]


def _target(value: Any) -> str:
    text = _text(value)
    try:
        parse_target(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return text


def _name(value: Any) -> str:
    try:
        return check_job_name(_text(value))
    except ConfigError as error:
        raise ValueError(error.hint or error.message) from error


def _disks(value: Any) -> tuple[str, ...]:
    """``all``, or kernel names."""
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given:
        raise ValueError("must be all, or names like sda")
    names = tuple(str(each).strip().removeprefix("/dev/") for each in given)
    if wrong := [name for name in names if _DISK.fullmatch(name) is None]:
        raise ValueError(f"{wrong[0]!r} is no name of a disk, like sda or nvme0n1")
    return names


def _whole(least: int, most: int) -> Parse:
    def parse(value: Any) -> int:
        text = str(value)
        if isinstance(value, bool) or not text.isascii() or not text.isdigit():
            raise ValueError("must be a whole number")
        if not least <= int(text) <= most:
            raise ValueError(f"must be from {least} to {most}")
        return int(text)

    return parse


def _memory(value: Any) -> int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    size = value if is_number else parse_size(_text(value))
    if size < _MEMORY_LEAST:
        raise ValueError("must be at least 64M")
    return size


def _interface(value: Any) -> str:
    text = _text(value)
    if _INTERFACE.fullmatch(text) is None:
        raise ValueError("must be the name of a network interface, like eno1")
    return text


def _interfaces(value: Any) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise ValueError("must be two interfaces or more")
    return tuple(_interface(each) for each in given)


def _network_address(value: Any) -> str:
    text = _text(value)
    if "/" not in text:
        raise ValueError("must have the length of the network's prefix, like 192.0.2.7/24")
    return str(ipaddress.ip_interface(text))


def _address(value: Any) -> str:
    return str(ipaddress.ip_address(_text(value)))


def _addresses(value: Any) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given:
        raise ValueError("must be one address or more")
    return tuple(_address(each) for each in given)


def _state(value: Any) -> str:
    text = _text(value)
    if not text.startswith("/") and _FILE_SYSTEM.fullmatch(text) is None:
        raise ValueError("must be a directory, from / on, or LABEL=… or UUID=… of a stick")
    return text


def _url(value: Any) -> str:
    text = _text(value)
    if urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).hostname:
        raise ValueError("must be a URL of http or https")
    return text


@dataclass(frozen=True)
class Setting:
    """One question.  ``key``: its name in a preseed, ``table.name`` below a table.

    ``parse`` takes what stands in TOML, or a text, and raises ValueError.  ``is_secret``: never on
    the kernel command line, where every user of the machine could read it.
    """

    key: str
    parse: Parse
    meaning: str
    is_secret: bool = False

    @property
    def parameter(self) -> str:
        """Its name on the kernel command line: ``network.address`` is p2v.network.address."""
        return f"p2v.{self.key}"


_SETTINGS = (
    Setting("target", _target, "Where the replica goes: user@host:/dir, tcp://host:port"),
    Setting("disks", _disks, "all, or kernel names: sda,nvme0n1"),
    Setting("name", _name, "Name of the job and of the virtual machine"),
    Setting("action", _one_of(*ACTIONS), "sync, convert, or cutover (a last sync and convert)"),
    Setting("auto", _truth, "Ask nothing; stop and run the fail hook when an answer is missing"),
    Setting("config", _url, "URL of a preseed with further answers"),
    Setting("post", _one_of(*ENDS), "What happens at the end: poweroff, reboot or shell"),
    Setting("state", _state, "Where the ledger is: LABEL=… or UUID=… of a stick, or a directory"),
    Setting("network.mode", _one_of("dhcp", "static", "none"), "How the live system gets online"),
    Setting("network.interface", _interface, "The interface, where there are several"),
    Setting("network.address", _network_address, "Static: address and prefix, 192.0.2.7/24"),
    Setting("network.gateway", _address, "Static: the router"),
    Setting("network.dns", _addresses, "Static: name servers"),
    Setting("network.vlan", _whole(1, 4094), "VLAN number, when the port is tagged"),
    Setting("network.bond", _interfaces, "Interfaces that are joined (active-backup)"),
    Setting("vm.memory", _memory, "Memory of the virtual machine: 8G"),
    Setting("vm.vcpus", _whole(1, 1024), "Virtual processors"),
    Setting("vm.target", _one_of("kvm", "xen", "proxmox", "generic"), "What it will run on"),
    Setting("vm.network", _text, "Which NIC goes to which network: eth0=br0,eth1=br1"),
    Setting("vm.fixups", _one_of("own", "virt-v2v", "none"), "What makes the guest boot on it"),
    Setting("vm.start", _truth, "Define and start it when all is done"),
    Setting("login.token", _text, "Token of a tcp:// receiver", is_secret=True),
    Setting("login.luks", _text, "Passphrase of encrypted disks, to look into", is_secret=True),
    Setting("login.identity", _text, "File on the medium with the private key for ssh"),
    Setting("login.host_key", _text, "The ssh host's public key, as a line of known_hosts"),
    Setting("hooks.pre", _text, "Command before the run"),
    Setting("hooks.post", _text, "Command after a run that succeeded"),
    Setting("hooks.fail", _text, "Command after any failure"),
)
SETTINGS: Mapping[str, Setting] = {setting.key: setting for setting in _SETTINGS}
