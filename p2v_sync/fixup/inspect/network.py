"""What configures the guest's network, and which interfaces are named there."""

import re
from collections.abc import Iterator
from dataclasses import replace

from p2v_sync.fixup.guest import Interface, NetworkStack
from p2v_sync.fixup.inspect.ifupdown import ifupdown_interfaces
from p2v_sync.fixup.inspect.netplan import netplan_interfaces
from p2v_sync.fixup.inspect.reader import Reader, assignments, mac_of, sections, settings, shown

_MOST = 500  # interfaces
_IFCFG_SUSE_MAC = re.compile(r"eth-id-([0-9a-fA-F:]{17})$")
_NOT_READ = re.compile(
    r"(~|\.(bak|orig|old|rpm(new|save|orig)|dpkg-\w+|swp|scpmbackup|p2v-disabled))$"
)
_RULE = re.compile(r"^[^#]*(?:ATTRS?|SYSFS)\{address\}==\"([^\"]+)\".*\bNAME:?=\"([^\"]+)\"")
_OTHERS = (
    "/etc/conf.d/net",
    "/etc/rc.d/rc.inet1.conf",
    "/etc/netctl/*",
    "/etc/connman/main.conf",
    "/etc/dhcpcd.conf",
)


def find_network(reader: Reader) -> tuple[tuple[NetworkStack, ...], tuple[Interface, ...]]:
    """Stacks in the order of their names' list, interfaces in that of their files."""
    found = [
        *_ifcfg_rh(reader),
        *_keyfiles(reader),
        *netplan_interfaces(reader),
        *ifupdown_interfaces(reader),
        *_networkd(reader),
        *_ifcfg_suse(reader),
    ]
    stacks = {interface.stack for interface in found} | set(_without_interfaces(reader))
    interfaces = _with_macs(reader, [each for each in found if each.name or each.mac])
    return tuple(stack for stack in NetworkStack if stack in stacks), interfaces[:_MOST]


def _without_interfaces(reader: Reader) -> Iterator[NetworkStack]:
    is_off = reader.exists("/etc/cloud/cloud-init.disabled")
    has_cloud_init = reader.is_file("/etc/cloud/cloud.cfg") or reader.is_directory("/var/lib/cloud")
    if has_cloud_init and not is_off:
        yield NetworkStack.CLOUD_INIT
    if any(reader.files(path) for path in _OTHERS):
        yield NetworkStack.OTHER


def _with_macs(reader: Reader, found: list[Interface]) -> tuple[Interface, ...]:
    """Names that a .link file or a udev rule ties to a card get its address."""
    tied = dict(_tied(reader))
    return tuple(
        replace(each, mac=tied[each.name]) if not each.mac and each.name in tied else each
        for each in found
    )


def _tied(reader: Reader) -> Iterator[tuple[str, str]]:
    """Name and address of 70-persistent-net.rules and its kin, then of .link files."""
    for path in reader.files("/etc/udev/rules.d/*net*.rules"):
        for line in reader.lines(path):
            match = _RULE.search(line)
            if match and (mac := mac_of(match[1])):
                yield shown(match[2]), mac
    for path in reader.files("/etc/systemd/network/*.link"):
        said = settings(reader.text(path))
        mac = mac_of(
            said.get(("Match", "PermanentMACAddress"), said.get(("Match", "MACAddress"), ""))
        )
        name = said.get(("Link", "Name"), "")
        if name and mac:
            yield shown(name), mac


def _named(reader: Reader, pattern: str) -> Iterator[tuple[str, str]]:
    """ifcfg files: path and what stands after the dash, without loopback and left-overs."""
    for path in reader.files(pattern):
        name = path.rpartition("/ifcfg-")[2]
        if name != "lo" and not _NOT_READ.search(name) and not name.startswith("lo:"):
            yield path, name


def _ifcfg_rh(reader: Reader) -> Iterator[Interface]:
    for path, name in _named(reader, "/etc/sysconfig/network-scripts/ifcfg-*"):
        said = assignments(reader.text(path))
        device = shown(said.get("DEVICE") or name)
        mac = mac_of(said.get("HWADDR", ""))
        yield Interface(device, mac, NetworkStack.IFCFG_RH, path)


def _ifcfg_suse(reader: Reader) -> Iterator[Interface]:
    """SLES 9 and 10 name the file after the card: ifcfg-eth-id-00:11:22:33:44:55."""
    for path, name in _named(reader, "/etc/sysconfig/network/ifcfg-*"):
        by_card = _IFCFG_SUSE_MAC.search(name)
        if name == "template":
            continue
        mac = mac_of(by_card[1]) if by_card else ""
        device = "" if by_card else shown(name)
        yield Interface(device, mac, NetworkStack.IFCFG_SUSE, path)


def _keyfiles(reader: Reader) -> Iterator[Interface]:
    places = (
        "/etc/NetworkManager/system-connections/*",
        "/usr/lib/NetworkManager/system-connections/*",
    )
    for path in reader.files(*places):
        if _NOT_READ.search(path):
            continue
        said = settings(reader.text(path))
        macs = (said.get((part, "mac-address"), "") for part in ("ethernet", "802-3-ethernet"))
        mac = next(filter(None, map(mac_of, macs)), "")
        name = shown(said.get(("connection", "interface-name"), ""))
        if said.get(("connection", "type")) != "loopback":
            yield Interface(name, mac, NetworkStack.NM_KEYFILE, path)


def _networkd(reader: Reader) -> Iterator[Interface]:
    for path in reader.files("/etc/systemd/network/*.network"):
        for part, keys in sections(reader.text(path)):
            if part != "Match":
                continue
            said = dict(keys)
            mac = mac_of(said.get("PermanentMACAddress") or said.get("MACAddress", ""))
            yield Interface(shown(said.get("Name", "")), mac, NetworkStack.NETWORKD, path)
