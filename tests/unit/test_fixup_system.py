"""Graphics, cloud-init, and what is only said."""

from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.cloud_init import CloudInit
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.graphics import VirtualCards, Xorg
from p2v_sync.fixup.guest import Guest, Init
from p2v_sync.fixup.identity import Clock, Identity, Labels, believed_clock
from p2v_sync.fixup.network_names import NicNames
from p2v_sync.fixup.plan import Context, Severity
from p2v_sync.fixup.services import Kudzu
from p2v_sync.fixup.tree import Tree
from tests.contract.guests import PlainGuest

XORG = (
    'Section "ServerLayout"\n\tIdentifier "l"\n\tOption "x"\nEndSection\n'
    'Section "Device"\n\tIdentifier "c"\n\tDriver "nvidia"\n\tBusID "PCI:1:0:0"\nEndSection\n'
)
SYSTEMD = Context(Guest(init=Init.SYSTEMD), NOTHING_KNOWN, Machine())


# Graphics


@pytest.mark.parametrize("path", ["/etc/X11/xorg.conf", "/etc/X11/xorg.conf.d/20-nvidia.conf"])
def test_a_configuration_for_a_card_is_put_aside(tmp_path: Path, path: str) -> None:
    guest = PlainGuest(tmp_path, {path: XORG, "/usr/share/X11/xorg.conf.d/10-a.conf": ""})
    (finding,) = guest.fix(SYSTEMD, Xorg())
    assert path in finding.text
    assert not guest.has(path)
    assert guest.text(f"{path}.p2v") == XORG


def test_older_servers_get_a_driver_for_any_card(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/etc/X11/XF86Config-4": XORG})
    guest.fix(SYSTEMD, Xorg())
    assert guest.text("/etc/X11/XF86Config-4") == XORG.replace("nvidia", "vesa").replace(
        '\tBusID "PCI', '#p2v# \tBusID "PCI'
    )


@pytest.mark.parametrize("driver", ["modesetting", "vesa", "qxl"])
def test_drivers_that_work_everywhere_stay(tmp_path: Path, driver: str) -> None:
    guest = PlainGuest(tmp_path, {"/etc/X11/xorg.conf": XORG.replace("nvidia", driver)})
    draft, findings = guest.plan([Xorg()], SYSTEMD)
    assert (draft.edits(), findings) == ([], [])


def test_drivers_of_virtual_cards_may_be_loaded(tmp_path: Path) -> None:
    path = "/etc/modprobe.d/cards.conf"
    guest = PlainGuest(
        tmp_path,
        {
            path: "blacklist nouveau\nblacklist bochs-drm\ninstall virtio_gpu /bin/true\n"
            "alias qxl x\n"
        },
    )
    guest.fix(SYSTEMD, VirtualCards())
    assert guest.text(path) == (
        "blacklist nouveau\n#p2v# blacklist bochs-drm\n#p2v# install virtio_gpu /bin/true\n"
        "alias qxl x\n"
    )


# cloud-init


@pytest.mark.parametrize(
    "rendered",
    [
        {"/etc/netplan/50-cloud-init.yaml": "network: {}\n"},
        {"/etc/sysconfig/network-scripts/ifcfg-eth0": "# Created by cloud-init on instance boot\n"},
    ],
)
def test_cloud_init_is_off_where_its_network_is_on_the_disk(
    tmp_path: Path, rendered: dict[str, str]
) -> None:
    guest = PlainGuest(tmp_path, {"/etc/cloud/cloud.cfg": "x", **rendered})
    (finding,) = guest.fix(SYSTEMD, CloudInit())
    assert guest.text("/etc/cloud/cloud-init.disabled") == ""
    assert not guest.has("/etc/cloud/cloud.cfg.d")
    assert "cloud-init.disabled" in finding.hint


@pytest.mark.parametrize("init", [Init.SYSTEMD, Init.UPSTART])
def test_else_it_looks_for_no_metadata(tmp_path: Path, init: Init) -> None:
    guest = PlainGuest(tmp_path, {"/etc/cloud/cloud.cfg": "datasource_list: [ MAAS ]\n"})
    if init is Init.UPSTART:
        guest.write("/etc/network/interfaces.d/50-cloud-init.cfg", "auto eth0\n")
    guest.fix(Context(Guest(init=init), NOTHING_KNOWN, Machine()), CloudInit())
    assert "datasource_list: [ NoCloud, None ]" in guest.text("/etc/cloud/cloud.cfg.d/99-p2v.cfg")
    assert not guest.has("/etc/cloud/cloud-init.disabled")


@pytest.mark.parametrize(
    "files", [{}, {"/etc/cloud/cloud.cfg": "", "/etc/cloud/cloud-init.disabled": ""}]
)
def test_where_it_does_not_run_nothing_is_done(tmp_path: Path, files: dict[str, str]) -> None:
    draft, findings = PlainGuest(tmp_path, files).plan([CloudInit()], SYSTEMD)
    assert (draft.edits(), findings) == ([], [])


# What is only said


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("/etc/adjtime", "0.0 0 0.0\n0\nLOCAL\n", "localtime"),
        ("/etc/adjtime", "0.0 0 0.0\n0\nUTC", "utc"),
        ("/etc/adjtime", "0.0 0 0.0\n", ""),
        ("/etc/sysconfig/clock", 'ZONE="x"\nUTC=false\n', "localtime"),
        ("/etc/sysconfig/clock", 'HWCLOCK="-u"\n', "utc"),
        ("/etc/sysconfig/clock", 'HWCLOCK="--localtime"\n', "localtime"),
        ("/etc/default/rcS", "UTC=yes\n", "utc"),
        ("/etc/default/rcS", "UTC=no\n", "localtime"),
    ],
)
def test_what_the_guest_takes_its_clock_for(
    tmp_path: Path, path: str, text: str, expected: str
) -> None:
    guest = PlainGuest(tmp_path, {path: text})
    with Tree(guest.root) as tree:
        assert believed_clock(Draft(tree)) == expected
    draft, findings = guest.plan([Clock()], SYSTEMD)
    assert len(findings) == (expected == "localtime")
    assert draft.edits() == []


