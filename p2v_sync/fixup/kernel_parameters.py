"""Kernel parameters and modules that are for the physical machine's hardware."""

import re
from collections.abc import Iterator

from p2v_sync.fixup.boot_entries import change_command_lines, command_lines
from p2v_sync.fixup.boot_formats import Entry
from p2v_sync.fixup.command_line import CommandLine
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.lines import map_lines
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity
from p2v_sync.units import GIB, KIB, MIB

# What stays, and what to know about it then.
_WARNINGS = {
    "acpi=off": "without ACPI many virtual machines route no interrupts: choose the i440fx chipset",
    "noapic": "interrupts without an APIC may not arrive: remove it if devices don't answer",
    "nolapic": "only one processor is used",
    "pci=noacpi": "interrupts may not be routed: choose the i440fx chipset",
    "ip=ibft": "the physical machine's iSCSI adapter stays behind",
    "netroot": "the root comes from the network, which has to be there for the virtual machine",
    "rd.iscsi.firmware": "the physical machine's iSCSI adapter stays behind",
    "rd.iscsi.initiator": "the iSCSI target has to be there for the virtual machine",
    "rd.fcoe": "the physical machine's FCoE adapter stays behind",
}
_PROCESSORS = ("isolcpus", "nohz_full", "rcu_nocbs", "irqaffinity")
_PAGE_UNITS = {"K": KIB, "M": MIB, "G": GIB}
_MOST_IN_HUGE_PAGES = 0.6  # of all memory


class KernelParameters:
    """Takes out what harms in a virtual machine; says what may."""

    key = "F36-kernel-parameters"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        removed = set[str]()

        def change(line: CommandLine, _entry: Entry) -> None:
            line.map("clocksource", lambda value: _kept_clock(value, removed))
            line.map("idle", lambda value: _kept_idle(value, removed))

        problems = change_command_lines(draft, context.guest, change)
        yield from (self._finding(text) for text in problems)
        for token in sorted(removed):
            yield Finding(self.key, Severity.NOTE, f"{token} is for the physical machine: removed")
        warnings = dict[str, None]()
        for _, line in command_lines(draft, context.guest):
            warnings.update(dict.fromkeys(self._warnings(line, context)))
        yield from (self._finding(text) for text in warnings)

    def _finding(self, text: str) -> Finding:
        return Finding(self.key, Severity.WARNING, text)

    @staticmethod
    def _warnings(line: CommandLine, context: Context) -> Iterator[str]:
        for token, text in _WARNINGS.items():
            key, equals, value = token.partition("=")
            if key in line and (not equals or value in line.values(key)):
                yield f"the kernel parameter {token}: {text}"
        memory, cpus = context.machine.memory, context.machine.cpus
        if memory and _huge_pages(line) > memory * _MOST_IN_HUGE_PAGES:
            yield "the kernel reserves most of the memory as huge pages: give it as much as it had"
        for name in _PROCESSORS:
            numbers = [int(n) for n in re.findall(r"\d{1,5}", line.get(name) or "")]
            if cpus.model and max(numbers, default=0) >= cpus.count:
                yield f"the kernel parameter {name} is for more processors than there will be"


def _kept_clock(value: str, removed: set[str]) -> str | None:
    if value in ("kvm-clock", "xen"):
        return value
    removed.add(f"clocksource={value}")
    return None


def _kept_idle(value: str, removed: set[str]) -> str | None:
    if value != "poll":  # keeps the host's processors busy
        return value
    removed.add("idle=poll")
    return None


def _huge_pages(line: CommandLine) -> int:
    """Bytes.  ``hugepagesz`` is for the ``hugepages`` behind it."""
    size, total = 2 * MIB, 0
    for token in line.tokens():
        key, _, value = token.partition("=")
        if key in ("hugepagesz", "default_hugepagesz"):
            found = re.fullmatch(r"(\d{1,6})([KMG])", value.upper())
            size = int(found[1]) * _PAGE_UNITS[found[2]] if found else size
        elif key == "hugepages" and re.fullmatch(r"\d{1,12}", value):
            total += int(value) * size
    return total


class HardwareModules:
    """Modules of watchdogs and sensors are not loaded by name: that fails, and shows as failed."""

    key = "F37-hardware-modules"

    _LISTS = ("/etc/modules", "/etc/modules-load.d/*.conf")
    _MODULES = re.compile(
        r"ipmi_\w+|coretemp|k8temp|k10temp|fam15h_power|nct6[67]\d\d|it87|w83\d+\w*|lm\d+|jc42|adt\d+"
        r"|hpwdt|hpilo|iTCO_wdt|sp5100_tco|gpio_ich|i2c_i801|i5k_amb|i5500_temp|dcdbas"
        r"|dell_rbu|acpi_power_meter|power_meter|megaraid_sas_ioctl|mei(_me)?|eeepc\w*|thinkpad_acpi"
    )
    _CLUSTERS = ("/etc/sysconfig/sbd", "/etc/default/sbd")

    def plan(self, draft: Draft, _context: Context) -> Iterator[Finding]:
        for pattern in self._LISTS:
            for path in draft.glob(pattern):
                text = draft.text_or_empty(path)
                new = map_lines(text, self._kept)
                if new != text:
                    draft.write(path, new)
        for path in self._CLUSTERS:
            if draft.exists(path):
                yield Finding(
                    self.key,
                    Severity.WARNING,
                    f"{path}: the cluster fences by a watchdog or a shared disk",
                    "give the virtual machine a watchdog (i6300esb) before the first start",
                )

    def _kept(self, line: str) -> str | None:
        words = line.split()
        is_of_hardware = words and self._MODULES.fullmatch(words[0].replace("-", "_"))
        return None if is_of_hardware else line


FIXUPS: tuple[Fixup, ...] = (KernelParameters(), HardwareModules())
