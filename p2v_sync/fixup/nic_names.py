"""Which name each network interface had in the guest: its configuration's word against the facts.

In falling order of certainty: what the guest itself pins or says, what its logs saw, what name the
hardware's place gives, and the one that is left.  What stays open is said, never guessed.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from p2v_sync.device.machine import Nic
from p2v_sync.fixup import ini, udev_rules
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Interface, NetworkStack
from p2v_sync.fixup.lines import with_block
from p2v_sync.fixup.plan import Context
from p2v_sync.fixup.shell_file import value_of

LINK_FILES = ("/etc/systemd/network", "/usr/lib/systemd/network", "/lib/systemd/network")
OUR_LINK = "01-p2v-"  # before netplan's 10-netplan-: of .link files only the first counts
OUR_RULES = "F40-nic-names"

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ is 16 with its NUL
_PHYSICAL = re.compile(r"eth\d+|en[a-zA-Z0-9]+|em\d+|p\d+p\d+|lan\d+")
_VIRTUAL = re.compile(
    r"lo|(bond|br|vlan|team|tun|tap|dummy|sit|gre|ppp|ib|wg|macvlan|ipvlan)\d+"
    r"|(virbr|docker|veth|vnet|lxcbr|lxdbr|vmbr|br-|wl|ww|wg).*|.*\.\d+"
)
_LOGS = ("/var/log/dmesg", "/var/log/dmesg.0", "/var/log/kern.log", "/var/log/messages")
_SEEN = re.compile(r"\b(eth\d+)(?::|/|\s)[^\n]{0,160}?\b([0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5})\b")
_PATH = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


@dataclass
class Names:
    """``of``: the configured interfaces' MACs; ``pinned``: what the guest itself sees to, MAC →
    name; ``open_names``: configured ones that no interface could be found for."""

    of: dict[str, str] = field(default_factory=dict)
    pinned: dict[str, str] = field(default_factory=dict)
    open_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Search:
    draft: Draft
    missing: list[str]  # names
    left: list[Nic]
    nics: list[Nic]  # also those that have their names already


def carried(context: Context) -> list[Nic]:
    """The machine's interfaces that the virtual machine will have."""
    return [nic for nic in context.machine.nics if nic.is_carried and _MAC.fullmatch(nic.mac)]


def find_names(draft: Draft, context: Context) -> Names:
    """Pair names with MACs.  Without facts of the machine only the guest's own word counts."""
    nics = carried(context)
    names = Names(pinned=pinned_names(draft))
    wanted = _wanted(draft, context)
    known = {nic.mac for nic in nics}
    pinned = {name: mac for mac, name in names.pinned.items() if not nics or mac in known}
    _pair(names, wanted, ((name, pinned.get(name, "")) for name in wanted))
    _pair(names, wanted, ((n, mac) for n, mac in wanted.items() if not nics or mac in known))
    for source in (_seen_in_logs, _computed, _enumerated, _the_last_one):
        left = [nic for nic in nics if nic.mac not in names.of.values()]
        missing = [name for name in wanted if name not in names.of]
        if left and missing:
            _pair(names, wanted, source(_Search(draft, missing, left, nics)))
    if nics:
        absent = {nic.name for nic in context.machine.nics if not nic.is_carried}
        names.open_names = tuple(n for n in wanted if n not in names.of and n not in absent)
    return names


def _pair(names: Names, wanted: Mapping[str, str], pairs: Iterable[tuple[str, str]]) -> None:
    """Take what is unambiguous: one name for one MAC."""
    found = {(name, mac) for name, mac in pairs if mac}
    by_name, by_mac = defaultdict(set), defaultdict(set)
    for name, mac in found:
        by_name[name].add(mac)
        by_mac[mac].add(name)
    for name in wanted:
        macs = by_name.get(name, set())
        if len(macs) != 1 or name in names.of:
            continue
        mac = next(iter(macs))
        if len(by_mac[mac]) == 1 and mac not in names.of.values():
            names.of[name] = mac


def _wanted(draft: Draft, context: Context) -> dict[str, str]:
    """Configured names of real interfaces → the MAC that the configuration has, or ''."""
    wanted = dict[str, str]()
    for interface in context.guest.interfaces:
        name, mac = interface.name, interface.mac.lower()
        below = re.split(r"[.:]", name)[0]  # eth0 of the VLAN eth0.5 and the alias eth0:1
        if below != name:
            name, mac = below, ""
        mac = mac if _MAC.fullmatch(mac) else ""
        is_real = _PHYSICAL.fullmatch(name) or (mac and _is_own_name(draft, interface))
        if _NAME.fullmatch(name) and is_real:
            wanted[name] = wanted.get(name) or mac
    return wanted


