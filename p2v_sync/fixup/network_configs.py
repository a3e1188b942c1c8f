"""Network configurations that name hardware which the virtual machine won't have."""

import fnmatch
import re
from collections.abc import Callable, Iterator

from p2v_sync.device.machine import Nic
from p2v_sync.fixup import ini, nic_names
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Interface, NetworkStack
from p2v_sync.fixup.lines import (
    body,
    comment_out,
    ending,
    fields,
    map_lines,
    newline_of,
    split_lines,
    with_block,
)
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity
from p2v_sync.fixup.shell_file import value_of, with_value

_NETPLAN = "/etc/netplan/*.yaml"
_KEYFILES = "/etc/NetworkManager/system-connections/*"
_UNITS = ("/etc/systemd/network/*.network", "/etc/systemd/network/*.link")
_IFUPDOWN = ("/etc/network/interfaces", "/etc/network/interfaces.d/*")
_IFCFG = ("/etc/sysconfig/network-scripts/ifcfg-*", "/etc/sysconfig/network/ifcfg-*")
_ALL = (_NETPLAN, _KEYFILES, "/etc/systemd/network/*", *_IFUPDOWN, *_IFCFG, "/etc/modprobe.d/*")

_BY_BUS = "/etc/sysconfig/network/ifcfg-eth-bus-pci-*"
_YAML_DRIVER = re.compile(r"(?P<indent>[ ]+)driver:[ ]*[\"']?(?P<driver>[\w-]+)[\"']?[ ]*(#.*)?")


def _matching(nics: list[Nic], *, path: str = "", driver: str = "") -> list[Nic]:
    """Of ``nics`` those whose udev path or driver one of the patterns is for."""
    paths, drivers = re.split(r"[;\s]+", path), re.split(r"[;\s]+", driver)
    return [
        nic
        for nic in nics
        if (any(fnmatch.fnmatchcase(f"pci-{nic.path}", each) for each in paths))
        or (nic.driver and any(fnmatch.fnmatchcase(nic.driver, each) for each in drivers))
    ]


class HardwareMatches:
    """What is for the interface in a slot, or with a driver, is for the one with its MAC."""

    key = "F42-hardware-matches"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        nics = nic_names.carried(context)
        if not nics:
            return
        self._rename(draft, nics)
        for path in draft.glob(_KEYFILES):
            yield from self._edit_sections(draft, path, nics, ("match", "ethernet", "mac-address"))
        for pattern in _UNITS:
            for path in draft.glob(pattern):
                yield from self._edit_sections(draft, path, nics, ("Match", "Match", "MACAddress"))
        for path in draft.glob(_NETPLAN):
            yield from self._edit_netplan(draft, path, nics)
        yield from self._options(draft)

    def _unclear(self, path: str, value: str) -> Finding:
        return Finding(
            self.key,
            Severity.WARNING,
            f"{path} is for hardware that the virtual machine won't have: {value}",
            "let it match the interface's MAC or name",
        )

    @staticmethod
    def _rename(draft: Draft, nics: list[Nic]) -> None:
        """SLES 9 and 10 look for these by slot or by MAC."""
        for path in draft.glob(_BY_BUS):
            found = [nic for nic in nics if path.endswith(f"-{nic.path}")]
            to = f"/etc/sysconfig/network/ifcfg-eth-id-{found[0].mac}" if found else ""
            if to and not draft.exists(to):
                draft.rename(path, to)

    def _edit_sections(
        self, draft: Draft, path: str, nics: list[Nic], names: tuple[str, str, str]
    ) -> Iterator[Finding]:
        """``names``: the section that matches, and where which key has the MAC."""
        section, place, key = names
        text = draft.text_or_empty(path)
        found = [
            each
            for each in ini.settings(text)
            if each.section == section and each.key.lower() in ("path", "driver")
        ]
        matched = {each.line: _matching(nics, **{each.key.lower(): each.value}) for each in found}
        hit = {line: macs for line, macs in matched.items() if macs}
        if not hit:
            return
        common = [nic for nic in nics if all(nic in macs for macs in hit.values())]
        is_named = _names_an_interface(text, section)
        if not is_named and len(common) != 1:
            yield self._unclear(path, ", ".join(each.value for each in found))
            return
        lines = enumerate(split_lines(text))
        new = "".join(comment_out(line) if number in hit else line for number, line in lines)
        added = [] if is_named else [f"[{place}]", f"{key}={common[0].mac}"]
        draft.write(path, with_block(new, self.key, added))

    def _edit_netplan(self, draft: Draft, path: str, nics: list[Nic]) -> Iterator[Finding]:
        text = draft.text_or_empty(path)
        unclear, has_mac = list[str](), "macaddress:" in text
        newline = newline_of(text)

        def changed(line: str) -> str:
            found = _YAML_DRIVER.fullmatch(body(line))
            hit = _matching(nics, driver=found["driver"]) if found else []
            if found is None or not hit:
                return line
            if len(hit) != 1 or has_mac:
                unclear.append(found["driver"])
                return line
            # In the same mapping, so in the same column.
            return (
                f"{comment_out(body(line))}{newline}{found['indent']}macaddress: {hit[0].mac}"
                + (ending(line))
            )

        new = "".join(changed(line) for line in split_lines(text))
        if new != text:
            draft.write(path, new)
        for driver in unclear:
            yield self._unclear(path, f"driver {driver}")

    def _options(self, draft: Draft) -> Iterator[Finding]:
        tuning = re.compile(
            r"^[ \t]*(ETHTOOL_OPT|(pre-|post-)?up\s.*ethtool|offload-)", re.MULTILINE
        )
        found = [path for path in _files(draft) if tuning.search(draft.text_or_empty(path))]
        if found:
            yield Finding(
                self.key,
                Severity.NOTE,
                f"the tuning of interfaces (ethtool) may fail in the virtual machine:"
                f" {', '.join(found)}",
            )


