"""Interfaces keep their names by MAC, and nothing is named that the guest names itself."""

import re
from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine, Nic
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.guest import Distribution, Family, Generator, Guest, Interface, NetworkStack
from p2v_sync.fixup.network_names import NicNames, PersistentRules
from p2v_sync.fixup.plan import Context, Severity
from p2v_sync.fixup.tree import TEXT_MOST
from tests.contract.guests import PlainGuest

FIRST, SECOND, THIRD = "00:25:90:00:00:01", "00:25:90:00:00:02", "00:25:90:00:00:03"
RULES = "/etc/udev/rules.d/70-persistent-net.rules"
MODERN = {"/usr/lib/systemd/network/99-default.link": "[Match]\nOriginalName=*\n"}
NICS = (
    Nic("eno1", FIRST, "igb", "0000:02:00.0"),
    Nic("ens3f1np1", SECOND, "i40e", "0000:81:00.1"),
)


def rule(name: str, mac: str) -> str:
    return (
        'SUBSYSTEM=="net", ACTION=="add", DRIVERS=="?*", '
        f'ATTR{{address}}=="{mac}", ATTR{{type}}=="1", NAME="{name}"\n'
    )


def context(
    *interfaces: Interface | str, nics: tuple[Nic, ...] = NICS, family: Family = Family.DEBIAN
) -> Context:
    found = tuple(Interface(each) if isinstance(each, str) else each for each in interfaces)
    guest = Guest(Distribution(family), interfaces=found, generator=Generator.INITRAMFS_TOOLS)
    return Context(guest, NOTHING_KNOWN, Machine(nics=nics))


@pytest.fixture
def modern(tmp_path: Path) -> PlainGuest:
    guest = PlainGuest(tmp_path, MODERN)
    guest.at("/etc/udev/rules.d").mkdir(parents=True)
    return guest


@pytest.fixture
def old(tmp_path: Path) -> PlainGuest:
    guest = PlainGuest(tmp_path)
    guest.at("/etc/udev/rules.d").mkdir(parents=True)
    return guest


def pins(guest: PlainGuest) -> dict[str, str]:
    """What our .link files say; the rules must say the same."""
    found = dict[str, str]()
    for path in sorted(guest.at("/etc/systemd/network").glob("01-p2v-*.link")):
        mac, name = re.findall(r"(?:MACAddress|Name)=(.*)", path.read_text())
        assert path.name == f"01-p2v-{name}.link"
        found[name] = mac
    by_rules = {
        name: mac
        for mac, name in re.findall(r'address}=="([^"]*)".*NAME="([^"]*)"', guest.text(RULES))
    }
    assert found == by_rules
    return found


def test_a_predictable_name_is_pinned_by_its_mac(modern: PlainGuest) -> None:
    modern.fix(context("eno1", "lo"), NicNames())
    assert modern.text("/etc/systemd/network/01-p2v-eno1.link") == (
        f"[Match]\nMACAddress={FIRST}\n\n[Link]\nName=eno1\n"
    )
    assert modern.text(RULES) == (
        f"# BEGIN p2v F40-nic-names\n{rule('eno1', FIRST)}# END p2v F40-nic-names\n"
    )


def test_the_initramfs_gets_the_link_file_too(modern: PlainGuest) -> None:
    draft, _ = modern.plan([NicNames()], context("eno1"))
    (path, data), *others = draft.for_initramfs.items()
    assert not others
    assert path == "/etc/systemd/network/01-p2v-eno1.link"
    assert f"MACAddress={FIRST}".encode() in data


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        (("ens3f1",), {"ens3f1": SECOND}),  # without the port name that newer systemd adds
        (("enp129s0f1",), {"enp129s0f1": SECOND}),  # by its place
        (("enp2s0",), {"enp2s0": FIRST}),
        (("enx002590000002",), {"enx002590000002": SECOND}),
        (("em1", "p3p2"), {"em1": FIRST, "p3p2": SECOND}),  # biosdevname
        (("eno1", "eth7"), {"eno1": FIRST, "eth7": SECOND}),  # the one that is left
        (("eno1.5", "br0", "bond0", "wlan0", "docker0"), {"eno1": FIRST}),
        (("eno1:0",), {"eno1": FIRST}),
        ((Interface("wan", SECOND), Interface("br1", FIRST)), {"wan": SECOND}),
        ((Interface("eth0", SECOND.upper()), Interface("eth1", FIRST)),
         {"eth0": SECOND, "eth1": FIRST}),
    ],
)  # fmt: skip
def test_which_name_was_which_interface(
    modern: PlainGuest, configured: tuple[str, ...], expected: dict[str, str]
) -> None:
    modern.fix(context(*configured), NicNames())
    assert pins(modern) == expected


