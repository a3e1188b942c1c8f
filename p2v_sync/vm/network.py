"""What the virtual machine's network interfaces are connected to: ``--network MAP``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2v_sync.device.machine import Nic
from p2v_sync.device.nics import parse_mac
from p2v_sync.errors import ConfigError
from p2v_sync.fixup.guest import Interface

_HINT = "write it like br0, or net:default, or eth0=br0,eth1=net:default"
_BRIDGE_MOST = 15  # IFNAMSIZ - 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Network:
    """A bridge of the host, or a network that libvirt (or Kubernetes) knows by ``name``."""

    name: str
    is_bridge: bool = True

    def __str__(self) -> str:
        return self.name if self.is_bridge else f"net:{self.name}"


@dataclass(frozen=True)
class Networks:
    """``by_nic``: an interface's name or address → its network; ``default``: that of all others.

    Without a default the hypervisor's usual one is taken.
    """

    by_nic: Mapping[str, Network] = field(default_factory=dict)
    default: Network | None = None

    def of(self, nic: Nic, interfaces: Sequence[Interface]) -> Network | None:
        """The network of a physical interface, None for the hypervisor's usual one.

        A name is first the one that the guest uses for the interface with that address.
        """
        for name in _names(nic, interfaces):
            if name in self.by_nic:
                return self.by_nic[name]
        return self.default

    def check(self, nics: Sequence[Nic], interfaces: Sequence[Interface]) -> None:
        """Raises ConfigError when an interface is named that the machine does not have."""
        known = [name for nic in nics for name in _names(nic, interfaces)]
        for name in self.by_nic:
            if name not in known:
                there = ", ".join(dict.fromkeys(known)) or "none"
                raise ConfigError(
                    f"--network names {name}, and there is no such interface",
                    hint=f"there are: {there}",
                )


def _names(nic: Nic, interfaces: Sequence[Interface]) -> list[str]:
    in_guest = [each.name for each in interfaces if each.mac and each.mac == nic.mac]
    taken = {each.name for each in interfaces if each.mac}
    # The live system may call another card what the guest calls this one.
    own = [nic.name] if nic.name not in taken else []
    return [nic.mac, *in_guest, *own]


def parse_networks(text: str) -> Networks:
    """``MAP``: NETWORK for all, or INTERFACE=NETWORK,… with at most one plain NETWORK for the rest.

    INTERFACE is a name or a MAC address; NETWORK is the name of a bridge, or ``net:`` and the name
    of a network.  Raises ConfigError.
    """
    by_nic: dict[str, Network] = {}
    default = None
    for part in text.split(","):
        nic, is_for_one, name = part.strip().rpartition("=")
        network = _parse_network(name.strip(), text)
        if not is_for_one:
            if default is not None:
                raise _error(text, f"both {default} and {network} are for all interfaces")
            default = network
            continue
        key = parse_mac(nic) or nic.strip()
        if not key or "=" in key:
            raise _error(text, f"{part.strip()!r} names no interface")
        if key in by_nic:
            raise _error(text, f"{key} is there twice")
        by_nic[key] = network
    return Networks(by_nic, default)


def _parse_network(text: str, whole: str) -> Network:
    is_bridge = not text.startswith("net:")
    name = text.removeprefix("net:")
    if _NAME.fullmatch(name) is None:
        raise _error(whole, f"{name!r} can't be the name of a network")
    if is_bridge and len(name) > _BRIDGE_MOST:
        raise _error(whole, f"{name} is longer than the {_BRIDGE_MOST} letters of a bridge")
    return Network(name, is_bridge)


def _error(whole: str, reason: str) -> ConfigError:
    return ConfigError(f"--network {whole!r}: {reason}", hint=_HINT)
