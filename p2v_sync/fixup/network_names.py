"""Network interfaces keep their names: by MAC, which the virtual machine has from the physical one.

Predictable names come from slots (eno1, enp3s0f1) and change with the machine; systemd.link(5).
"""

import re
from collections.abc import Iterator, Mapping

from p2v_sync.device.machine import Nic
from p2v_sync.fixup import ini, nic_names, udev_rules
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Family, Generator, NetworkStack
from p2v_sync.fixup.lines import comment_out, split_lines, with_block
from p2v_sync.fixup.nic_names import OUR_LINK, OUR_RULES, Names
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity
from p2v_sync.fixup.shell_file import value_of, with_value
from p2v_sync.fixup.udev_rules import NameRule

_RULES = "/etc/udev/rules.d"
_RULE_FILES = (
    "70-persistent-net.rules",
    "30-net_persistent_names.rules",
    "z25_persistent-net.rules",
)
_GENERATORS = ("75-persistent-net-generator.rules", "31-net_create_names.rules")
_KEPT_OF_SHADOWED = ("WakeOnLan", "MTUBytes")


def rules_file(draft: Draft) -> str:
    """Where this guest's udev keeps the names of interfaces."""
    for name in _RULE_FILES:
        if draft.exists(f"{_RULES}/{name}"):
            return f"{_RULES}/{name}"
    return f"{_RULES}/{_RULE_FILES[0]}"


def speaks_old_udev(draft: Draft) -> bool:
    """SYSFS{} where ATTR{} came later (udev 098); told by the rules that are there."""
    texts = [
        draft.text_or_empty(path)
        for directory in (_RULES, "/lib/udev/rules.d")
        for path in draft.glob(f"{directory}/*.rules")
    ]
    return any("SYSFS{" in text for text in texts) and not any("ATTR{" in text for text in texts)


class PersistentRules:
    """Rules that bind a name to a slot or a driver bind it to the MAC; those of interfaces that
    stay behind go, or the name stays reserved and what comes is called eth2."""

    key = "F41-persistent-rules"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        nics = nic_names.carried(context)
        if not nics:
            return
        is_old = speaks_old_udev(draft)
        taken = dict[str, str]()
        for path in draft.glob(f"{_RULES}/*.rules"):
            text = draft.text_or_empty(path)
            dropped, pairs = set[int](), list[tuple[str, str]]()
            for rule in udev_rules.name_rules(text):
                mac = _address(rule, nics)
                if not mac:
                    yield from self._unclear(rule, path)
                elif self._is_right(rule, mac, nics, taken):
                    continue
                else:
                    dropped.update(rule.lines)
                    if rule.hardware and taken.get(rule.name) == mac:
                        pairs.append((rule.name, mac))
            if dropped:
                lines = enumerate(split_lines(text))
                commented = "".join(comment_out(t) if n in dropped else t for n, t in lines)
                rules = [udev_rules.written(*pair, is_old=is_old) for pair in pairs]
                draft.write(path, with_block(commented, self.key, _block(text, self.key) + rules))

    @staticmethod
    def _is_right(rule: NameRule, mac: str, nics: list[Nic], taken: dict[str, str]) -> bool:
        """Whether the rule can stay.  Notes the name as taken when it is for one that comes."""
        if all(nic.mac != mac for nic in nics) or taken.setdefault(rule.name, mac) != mac:
            return False
        return not rule.hardware

    def _unclear(self, rule: NameRule, path: str) -> Iterator[Finding]:
        if rule.hardware:
            yield Finding(
                self.key,
                Severity.WARNING,
                f"{path} names {rule.name} by hardware that the virtual machine won't have: "
                + ", ".join(rule.hardware),
                "write a rule with its MAC",
            )


def _address(rule: NameRule, nics: list[Nic]) -> str:
    """The MAC that a rule is for, by itself or by the slot that it names; '' for neither."""
    slots = {nic.path: nic.mac for nic in nics if nic.path}
    found = [slots[each] for each in rule.hardware if each in slots]
    return rule.address or (found[0] if found else "")


def _block(text: str, key: str) -> list[str]:
    """The lines of a framed block."""
    text = text.replace("\r\n", "\n")
    _, begin, rest = text.partition(f"# BEGIN p2v {key}\n")
    inside, end, _ = rest.partition(f"# END p2v {key}")
    return inside.splitlines() if begin and end else []