@pytest.mark.parametrize(
    ("stack", "text", "is_pinned"),
    [
        (NetworkStack.IFCFG_RH, f"HWADDR={FIRST}\nNAME=office\n", False),
        (NetworkStack.IFCFG_RH, f"HWADDR={FIRST}\nDEVICE=office\n", True),
        (NetworkStack.NETPLAN, f"office:\n  match: {{macaddress: '{FIRST}'}}\n", False),
        (NetworkStack.NETPLAN, f"{{match: {{macaddress: '{FIRST}'}}, set-name: office}}\n", True),
        (NetworkStack.IFUPDOWN, "iface office inet dhcp\n", True),
    ],
)  # fmt: skip
def test_the_name_of_a_configuration_is_no_interfaces_name(
    modern: PlainGuest, stack: NetworkStack, text: str, is_pinned: bool
) -> None:
    modern.write("/etc/net", text)
    modern.fix(context(Interface("office", FIRST, stack, "/etc/net")), NicNames())
    assert modern.has("/etc/systemd/network") == is_pinned


def test_names_of_the_kernel_follow_the_bus_when_one_driver_has_all(modern: PlainGuest) -> None:
    nics = (
        Nic("enp3s0", FIRST, "igb", "0000:03:00.0"),
        Nic("enp2s0", SECOND, "igb", "0000:02:00.0"),
        Nic("enp4s0", THIRD, "igb", "0000:04:00.0"),
    )
    findings = modern.fix(context("eth0", "eth1", nics=nics), NicNames())
    assert pins(modern) == {"eth0": SECOND, "eth1": FIRST}
    assert [finding.severity for finding in findings] == [Severity.NOTE]
    assert "order: eth0, eth1" in findings[0].text


def test_what_is_not_known_is_said_and_not_guessed(modern: PlainGuest) -> None:
    (finding,) = modern.fix(context("eth0", "eth1"), NicNames())  # two drivers
    assert finding.severity is Severity.WARNING
    assert FIRST in finding.text
    assert "eth0, eth1" in finding.text
    assert not modern.has("/etc/systemd/network")


def test_logs_tell_what_hardware_does_not(modern: PlainGuest) -> None:
    modern.write(
        "/var/log/dmesg",
        f"[ 1.0] igb 0000:02:00.0: eth1: (PCIe:5.0Gb/s:Width x4) {FIRST}\n"
        f"[ 1.1] i40e 0000:81:00.1 eth0: MAC address: {SECOND.upper()}\n",
    )
    modern.fix(context("eth0", "eth1"), NicNames())
    assert pins(modern) == {"eth0": SECOND, "eth1": FIRST}


@pytest.mark.parametrize("more", ["", f"eth1: {SECOND}\n"])
def test_logs_that_contradict_themselves_are_no_proof(modern: PlainGuest, more: str) -> None:
    modern.write("/var/log/dmesg", f"eth0: {FIRST}\neth0: {SECOND}\n{more}")
    modern.fix(context("eth0", "eth1"), NicNames())
    assert not modern.has("/etc/systemd/network")


@pytest.mark.parametrize(
    "file",
    [
        {RULES: rule("lan0", FIRST)},
        {"/etc/systemd/network/10-lan.link": f"[Match]\nMACAddress={FIRST}\n[Link]\nName=lan0\n"},
        {
            "/etc/systemd/network/10-lan.link": (
                f"[Match]\nPermanentMACAddress={FIRST.upper().replace(':', '-')}\n"
                "[Link]\nName=lan0\n"
            )
        },
    ],
)
@pytest.mark.parametrize("configured", ["lan0", "eno1"])
def test_a_guest_that_pins_names_itself_is_left_alone(
    modern: PlainGuest, file: dict[str, str], configured: str
) -> None:
    for path, text in file.items():
        modern.write(path, text)
    draft, findings = modern.plan([PersistentRules(), NicNames()], context(configured))
    assert draft.edits() == []
    assert all(finding.severity is not Severity.DOWNGRADE for finding in findings)


def test_what_a_shadowed_link_file_sets_stays(modern: PlainGuest) -> None:
    modern.write(
        "/etc/systemd/network/50-wol.link",
        f"[Match]\nMACAddress={FIRST}\n[Link]\nWakeOnLan=magic\nNamePolicy=path\nMTUBytes=9000\n",
    )
    modern.fix(context("eno1"), NicNames())
    assert modern.text("/etc/systemd/network/01-p2v-eno1.link").endswith(
        "Name=eno1\nWakeOnLan=magic\nMTUBytes=9000\n"
    )


def test_without_facts_only_the_guests_own_word_counts(modern: PlainGuest) -> None:
    findings = modern.fix(context("eno1", Interface("eth5", FIRST), nics=()), NicNames())
    assert findings == []
    assert pins(modern) == {"eth5": FIRST}