def test_a_clock_that_the_guest_misreads_is_a_warning(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/etc/adjtime": "0\n0\nUTC\n"})
    _, (finding,) = guest.plan([Clock()], Context(Guest(), NOTHING_KNOWN, Machine(rtc="localtime")))
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("refclock PHC /dev/ptp0 poll 0\n", 1),
        ("server 127.127.20.0\n", 1),
        ("server 127.127.1.0\npool 0.debian.pool.ntp.org\n# refclock\n", 0),
    ],
)
def test_clocks_in_the_machine_are_a_warning(tmp_path: Path, text: str, expected: int) -> None:
    guest = PlainGuest(tmp_path, {"/etc/chrony.conf": text})
    assert len(guest.plan([Clock()], SYSTEMD)[1]) == expected


def test_what_must_not_be_there_twice_is_said(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path)
    _, (always,) = guest.plan([Identity()], SYSTEMD)
    assert "never run both" in always.hint
    guest.write("/etc/krb5.keytab", "x")
    guest.write("/opt/tool/license.dat", "x")
    _, findings = guest.plan([Identity()], SYSTEMD)
    assert [finding.severity for finding in findings] == ["note", "note", "warning"]


def test_labels_are_spoken_of_where_they_count(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {"/etc/sysconfig/hwconf": "x"})
    enforcing = Context(Guest(init=Init.SYSV, selinux="enforcing"), NOTHING_KNOWN, Machine())
    assert guest.plan([Labels()], enforcing)[1] == []
    (finding,) = guest.plan([Kudzu(), NicNames(), Labels()], enforcing)[1]
    assert "labels" in finding.text
    assert guest.plan([Kudzu(), Labels()], SYSTEMD)[1] == []