def _names_an_interface(text: str, section: str) -> bool:
    named = {
        ("connection", "interface-name"),
        ("ethernet", "mac-address"),
        ("802-3-ethernet", "mac-address"),
        ("match", "interface-name"),
        ("Match", "Name"),
        ("Match", "OriginalName"),
        ("Match", "MACAddress"),
        ("Match", "PermanentMACAddress"),
    }
    # OriginalName=* is for all: without the rest it would be for interfaces it was not for.
    return any(
        (each.section, each.key) in named and each.value not in ("", "*")
        for each in ini.settings(text)
        if each.section == section or section == "match"
    )


def _files(draft: Draft) -> list[str]:
    return sorted({path for pattern in _ALL for path in draft.glob(pattern)})


class AbsentNics:
    """Nothing waits for interfaces that stay behind, as those of a service processor."""

    key = "F44-absent-nics"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        absent = {nic.name for nic in context.machine.nics if not nic.is_carried}
        absent -= {nic.name for nic in context.machine.nics if nic.is_carried}
        interfaces = [each for each in context.guest.interfaces if each.name in absent]
        editors: dict[NetworkStack, Callable[[str, str], str]] = {
            NetworkStack.IFUPDOWN: self._ifupdown,
            NetworkStack.IFCFG_RH: self._ifcfg_rh,
            NetworkStack.IFCFG_SUSE: self._ifcfg_suse,
            NetworkStack.NETPLAN: self._netplan,
            NetworkStack.NETWORKD: self._networkd,
        }
        for interface in interfaces:
            editor = editors.get(interface.stack)
            text = draft.text_or_empty(interface.config) if interface.config else ""
            new = editor(text, interface.name) if editor and text else text
            if new != text:
                draft.write(interface.config, new)
            yield self._finding(interface)

    def _finding(self, interface: Interface) -> Finding:
        where = f" ({interface.config})" if interface.config else ""
        return Finding(
            self.key,
            Severity.NOTE,
            f"{interface.name}{where} is configured, but stays behind with the physical machine",
        )

    def _ifupdown(self, text: str, name: str) -> str:
        """``auto`` waits and fails, ``allow-hotplug`` doesn't; interfaces(5)."""
        is_shared = False

        def changed(line: str) -> str:
            nonlocal is_shared
            words = fields(line)
            if words[:1] not in (["auto"], ["allow-auto"]) or name not in words[1:]:
                return line
            if len(words) == 2:
                return line.replace(words[0], "allow-hotplug", 1)
            is_shared = True
            return re.sub(rf"(?<![ \t])[ \t]++{re.escape(name)}(?=[ \t]|$)", "", line, count=1)

        new = map_lines(text, changed)
        block = f"{self.key} {name}"
        return with_block(new, block, [f"allow-hotplug {name}"]) if is_shared else new

    @staticmethod
    def _ifcfg_rh(text: str, _name: str) -> str:
        is_started = (value_of(text, "ONBOOT") or "yes").lower() != "no"
        return with_value(text, "ONBOOT", "no") if is_started else text

    @staticmethod
    def _ifcfg_suse(text: str, _name: str) -> str:
        is_waited_for = value_of(text, "STARTMODE") in ("auto", "onboot", "on", "boot")
        return with_value(text, "STARTMODE", "hotplug") if is_waited_for else text

    @staticmethod
    def _netplan(text: str, name: str) -> str:
        """In its block; what is written in braces stays."""
        start = re.compile(
            rf"^(?P<indent> +)[\"']?{re.escape(name)}[\"']?: *\r?\n(?P<more> +)", re.M
        )
        found = start.search(text)
        if found is None or len(found["more"]) <= len(found["indent"]):
            return text
        rest = text[found.start("more") :]
        block = re.match(rf"(?:{found['more']}[^\n]*(?:\n|\Z)|[ \t]*\r?\n)*", rest)
        if block and re.search(r"^ +optional:", block[0], re.MULTILINE):
            return text
        at = found.start("more")
        return f"{text[:at]}{found['more']}optional: true{newline_of(text)}{text[at:]}"

    def _networkd(self, text: str, _name: str) -> str:
        if ini.values(text, "Link", "RequiredForOnline"):
            return text
        return with_block(text, self.key, ["[Link]", "RequiredForOnline=no"])