def test_older_guests_get_a_rule_only_also_in_the_initramfs(old: PlainGuest) -> None:
    old.write(RULES, "# by hand\r\nX")
    draft, _ = old.plan([NicNames()], context("eno1"))
    old.fix(context("eno1"), NicNames())
    assert old.text(RULES).startswith("# by hand\r\nX\r\n# BEGIN p2v F40-nic-names\r\n")
    assert not old.has("/etc/systemd")
    assert draft.for_initramfs == {RULES: old.at(RULES).read_bytes()}


def test_very_old_udev_is_spoken_to_in_its_own_words(old: PlainGuest) -> None:
    path = "/etc/udev/rules.d/z25_persistent-net.rules"
    old.write(path, 'SUBSYSTEM=="net", DRIVERS=="?*", SYSFS{type}=="1", GOTO="x"\n')
    old.fix(context("eno1"), NicNames())
    assert f'SYSFS{{address}}=="{FIRST}", NAME="eno1"' in old.text(path)


def test_rhel_5_renames_by_hwaddr(tmp_path: Path) -> None:
    path = "/etc/sysconfig/network-scripts/ifcfg-eth0"
    guest = PlainGuest(tmp_path, {path: "DEVICE=eth0\nONBOOT=yes"})
    guest.at("/etc/udev/rules.d").mkdir(parents=True)
    eth0 = Interface("eth0", stack=NetworkStack.IFCFG_RH, config=path)
    nics = (Nic("eth0", FIRST, "bnx2", "0000:02:00.0"),)
    guest.fix(context(eth0, nics=nics, family=Family.RHEL), NicNames())
    assert guest.text(path) == f"DEVICE=eth0\nONBOOT=yes\nHWADDR={FIRST}\n"
    assert not guest.has(RULES)


@pytest.mark.parametrize("matched", ['KERNELS=="0000:02:00.0"', 'ID=="0000:02:00.0"'])
def test_a_rule_by_slot_becomes_one_by_mac(old: PlainGuest, matched: str) -> None:
    bad = f'SUBSYSTEM=="net", {matched}, NAME="eth0"\n'
    old.write(RULES, f"# mine\n{bad}")
    old.fix(context(), PersistentRules(), NicNames())
    assert old.text(RULES) == (
        f"# mine\n#p2v# {bad}# BEGIN p2v F41-persistent-rules\n{rule('eth0', FIRST)}"
        "# END p2v F41-persistent-rules\n"
    )


def test_a_rule_that_also_wants_the_driver_becomes_one_by_mac(old: PlainGuest) -> None:
    bad = f'SUBSYSTEM=="net", DRIVERS=="tg3", \\\n  ATTR{{address}}=="{FIRST}", NAME="eth0"\n'
    old.write(RULES, bad)
    old.fix(context("eth0"), PersistentRules(), NicNames())
    assert old.text(RULES).startswith('#p2v# SUBSYSTEM=="net", DRIVERS=="tg3", \\\n#p2v#   ATTR')
    assert old.text(RULES).count("NAME=") == 2


def test_names_of_interfaces_that_stay_behind_are_free_again(old: PlainGuest) -> None:
    rules = rule("eth0", THIRD) + rule("eth1", FIRST) + rule("eth1", SECOND) + rule("w", SECOND)
    old.write(RULES, rules)
    nics = (*NICS, Nic("usb0", THIRD, is_carried=False))
    old.fix(context(nics=nics), PersistentRules())
    lines = rules.splitlines(keepends=True)
    lines[0], lines[2] = f"#p2v# {lines[0]}", f"#p2v# {lines[2]}"
    assert old.text(RULES) == "".join(lines)


def test_rules_for_other_things_stay(old: PlainGuest) -> None:
    text = 'SUBSYSTEM=="block", KERNELS=="0000:02:00.0", NAME="x"\nKERNEL=="tun", NAME="net/%k"\n'
    old.write("/etc/udev/rules.d/60-a.rules", text)
    draft, findings = old.plan([PersistentRules(), NicNames()], context())
    assert draft.edits() == []
    assert findings == []


def test_a_rule_that_nobody_understands_is_said(old: PlainGuest) -> None:
    old.write(RULES, 'SUBSYSTEM=="net", KERNELS=="0000:09:00.0", NAME="eth0"\n')
    (finding,) = old.fix(context(), PersistentRules())
    assert "0000:09:00.0" in finding.text


def test_a_log_that_is_too_long_is_not_read(modern: PlainGuest) -> None:
    with modern.at("/etc/systemd").parent.joinpath("long").open("wb") as file:
        file.truncate(TEXT_MOST + 1)
    modern.at("/var/log").mkdir(parents=True)
    modern.at("/etc/long").rename(modern.at("/var/log/dmesg"))
    modern.fix(context("eno1"), NicNames())
    assert pins(modern) == {"eno1": FIRST}
