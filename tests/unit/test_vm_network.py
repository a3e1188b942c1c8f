"""``--network MAP``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.device.machine import Nic
from p2v_sync.errors import ConfigError
from p2v_sync.fixup.guest import Interface
from p2v_sync.vm.network import Network, Networks, parse_networks

BR0, LAN = Network("br0"), Network("lan", is_bridge=False)


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("br0", Networks({}, BR0)),
        ("net:lan", Networks({}, LAN)),
        ("eth0=br0", Networks({"eth0": BR0})),
        ("eth0=br0,eth1=net:lan", Networks({"eth0": BR0, "eth1": LAN})),
        (" eth0 = br0 , net:lan ", Networks({"eth0": BR0}, LAN)),
        ("00:26:B9:3A:7C:11=br0", Networks({"00:26:b9:3a:7c:11": BR0})),
    ],
)
def test_what_is_understood(text: str, networks: Networks) -> None:
    assert parse_networks(text) == networks


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "can't be the name"),
        ("eth0=", "can't be the name"),
        ("=br0", "names no interface"),
        ("a=b=br0", "names no interface"),
        ("eth0=br0,", "can't be the name"),
        ("br0,br1", "both br0 and br1 are for all"),
        ("eth0=br0,eth0=br1", "eth0 is there twice"),
        ("a-bridge-too-long", "longer than the 15"),
        ("net:$(reboot)", "can't be the name"),
        ("net:../x", "can't be the name"),
        ("br0;reboot", "can't be the name"),
        ("net:", "can't be the name"),
    ],
)
def test_what_is_not_understood_is_explained(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_networks(text)
    assert "eth0=br0" in (caught.value.hint or "")


@given(st.text())
def test_nothing_else_is_raised(text: str) -> None:
    try:
        parse_networks(text)
    except ConfigError:
        return


NICS = [Nic("eth0", "02:00:00:00:00:0a"), Nic("eth1", "02:00:00:00:00:0b")]


def test_a_name_is_the_guests_before_it_is_ours() -> None:
    """The live system found the two cards in another order than the guest."""
    swapped = [Interface("eth1", "02:00:00:00:00:0a"), Interface("eth0", "02:00:00:00:00:0b")]
    networks = parse_networks("eth0=br0,net:lan")
    assert [networks.of(nic, swapped) for nic in NICS] == [LAN, BR0]
    assert [networks.of(nic, []) for nic in NICS] == [BR0, LAN]
    by_mac = parse_networks("02:00:00:00:00:0b=br0")
    assert [by_mac.of(nic, swapped) for nic in NICS] == [None, BR0]


def test_an_interface_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="names eth7") as caught:
        parse_networks("eth7=br0").check(NICS, [])
    assert "eth0" in (caught.value.hint or "")
    parse_networks("eth1=br0").check(NICS, [])