class NicNames:
    """Each configured interface keeps its name."""

    key = OUR_RULES

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        names = nic_names.find_names(draft, context)
        new = dict[str, str]()
        for name, mac in sorted(names.of.items()):
            pinned = names.pinned.get(mac, name)
            if pinned != name:
                yield self._note(f"{mac} stays {pinned}, as the guest has it; {name} is configured")
            elif mac not in names.pinned:
                new[name] = mac
        self._write_links(draft, new)
        if _renames_by_hwaddr(draft, context):
            self._write_hwaddr(draft, context, new)
        else:
            self._write_rules(draft, context, new)
        yield from self._open(names, context)
        yield from self._order(names, context)

    def _note(self, text: str) -> Finding:
        return Finding(self.key, Severity.NOTE, text)

    @staticmethod
    def _write_links(draft: Draft, names: Mapping[str, str]) -> None:
        if not has_link_files(draft):
            return
        for name, mac in names.items():
            path = f"/etc/systemd/network/{OUR_LINK}{name}.link"
            kept = "".join(f"{line}\n" for line in _shadowed(draft, mac))
            text = f"[Match]\nMACAddress={mac}\n\n[Link]\nName={name}\n{kept}"
            draft.write(path, text)
            # There udev would rename first, and then not again (systemd issues 9006, 9807).
            draft.want_in_initramfs(path, text.encode("latin-1"))

    @staticmethod
    def _write_rules(draft: Draft, context: Context, names: Mapping[str, str]) -> None:
        """Also where .link files work: some versions ignore these for what was renamed before."""
        path = rules_file(draft)
        if not draft.is_directory(_RULES):
            return
        text = draft.text_or_empty(path)
        is_old = speaks_old_udev(draft)
        rules = [udev_rules.written(*pair, is_old=is_old) for pair in names.items()]
        new = with_block(text, OUR_RULES, rules)
        if new == text and not rules:
            return
        draft.write(path, new)
        in_initramfs = (Generator.DRACUT, Generator.INITRAMFS_TOOLS)
        if not has_link_files(draft) and context.guest.generator in in_initramfs:
            draft.want_in_initramfs(path, new.encode("latin-1"))

    @staticmethod
    def _write_hwaddr(draft: Draft, context: Context, names: Mapping[str, str]) -> None:
        for interface in context.guest.interfaces:
            is_ifcfg = interface.stack is NetworkStack.IFCFG_RH and interface.name in names
            text = draft.text_or_empty(interface.config) if is_ifcfg else ""
            if text and value_of(text, "HWADDR") is None:
                draft.write(interface.config, with_value(text, "HWADDR", names[interface.name]))

    def _open(self, names: Names, context: Context) -> Iterator[Finding]:
        if names.open_names:
            taken = names.of.values()
            left = [nic for nic in nic_names.carried(context) if nic.mac not in taken]
            macs = ", ".join(f"{nic.mac} ({nic.name})" for nic in left) or "none"
            yield Finding(
                self.key,
                Severity.WARNING,
                f"which network interface {', '.join(names.open_names)} was is not known;"
                f" left are {macs}",
                "after the first start write a .link file with MACAddress= and Name=",
            )

    def _order(self, names: Names, context: Context) -> Iterator[Finding]:
        """Since udev 209 names of the kernel's own kind can't be swapped."""
        by_mac = {mac: name for name, mac in names.of.items()} | names.pinned
        found = [by_mac.get(nic.mac, "") for nic in nic_names.carried(context)]
        numbers = [int(name[3:]) for name in found if re.fullmatch(r"eth\d+", name)]
        if numbers != sorted(numbers):
            in_order = ", ".join(sorted(filter(None, found)))
            yield self._note(
                f"the virtual machine's interfaces have to come in this order: {in_order}"
            )


def _renames_by_hwaddr(draft: Draft, context: Context) -> bool:
    """RHEL 4 and 5: the network scripts do it; their udev may not know the rules of later ones."""
    is_red_hat = context.guest.distribution.family in (Family.RHEL, Family.FEDORA)
    makes_rules = any(draft.exists(f"/lib/udev/rules.d/{each}") for each in _GENERATORS)
    return is_red_hat and not makes_rules and not has_link_files(draft)


def has_link_files(draft: Draft) -> bool:
    """Whether this guest's udev reads .link files (systemd 209 and newer)."""
    return any(draft.exists(f"{each}/99-default.link") for each in nic_names.LINK_FILES)


def _shadowed(draft: Draft, mac: str) -> Iterator[str]:
    """What the guest's own .link file for that interface sets: only the first one counts."""
    for text in nic_names.own_links(draft):
        matches = [each for each in ini.settings(text) if each.section == "Match"]
        is_for_all = [(each.key, each.value) for each in matches] == [("OriginalName", "*")]
        if mac in nic_names.link_addresses(text) or is_for_all:
            for each in ini.settings(text):
                if each.section == "Link" and each.key in _KEPT_OF_SHADOWED:
                    yield f"{each.key}={each.value}"
            return


FIXUPS: tuple[Fixup, ...] = (PersistentRules(), NicNames())
