"""Configurations that name slots, drivers or interfaces that stay behind."""

from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine, Nic
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.guest import Guest, Interface, NetworkStack
from p2v_sync.fixup.network_configs import AbsentNics, HardwareMatches, NetworkChecks
from p2v_sync.fixup.plan import Context, Severity
from tests.contract.guests import PlainGuest

FIRST, SECOND = "00:25:90:00:00:01", "00:25:90:00:00:02"
NICS = (
    Nic("eno1", FIRST, "igb", "0000:02:00.0"),
    Nic("eno2", SECOND, "i40e", "0000:81:00.1"),
    Nic("usb0", "02:00:00:00:00:09", "cdc_ether", is_carried=False),
)
KEYFILE = "/etc/NetworkManager/system-connections/office.nmconnection"
NETWORK = "/etc/systemd/network/10-lan.network"
NETPLAN = "/etc/netplan/01-lan.yaml"


def context(*interfaces: Interface) -> Context:
    return Context(Guest(interfaces=interfaces), NOTHING_KNOWN, Machine(nics=NICS))


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        (
            KEYFILE,
            "[connection]\ninterface-name=eno1\n[match]\npath=pci-0000:02:00.0;\ndriver=igb;\n",
            "[connection]\ninterface-name=eno1\n[match]\n"
            "#p2v# path=pci-0000:02:00.0;\n#p2v# driver=igb;\n",
        ),
        (
            KEYFILE,
            "[connection]\nid=office\n[match]\ndriver=igb",
            "[connection]\nid=office\n[match]\n#p2v# driver=igb\n# BEGIN p2v F42-hardware-matches\n"
            f"[ethernet]\nmac-address={FIRST}\n# END p2v F42-hardware-matches\n",
        ),
        (
            NETWORK,
            "[Match]\r\nPath=pci-0000:81:*\r\n[Network]\r\nDHCP=yes\r\n",
            "[Match]\r\n#p2v# Path=pci-0000:81:*\r\n[Network]\r\nDHCP=yes\r\n"
            f"# BEGIN p2v F42-hardware-matches\r\n[Match]\r\nMACAddress={SECOND}\r\n"
            "# END p2v F42-hardware-matches\r\n",
        ),
        (NETWORK, "[Match]\nName=eno1\nDriver=igb\n", "[Match]\nName=eno1\n#p2v# Driver=igb\n"),
        (NETWORK, "[Match]\nDriver=bridge\n", "[Match]\nDriver=bridge\n"),
        (NETWORK, "[Match]\nName=en*\n", "[Match]\nName=en*\n"),
        (
            NETPLAN,
            "network:\n  ethernets:\n    lan:\n      match:\n        driver: igb # onboard\n"
            "      set-name: lan\n",
            "network:\n  ethernets:\n    lan:\n      match:\n#p2v#         driver: igb # onboard\n"
            f"        macaddress: {FIRST}\n      set-name: lan\n",
        ),
    ],
)  # fmt: skip
def test_matches_of_hardware_become_matches_of_macs(
    tmp_path: Path, path: str, before: str, after: str
) -> None:
    guest = PlainGuest(tmp_path, {path: before})
    assert guest.fix(context(), HardwareMatches()) == []
    assert guest.text(path) == after


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (NETWORK, "[Match]\nPath=pci-*\n"),
        (NETWORK, "[Match]\nOriginalName=*\nPath=pci-*\n"),
        (NETPLAN, f"a:\n  match:\n    macaddress: {FIRST}\n    driver: igb\n"),
    ],
)
def test_what_is_not_clear_stays_and_is_said(tmp_path: Path, path: str, text: str) -> None:
    guest = PlainGuest(tmp_path, {path: text})
    (finding,) = guest.fix(context(), HardwareMatches())
    assert finding.severity is Severity.WARNING
    assert guest.text(path) == text


def test_sles_configures_by_mac_what_it_did_by_slot(tmp_path: Path) -> None:
    old = "/etc/sysconfig/network/ifcfg-eth-bus-pci-0000:02:00.0"
    guest = PlainGuest(tmp_path, {old: "BOOTPROTO='dhcp'\n", f"{old}9": "x"})
    guest.fix(context(), HardwareMatches())
    assert guest.text(f"/etc/sysconfig/network/ifcfg-eth-id-{FIRST}") == "BOOTPROTO='dhcp'\n"
    assert not guest.has(old)
    assert guest.has(f"{old}9")


