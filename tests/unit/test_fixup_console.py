"""Serial consoles and logins are on the first port; parameters of the hardware go."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from p2v_sync.device.machine import Cpus, Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.console import SerialConsole
from p2v_sync.fixup.guest import BootLoader, Guest, Init, Kernel, LoaderKind
from p2v_sync.fixup.kernel_parameters import HardwareModules, KernelParameters
from p2v_sync.fixup.plan import Context, Hypervisor, Severity, Target
from p2v_sync.fixup.xen_console import XenConsole
from p2v_sync.units import GIB
from tests.contract.guests import PlainGuest

GRUB_CFG = "/boot/grub/grub.cfg"


def context(machine: Machine | None = None) -> Context:
    guest = Guest(boot_loaders=(BootLoader(LoaderKind.GRUB2, GRUB_CFG),))
    return Context(guest, NOTHING_KNOWN, machine or Machine())


def grub(options: str) -> str:
    return (
        "menuentry 'Linux' {\n"
        f"\tlinux /vmlinuz-6 root=/dev/sda1 ro {options}\n"
        "\tinitrd /initrd.img-6\n}\n"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("console=tty0 console=ttyS1,115200n8", "console=tty0 console=ttyS0,115200n8"),
        ("console=ttyS2", "console=ttyS0"),
        ("earlyprintk=serial,ttyS1,9600", "earlyprintk=serial,ttyS0,9600"),
        ("console=ttyS0,9600 quiet", "console=ttyS0,9600 quiet"),
        ("console=tty1", "console=tty1"),
        ("quiet", "quiet"),
    ],
)
def test_the_console_is_on_the_first_port(tmp_path: Path, before: str, after: str) -> None:
    defaults = 'GRUB_CMDLINE_LINUX="{}"\n'
    guest = PlainGuest(
        tmp_path, {GRUB_CFG: grub(before), "/etc/default/grub": defaults.format(before)}
    )
    findings = guest.fix(context(), SerialConsole())
    assert guest.text(GRUB_CFG) == grub(after)
    assert guest.text("/etc/default/grub") == defaults.format(after)
    assert [finding.severity for finding in findings] == [Severity.NOTE] * (before != after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "S1:2345:respawn:/sbin/agetty ttyS1 115200 vt102\n1:2345:respawn:/sbin/mingetty tty1",
            "S1:2345:respawn:/sbin/agetty ttyS0 115200 vt102\n1:2345:respawn:/sbin/mingetty tty1",
        ),
        (
            "S0:23:respawn:/sbin/agetty ttyS0\nS1:23:respawn:/sbin/agetty ttyS1\n",
            "S0:23:respawn:/sbin/agetty ttyS0\n#p2v# S1:23:respawn:/sbin/agetty ttyS1\n",
        ),
        (
            "S1:23:respawn:/sbin/agetty ttyS1\nS2:23:respawn:/sbin/agetty ttyS2\n",
            "S1:23:respawn:/sbin/agetty ttyS0\n#p2v# S2:23:respawn:/sbin/agetty ttyS2\n",
        ),
        ("#T1:23:respawn:/sbin/getty ttyS1\n", "#T1:23:respawn:/sbin/getty ttyS1\n"),
    ],
)
def test_inittab_logs_in_on_the_first_port(tmp_path: Path, before: str, after: str) -> None:
    guest = PlainGuest(tmp_path, {"/etc/inittab": before})
    guest.fix(context(), SerialConsole())
    assert guest.text("/etc/inittab") == after


def test_logins_of_upstart_and_systemd_move_too(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/etc/init/ttyS1.conf": "exec /sbin/getty -L 115200 ttyS1\n"})
    wants = guest.at("/etc/systemd/system/getty.target.wants")
    wants.mkdir(parents=True)
    (wants / "serial-getty@ttyS1.service").symlink_to("/lib/systemd/system/serial-getty@.service")
    guest.fix(context(), SerialConsole())
    assert guest.text("/etc/init/ttyS0.conf") == "exec /sbin/getty -L 115200 ttyS0\n"
    assert not guest.has("/etc/init/ttyS1.conf")
    (link,) = wants.iterdir()
    assert link.name == "serial-getty@ttyS0.service"
    assert str(link.readlink()) == "/lib/systemd/system/serial-getty@.service"


def test_root_may_log_in_on_the_consoles_where_he_could_on_others(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/etc/securetty": "tty1\nttyS0\n"})
    guest.fix(context(), SerialConsole())
    assert guest.text("/etc/securetty") == (
        "tty1\nttyS0\n# BEGIN p2v F35-console\nhvc0\n# END p2v F35-console\n"
    )
    guest.write("/etc/securetty", "\n")
    guest.fix(context(), SerialConsole())
    assert guest.text("/etc/securetty") == "\n"


@pytest.mark.parametrize(
    ("before", "after", "severities"),
    [
        ("clocksource=tsc quiet", "quiet", [Severity.NOTE]),
        ("idle=poll clocksource=hpet", "", [Severity.NOTE] * 2),
        ("clocksource=kvm-clock idle=nomwait", "clocksource=kvm-clock idle=nomwait", []),
        ("acpi=off", "acpi=off", [Severity.WARNING]),
        ("ip=ibft ip=dhcp", "ip=ibft ip=dhcp", [Severity.WARNING]),
        ("hugepagesz=1G hugepages=6", "hugepagesz=1G hugepages=6", [Severity.WARNING]),
        ("hugepages=512", "hugepages=512", []),
        ("isolcpus=2-7", "isolcpus=2-7", [Severity.WARNING]),
        ("isolcpus=2-3 nomodeset", "isolcpus=2-3 nomodeset", []),
    ],
)
def test_parameters_that_harm_go_and_others_are_said(
    tmp_path: Path, before: str, after: str, severities: list[Severity]
) -> None:
    guest = PlainGuest(tmp_path, {GRUB_CFG: grub(before)})
    machine = Machine(memory=8 * GIB, cpus=Cpus(1, 4, 1, "Xeon"))
    findings = guest.fix(context(machine), KernelParameters())
    assert guest.text(GRUB_CFG).rstrip() == grub(after).replace("ro \n", "ro\n").rstrip()
    assert [finding.severity for finding in findings] == severities


def test_modules_of_sensors_and_watchdogs_are_not_loaded(tmp_path: Path) -> None:
    text = "# list\nloop\nipmi_si trydefaults=1\ncoretemp\nw83627ehf\nvirtio_net\nnct6775"
    guest = PlainGuest(
        tmp_path, {"/etc/modules": text, "/etc/modules-load.d/a.conf": "ipmi-devintf\n"}
    )
    assert guest.fix(context(), HardwareModules()) == []
    assert guest.text("/etc/modules") == (
        "# list\nloop\n#p2v# ipmi_si trydefaults=1\n#p2v# coretemp\n#p2v# w83627ehf\nvirtio_net\n"
        "#p2v# nct6775"
    )
    assert guest.text("/etc/modules-load.d/a.conf") == "#p2v# ipmi-devintf\n"


def test_a_cluster_that_fences_is_a_warning(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/etc/default/sbd": "SBD_WATCHDOG_DEV=/dev/watchdog\n"})
    (finding,) = guest.fix(context(), HardwareModules())
    assert finding.severity is Severity.WARNING


# Xen's console.


CONFIG = "/boot/config-6"
JOB = "start on stopped rc\nexec /sbin/getty -8 38400 tty1\n"


def on_xen(init: Init, config: str = CONFIG, hypervisor: Hypervisor = Hypervisor.XEN) -> Context:
    kernels = (Kernel("6", config=config, is_default=True),)
    known = replace(context().guest, init=init, kernels=kernels)
    return replace(context(), guest=known, target=Target(hypervisor))


def xen_guest(root: Path, files: Mapping[str, str]) -> PlainGuest:
    config = {CONFIG: "#\nCONFIG_HVC_XEN=y\n", "/sbin/agetty": "", "/sbin/getty": ""}
    return PlainGuest(root, {**config, **files})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("console=tty0 console=ttyS1", "console=tty0 console=ttyS1 console=hvc0"),
        ("console=hvc0 console=tty0", "console=hvc0 console=tty0"),
        ("quiet", "quiet"),
    ],
)
def test_a_guest_of_xen_speaks_on_its_own_console(tmp_path: Path, before: str, after: str) -> None:
    guest = xen_guest(tmp_path, {GRUB_CFG: grub(before)})
    assert guest.fix(on_xen(Init.SYSTEMD), XenConsole()) == []
    assert guest.text(GRUB_CFG) == grub(after)


def test_it_logs_in_there(tmp_path: Path) -> None:
    inittab = "id:2:initdefault:\n1:2345:respawn:/sbin/getty 38400 tty1\n"
    guest = xen_guest(tmp_path, {"/etc/inittab": inittab, "/etc/init/tty1.conf": JOB})
    guest.fix(on_xen(Init.SYSV), XenConsole())
    assert guest.text("/etc/inittab") == (
        f"{inittab}# BEGIN p2v F35-xen-console\n"
        "hvc0:2345:respawn:/sbin/agetty -L 9600 hvc0 vt100\n"
        "# END p2v F35-xen-console\n"
    )
    assert guest.text("/etc/init/hvc0.conf") == JOB.replace("tty1", "hvc0")


@pytest.mark.parametrize(
    "where",
    [
        on_xen(Init.SYSV, hypervisor=Hypervisor.KVM),
        on_xen(Init.SYSV, config=""),
        on_xen(Init.SYSV, config="/boot/none"),
        on_xen(Init.SYSV, config="/sbin/agetty"),
    ],
    ids=["kvm", "no config", "no file", "no driver"],
)
def test_no_login_where_there_is_no_such_console(tmp_path: Path, where: Context) -> None:
    files = {"/etc/inittab": "id:2:initdefault:\n", GRUB_CFG: grub("console=tty0")}
    guest = xen_guest(tmp_path, files)
    guest.fix(where, XenConsole())
    assert {path: guest.text(path) for path in files} == files


def test_one_login_is_enough(tmp_path: Path) -> None:
    inittab = "co:2345:respawn:/sbin/getty 38400 hvc0\n"
    guest = xen_guest(tmp_path, {"/etc/inittab": inittab})
    guest.fix(on_xen(Init.SYSV), XenConsole())
    assert guest.text("/etc/inittab") == inittab
