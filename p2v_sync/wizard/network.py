"""Getting the live system online, by iproute2 and dhclient: nothing is kept anywhere."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from p2v_sync import run
from p2v_sync.errors import CommandError, NetworkError
from p2v_sync.wizard.settings import Value

_DHCP_WITHIN_S = 60.0
_RESOLV_CONF = Path("/etc/resolv.conf")
_BOND = "p2vbond"


def commands(values: Mapping[str, Value], interfaces: Sequence[str]) -> Iterator[list[str]]:
    """What sets up the network that ``values`` describe.  Pure.

    ``interfaces``: those there are; the first one counts where none is named.
    """
    mode = values.get("network.mode", "none")
    if mode == "none":
        return
    device = str(values.get("network.interface") or (interfaces[0] if interfaces else ""))
    members = cast("tuple[str, ...]", values.get("network.bond", ()))
    if members:
        yield from _bond(members)
        device = _BOND
    yield ["ip", "link", "set", device, "up"]
    if vlan := values.get("network.vlan"):
        name = f"{device}.{vlan}"
        yield ["ip", "link", "add", "link", device, "name", name, "type", "vlan", "id", str(vlan)]
        yield ["ip", "link", "set", name, "up"]
        device = name
    if mode == "dhcp":
        yield ["dhclient", "-1", "-v", device]
        return
    yield ["ip", "address", "replace", str(values["network.address"]), "dev", device]
    if gateway := values.get("network.gateway"):
        yield ["ip", "route", "replace", "default", "via", str(gateway), "dev", device]


def _bond(members: Sequence[str]) -> Iterator[list[str]]:
    # active-backup needs nothing of the switch (Documentation/networking/bonding.rst).
    yield ["ip", "link", "add", _BOND, "type", "bond", "mode", "active-backup", "miimon", "100"]
    for member in members:
        yield ["ip", "link", "set", member, "down"]
        yield ["ip", "link", "set", member, "master", _BOND]


def bring_up(values: Mapping[str, Value], interfaces: Sequence[str]) -> None:
    """Raises NetworkError."""
    if values.get("network.mode", "none") != "none" and not interfaces:
        raise NetworkError("this machine has no network interface", hint="is its driver loaded?")
    for argv in commands(values, interfaces):
        try:
            run.capture(argv, timeout_s=_DHCP_WITHIN_S)
        except CommandError as error:
            if argv[0] == "dhclient":
                text = f"no DHCP server answered on {argv[-1]}"
                hint = "look at cable and VLAN, or give an address of your own"
                raise NetworkError(text, hint=hint) from error
            if "File exists" in error.message:
                continue  # the bond or VLAN of an earlier try
            raise NetworkError(f"the network can't be set up: {error.message}") from error
    servers = cast("tuple[str, ...]", values.get("network.dns", ()))
    if servers:
        _RESOLV_CONF.write_text("".join(f"nameserver {server}\n" for server in servers))