def test_tuning_is_noted(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/etc/network/interfaces": "  post-up ethtool -G eth0 rx 4096\n"})
    (finding,) = guest.fix(context(), HardwareMatches())
    assert finding.severity is Severity.NOTE


@pytest.mark.parametrize(
    ("stack", "before", "after"),
    [
        (
            NetworkStack.IFUPDOWN,
            "auto usb0\niface usb0 inet dhcp",
            "allow-hotplug usb0\niface usb0 inet dhcp",
        ),
        (
            NetworkStack.IFUPDOWN,
            "auto lo usb0  eno1\n",
            "auto lo  eno1\n# BEGIN p2v F44-absent-nics usb0\nallow-hotplug usb0\n"
            "# END p2v F44-absent-nics usb0\n",
        ),
        (NetworkStack.IFUPDOWN, "allow-hotplug usb0\n", "allow-hotplug usb0\n"),
        (NetworkStack.IFCFG_RH, "DEVICE=usb0\nONBOOT=yes\n", "DEVICE=usb0\nONBOOT=no\n"),
        (NetworkStack.IFCFG_SUSE, "STARTMODE='auto'\nX=1\n", "STARTMODE=\"hotplug\"\nX=1\n"),
        (
            NetworkStack.NETPLAN,
            "network:\n  ethernets:\n    usb0:\n      dhcp4: true\n    eno1: {}\n",
            "network:\n  ethernets:\n    usb0:\n      optional: true\n      dhcp4: true\n"
            "    eno1: {}\n",
        ),
        (NetworkStack.NETPLAN, "    usb0: {dhcp4: true}\n", "    usb0: {dhcp4: true}\n"),
        (
            NetworkStack.NETWORKD,
            "[Match]\nName=usb0\n",
            "[Match]\nName=usb0\n# BEGIN p2v F44-absent-nics\n[Link]\nRequiredForOnline=no\n"
            "# END p2v F44-absent-nics\n",
        ),
        (NetworkStack.NM_KEYFILE, "[connection]\n", "[connection]\n"),
    ],
)  # fmt: skip
def test_nothing_waits_for_interfaces_that_stay_behind(
    tmp_path: Path, stack: NetworkStack, before: str, after: str
) -> None:
    guest = PlainGuest(tmp_path, {"/etc/net": before})
    (finding,) = guest.fix(
        context(Interface("usb0", stack=stack, config="/etc/net"), Interface("eno1")), AbsentNics()
    )
    assert "usb0" in finding.text
    assert guest.text("/etc/net") == after


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('BONDING_OPTS="mode=4 miimon=100"', "LACP"),
        ("bond-mode 802.3ad", "LACP"),
        ("mode: balance-alb", "forged"),
        ("      mtu: 9000", "jumbo"),
        ("MTU='9000'", "jumbo"),
        ("MTUBytes=9000", "jumbo"),
        ("auto eth0.5", "VLAN"),
        ("vlan-raw-device eth0", "VLAN"),
        ("echo 4 > /sys/class/net/eth0/device/sriov_numvfs", "SR-IOV"),
    ],
)
def test_what_the_switch_must_do_is_said(tmp_path: Path, text: str, word: str) -> None:
    guest = PlainGuest(tmp_path, {"/etc/network/interfaces": f"# mtu 9000 802.3ad\n{text}\n"})
    (finding,) = guest.fix(context(), NetworkChecks())
    assert word in finding.text + finding.hint
    assert "/etc/network/interfaces" in finding.text


def test_plain_configurations_give_no_findings(tmp_path: Path) -> None:
    text = (
        "auto eth0\niface eth0 inet static\n  address 10.0.0.4\n  mtu 1500\n  netmask 255.0.0.0\n"
    )
    guest = PlainGuest(tmp_path, {"/etc/network/interfaces": text})
    assert guest.fix(context(), NetworkChecks(), HardwareMatches(), AbsentNics()) == []
