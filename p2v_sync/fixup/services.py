"""Services that are for the physical machine are not started any more; nothing is uninstalled.

A unit is masked (systemctl(1)), a script's start links become stop links (chkconfig(8)), a job is
overridden (Upstart's init(5)), a link in a run level goes (OpenRC).
"""

import fnmatch
import re
from collections.abc import Iterator

from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Guest, Init
from p2v_sync.fixup.lines import newline_of
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity

_UNITS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_SCRIPTS = ("/etc/init.d", "/etc/rc.d/init.d")
_RUN_LEVELS = ("/etc/rc.d", "/etc/init.d", "/etc")  # where rc3.d is
_JOBS = "/etc/init"

_AGENTS = (
    # HP
    "hp-health", "hp-asrd", "hp-snmp-agents", "hpsmhd", "hp-ams", "amsd", "smad", "smad_rev",
    "ahslog", "ahslogd", "mr_cpqScsi", "mr_cpqSasIoctl", "hpssa*", "hpasm*", "cpq*",
    # Dell
    "dataeng", "dsm_sa_*", "dsm_om_*", "instsvcdrv", "dcismeng", "srvadmin-*", "mptctl", "dcism*",
    # IBM, Lenovo
    "ibmasm", "ibmspd", "cimlistener", "wmicimserver", "xclarity*",
    # RAID controllers
    "MegaPop", "lsi_mrdsnmpd", "lsi_mrdsnmpagent", "msm_profile", "mrmonitor", "vivaldiframeworkd",
    "arcconf", "aacraid*", "stor_agent", "StorMan*", "3dm2", "SD5",
    # Service processors, sensors, frequencies
    "ipmi", "ipmievd", "ipmidetectd", "bmc-watchdog", "openipmi", "ipmiutil*", "mcelog", "mcelogd",
    "edac", "edac-utils", "smartd", "smartmontools", "hddtemp", "lm_sensors", "lm-sensors",
    "sensord", "fancontrol", "thermald", "i8kmon", "cpuspeed", "powernowd", "cpufreqd",
    # Cards that stay behind
    "nvidia-persistenced", "nvidia-fabricmanager", "nvidia-powerd", "vpp", "bolt",
)  # fmt: skip


def runs_systemd(draft: Draft, guest: Guest) -> bool:
    if guest.init is not Init.UNKNOWN:
        return guest.init is Init.SYSTEMD
    return any(draft.exists(f"{each}/systemd") for each in ("/usr/lib/systemd", "/lib/systemd"))


def services(draft: Draft, guest: Guest) -> list[str]:
    """The names of all that can be started, whether it is or not."""
    found = {name for directory in _SCRIPTS for name in draft.names(directory)}
    if runs_systemd(draft, guest):
        units = (name for directory in _UNITS for name in draft.names(directory))
        found |= {name.removesuffix(".service") for name in units if name.endswith(".service")}
    else:
        found |= {n.removesuffix(".conf") for n in draft.names(_JOBS) if n.endswith(".conf")}
    return sorted(found)


def is_started(draft: Draft, guest: Guest, name: str) -> bool:
    """Whether the system starts it by itself."""
    if runs_systemd(draft, guest):
        wanted = f"{_UNITS[0]}/*.wants/{name}.service", f"/etc/rc[2-5].d/S[0-9][0-9]{name}"
        is_masked = draft.is_link(f"{_UNITS[0]}/{name}.service") and not _is_unit(draft, name)
        return not is_masked and any(draft.glob(each) for each in wanted)
    links = _start_links(draft, name) or draft.glob(f"/etc/runlevels/*/{name}")
    return bool(links) or (draft.exists(f"{_JOBS}/{name}.conf") and not _is_manual(draft, name))


def disable(draft: Draft, guest: Guest, name: str) -> None:
    """Let the system not start ``name``, as its init has it."""
    if runs_systemd(draft, guest):
        _mask(draft, name)
        return
    for link in _start_links(draft, name):
        _stop_instead(draft, link)
    if draft.exists(f"{_JOBS}/{name}.conf") and not _is_manual(draft, name):
        path = f"{_JOBS}/{name}.override"
        text = draft.text(path) if draft.exists(path) else ""
        start = newline_of(text) if text and not text.endswith("\n") else ""
        draft.write(path, f"{text}{start}manual\n")
    for link in draft.glob(f"/etc/runlevels/*/{name}"):
        draft.remove(link)


def _is_unit(draft: Draft, name: str) -> bool:
    return draft.readlink(f"{_UNITS[0]}/{name}.service") != "/dev/null"


def _mask(draft: Draft, name: str) -> None:
    path = f"{_UNITS[0]}/{name}.service"
    if draft.is_link(path) or not draft.exists(path):
        draft.symlink(path, "/dev/null")
        return
    # A unit of the administrator's stays; nobody wants it any more.
    for kind in ("wants", "requires"):
        for link in draft.glob(f"{_UNITS[0]}/*.{kind}/{name}.service"):
            draft.remove(link)


def _start_links(draft: Draft, name: str) -> list[str]:
    for base in _RUN_LEVELS:
        if draft.is_directory(f"{base}/rc3.d"):
            links = draft.glob(f"{base}/rc[2345S].d/S[0-9][0-9]*")
            return [link for link in links if link.rpartition("/")[2][3:] == name]
    return []


def _stop_instead(draft: Draft, link: str) -> None:
    """S85foo → K15foo; what runs at boot (rcS.d) has no stopping."""
    directory, _, name = link.rpartition("/")
    stop = f"{directory}/K{(100 - int(name[1:3])) % 100:02}{name[3:]}"
    if directory.endswith("rcS.d") or draft.is_link(stop) or draft.exists(stop):
        draft.remove(link)
    else:
        draft.rename(link, stop)


def _is_manual(draft: Draft, name: str) -> bool:
    return bool(
        re.search(r"^[ \t]*manual[ \t\r]*$", draft.text_or_empty(f"{_JOBS}/{name}.override"), re.M)
    )


class Agents:
    """Daemons for hardware that stays behind don't wait for it, and don't fill the logs."""

    key = "F50-agents"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        disabled = [
            name
            for name in services(draft, context.guest)
            if any(fnmatch.fnmatchcase(name, each) for each in _AGENTS)
        ]
        for name in disabled:
            disable(draft, context.guest, name)
        if disabled:
            text = f"not started in the virtual machine: {', '.join(disabled)}"
            yield Finding(self.key, Severity.NOTE, text)
        if is_started(draft, context.guest, "usbguard"):
            yield Finding(
                self.key,
                Severity.WARNING,
                "usbguard blocks the virtual machine's USB keyboard and tablet",
                "allow them, or use a PS/2 keyboard",
            )


class Kudzu:
    """It would ask at the first start what to do about each missing device."""

    key = "F56-kudzu"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        if "kudzu" in services(draft, context.guest):
            disable(draft, context.guest, "kudzu")
        hardware = "/etc/sysconfig/hwconf"
        if draft.is_file(hardware) and not draft.exists(f"{hardware}.p2v"):
            draft.rename(hardware, f"{hardware}.p2v")
        yield from ()


FIXUPS: tuple[Fixup, ...] = (Agents(), Kudzu())