class NetworkChecks:
    """What depends on the switch behind the virtual machine."""

    key = "F43-network-checks"

    _KINDS = (
        (
            r"802\.3ad|\bmode[ \t]{0,8}[=:]?[ \t]{0,8}4\b",
            "bonding by LACP has no partner on a virtual switch",
            "give the virtual machine one interface, or use active-backup",
        ),
        (
            r"\bbalance-(rr|xor|tlb|alb)\b",
            "bonding that balances needs a virtual switch that lets addresses move",
            "use active-backup, or allow forged addresses (trustGuestRxFilters)",
        ),
        (
            r"(?i)\bmtu(bytes)?\b[\"' \t:=]{1,4}(?!1500\b)(1[5-9]\d\d|[2-9]\d{3})\b",
            "jumbo frames need a bridge with the same MTU",
            "set the MTU of the host's bridge",
        ),
        (
            r"(?i)\bvlan(_id|-raw-device|s?:)|\bvlan=yes|^\[vlan\]|\bKind=vlan"
            r"|\b(iface|auto)[ \t]+\S{1,15}\.\d+\b",
            "tagged VLANs need a bridge that passes them",
            "connect the virtual machine to a trunk",
        ),
        (
            r"sriov_numvfs|\bvirtual-function-count\b|sriov-",
            "virtual functions (SR-IOV) don't exist in the virtual machine",
            "give it interfaces instead",
        ),
    )

    def plan(self, draft: Draft, _context: Context) -> Iterator[Finding]:
        texts = {path: _without_comments(draft.text_or_empty(path)) for path in _files(draft)}
        for pattern, text, hint in self._KINDS:
            kind = re.compile(pattern, re.MULTILINE)
            found = [path for path, content in texts.items() if kind.search(content)]
            if found:
                yield Finding(self.key, Severity.WARNING, f"{text}: {', '.join(found)}", hint)


def _without_comments(text: str) -> str:
    return re.sub(r"^[ \t]*[#;].*$", "", text, flags=re.MULTILINE)


FIXUPS: tuple[Fixup, ...] = (HardwareMatches(), AbsentNics(), NetworkChecks())
