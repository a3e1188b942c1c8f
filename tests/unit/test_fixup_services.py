"""Services for hardware that stays behind are not started, whatever starts them."""

from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.guest import (
    BootLoader,
    Distribution,
    Family,
    Generator,
    Guest,
    Init,
    LoaderKind,
)
from p2v_sync.fixup.multipath import Multipath
from p2v_sync.fixup.plan import Context, Severity
from p2v_sync.fixup.services import Agents, Kudzu
from tests.contract.guests import PlainGuest

GRUB_CFG = "/boot/grub/grub.cfg"
SYSTEMD = "/etc/systemd/system"


def context(init: Init = Init.SYSTEMD) -> Context:
    return Context(Guest(init=init), NOTHING_KNOWN, Machine())


def link(guest: PlainGuest, path: str, target: str) -> None:
    guest.at(path).parent.mkdir(parents=True, exist_ok=True)
    guest.at(path).symlink_to(target)


def names(guest: PlainGuest, directory: str) -> list[str]:
    return sorted(path.name for path in guest.at(directory).iterdir())


def test_units_are_masked_and_only_those_of_hardware(tmp_path: Path) -> None:
    units = "/usr/lib/systemd/system"
    guest = PlainGuest(
        tmp_path,
        {
            f"{units}/smartd.service": "",
            f"{units}/sshd.service": "",
            f"{units}/irqbalance.service": "",
            "/etc/init.d/hp-health": "#!/bin/sh\n",
        },
    )
    (finding,) = guest.fix(context(), Agents())
    assert finding.text.endswith("hp-health, smartd")
    assert names(guest, SYSTEMD) == ["hp-health.service", "smartd.service"]
    for name in names(guest, SYSTEMD):
        assert str(guest.at(f"{SYSTEMD}/{name}").readlink()) == "/dev/null"


def test_an_alias_is_masked_too(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/lib/systemd/system/smartmontools.service": ""})
    link(guest, f"{SYSTEMD}/smartd.service", "/lib/systemd/system/smartmontools.service")
    guest.fix(context(), Agents())
    assert str(guest.at(f"{SYSTEMD}/smartd.service").readlink()) == "/dev/null"


def test_a_unit_of_the_administrators_stays_but_is_not_wanted(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {f"{SYSTEMD}/ipmi.service": "[Service]\nExecStart=/bin/x\n"})
    link(guest, f"{SYSTEMD}/multi-user.target.wants/ipmi.service", f"{SYSTEMD}/ipmi.service")
    guest.fix(context(), Agents())
    assert guest.text(f"{SYSTEMD}/ipmi.service").startswith("[Service]")
    assert names(guest, f"{SYSTEMD}/multi-user.target.wants") == []


@pytest.mark.parametrize("base", ["/etc/rc.d", "/etc/init.d", "/etc"])
def test_start_links_become_stop_links(tmp_path: Path, base: str) -> None:
    guest = PlainGuest(tmp_path, {"/etc/init.d/ipmi": "#!/bin/sh\n"})
    for level, name in (("3", "S85ipmi"), ("5", "S05ipmi"), ("3", "S10network"), ("3", "S1ipmi")):
        link(guest, f"{base}/rc{level}.d/{name}", f"../init.d/{name[3:]}")
    link(guest, f"{base}/rc2.d/S85ipmi", "../init.d/ipmi")
    link(guest, f"{base}/rc2.d/K15ipmi", "../init.d/ipmi")
    link(guest, f"{base}/rcS.d/S20ipmi", "../init.d/ipmi")
    guest.fix(context(Init.SYSV), Agents())
    assert names(guest, f"{base}/rc3.d") == ["K15ipmi", "S10network", "S1ipmi"]
    assert names(guest, f"{base}/rc5.d") == ["K95ipmi"]
    assert names(guest, f"{base}/rc2.d") == ["K15ipmi"]
    assert names(guest, f"{base}/rcS.d") == []


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "manual\n"), ("start on x", "start on x\nmanual\n"), ("manual", "manual")],
)
def test_jobs_of_upstart_are_overridden(tmp_path: Path, before: str | None, after: str) -> None:
    guest = PlainGuest(tmp_path, {"/etc/init/mcelog.conf": "exec mcelog\n"})
    if before is not None:
        guest.write("/etc/init/mcelog.override", before)
    guest.fix(context(Init.UPSTART), Agents())
    assert guest.text("/etc/init/mcelog.override") == after


def test_openrc_has_it_in_no_run_level(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/etc/init.d/smartd": "#!/sbin/openrc-run\n"})
    link(guest, "/etc/runlevels/default/smartd", "/etc/init.d/smartd")
    link(guest, "/etc/runlevels/default/sshd", "/etc/init.d/sshd")
    guest.fix(context(Init.OPENRC), Agents())
    assert names(guest, "/etc/runlevels/default") == ["sshd"]


def test_usbguard_is_a_warning(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/lib/systemd/system/usbguard.service": ""})
    assert guest.fix(context(), Agents()) == []
    wants = f"{SYSTEMD}/basic.target.wants/usbguard.service"
    link(guest, wants, "/lib/systemd/system/usbguard.service")
    (finding,) = guest.fix(context(), Agents())
    assert finding.severity is Severity.WARNING


def test_kudzu_asks_nothing(tmp_path: Path) -> None:
    guest = PlainGuest(
        tmp_path, {"/etc/rc.d/init.d/kudzu": "", "/etc/sysconfig/hwconf": "class: NETWORK\n"}
    )
    link(guest, "/etc/rc.d/rc3.d/S05kudzu", "../init.d/kudzu")
    guest.fix(context(Init.SYSV), Kudzu())
    assert names(guest, "/etc/rc.d/rc3.d") == ["K95kudzu"]
    assert names(guest, "/etc/sysconfig") == ["hwconf.p2v"]


@pytest.mark.parametrize(
    ("generator", "version", "parameter"),
    [
        (Generator.DRACUT, "9.4", "rd.multipath=0"),
        (Generator.DRACUT, "6.9", "rd_NO_MULTIPATH"),
        (Generator.INITRAMFS_TOOLS, "", "multipath=off"),
    ],
)
@pytest.mark.parametrize("uses", [("multipath",), ()])
def test_multipath_is_off_where_it_was_on(
    tmp_path: Path, generator: Generator, version: str, parameter: str, uses: tuple[str, ...]
) -> None:
    line = "menuentry 'L' {\n\tlinux /vmlinuz root=UUID=1 ro\n}\n"
    plain = PlainGuest(
        tmp_path, {GRUB_CFG: line, "/lib/systemd/system/multipathd.service": "[Unit]\n"}
    )
    if not uses:
        link(plain, f"{SYSTEMD}/sysinit.target.wants/multipathd.service", "/lib/x")
    guest = Guest(
        Distribution(Family.RHEL, version=version),
        init=Init.SYSTEMD,
        generator=generator,
        boot_loaders=(BootLoader(LoaderKind.GRUB2, GRUB_CFG),),
        uses=uses,
    )
    plain.fix(Context(guest, NOTHING_KNOWN, Machine()), Multipath())
    assert plain.text(GRUB_CFG) == line.replace(" ro\n", f" ro {parameter}\n")
    assert str(plain.at(f"{SYSTEMD}/multipathd.service").readlink()) == "/dev/null"


def test_multipath_that_is_only_installed_stays_as_it_is(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/lib/systemd/system/multipathd.service": "[Unit]\n"})
    draft, findings = guest.plan([Multipath()], context())
    assert (draft.edits(), findings) == ([], [])