def _is_own_name(draft: Draft, interface: Interface) -> bool:
    """Whether a name that nothing gives by itself is an interface's, not just a configuration's."""
    if _VIRTUAL.fullmatch(interface.name):
        return False
    text = draft.text_or_empty(interface.config) if interface.config else ""
    if interface.stack is NetworkStack.IFCFG_RH:
        return value_of(text, "DEVICE") == interface.name
    if interface.stack is NetworkStack.NETPLAN:
        found = re.findall(r"\bset-name:\s*[\"']?([^\s\"',}]+)", text)
        return interface.name in found
    return True


# What the guest itself pins


def pinned_names(draft: Draft) -> dict[str, str]:
    """MAC → name, of the guest's own rules and .link files, without ours."""
    pinned = dict[str, str]()
    for path in draft.glob("/etc/udev/rules.d/*.rules"):
        for rule in udev_rules.name_rules(with_block(draft.text_or_empty(path), OUR_RULES, [])):
            if _MAC.fullmatch(rule.address) and not rule.hardware:
                pinned.setdefault(rule.address, rule.name)
    for text in own_links(draft):
        name = ini.values(text, "Link", "Name")
        if name:
            for mac in link_addresses(text):
                pinned[mac] = name[-1]
    return pinned


def own_links(draft: Draft) -> Iterator[str]:
    """The texts of the guest's .link files in the order in which systemd looks at them."""
    by_name: dict[str, str] = {}
    for directory in LINK_FILES:
        for path in draft.glob(f"{directory}/*.link"):
            by_name.setdefault(path.rpartition("/")[2], path)
    for name in sorted(by_name):
        if not name.startswith(OUR_LINK):
            yield draft.text_or_empty(by_name[name])


def link_addresses(text: str) -> list[str]:
    """The MACs that a .link file is for, as systemd.link(5) lets them be written."""
    words = " ".join(
        each.value
        for each in ini.settings(text)
        if each.section == "Match" and each.key in ("MACAddress", "PermanentMACAddress")
    )
    return [mac for each in words.split() if _MAC.fullmatch(mac := each.lower().replace("-", ":"))]


# What can be found out


def _seen_in_logs(search: _Search) -> Iterator[tuple[str, str]]:
    macs = {nic.mac for nic in search.left}
    for path in _LOGS:
        for name, mac in _SEEN.findall(search.draft.text_or_empty(path)):
            if name in search.missing and mac.lower() in macs:
                yield name, mac.lower()


def _computed(search: _Search) -> Iterator[tuple[str, str]]:
    for nic in search.left:
        known = {_plain(each) for each in _names_of(nic)}
        for name in search.missing:
            if _plain(name) in known:
                yield name, nic.mac


def _names_of(nic: Nic) -> Iterator[str]:
    """What this interface may be called; systemd.net-naming-scheme(7), biosdevname(1)."""
    if not re.fullmatch(r"eth\d+", nic.name):
        yield nic.name
    yield "enx" + nic.mac.replace(":", "")
    if onboard := re.fullmatch(r"eno(\d+)(np\d+)?", nic.name):
        yield f"em{onboard[1]}"
    if slot := re.fullmatch(r"ens(\d+)(?:f(\d+))?(np\d+)?", nic.name):
        yield f"p{slot[1]}p{int(slot[2] or 0) + 1}"
    if place := _PATH.fullmatch(nic.path):
        domain, bus, device, function = (int(each, 16) for each in place.groups())
        start = f"enP{domain}p" if domain else "enp"
        yield f"{start}{bus}s{device}f{function}"
        if function == 0:
            yield f"{start}{bus}s{device}"


def _plain(name: str) -> str:
    """Without what some versions of systemd add and others leave out."""
    return re.sub(r"^enP0p", "enp", re.sub(r"(?<=\d)np\d+$", "", name))


def _enumerated(search: _Search) -> Iterator[tuple[str, str]]:
    """ethN in the order of the bus: sure only where one driver has all of them."""
    in_order = sorted(search.nics, key=lambda nic: nic.path)
    is_sure = len({nic.driver for nic in in_order}) == 1
    if is_sure and all(_PATH.fullmatch(nic.path) for nic in in_order):
        yield from ((f"eth{number}", nic.mac) for number, nic in enumerate(in_order))


def _the_last_one(search: _Search) -> Iterator[tuple[str, str]]:
    if len(search.missing) == len(search.left) == 1:
        yield search.missing[0], search.left[0].mac
