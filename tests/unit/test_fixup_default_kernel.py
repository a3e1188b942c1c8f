"""Where Xen started by default, Linux itself does."""

from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.default_kernel import DefaultKernel
from p2v_sync.fixup.guest import BootLoader, Guest, LoaderKind
from p2v_sync.fixup.plan import Context, Severity
from tests.contract.guests import PlainGuest

LEGACY = "/boot/grub/menu.lst"
GRUB2 = "/boot/grub/grub.cfg"
XEN = (
    "title Xen\n\tkernel /xen.gz-2.6.18\n\tmodule /vmlinuz-2.6.18xen ro\n\tmodule /initrd-xen.img\n"
)
RESCUE = "title Linux (recovery mode)\n\tkernel /vmlinuz ro single\n\tinitrd /initrd.img\n"
LINUX = "title Linux\n\tkernel /vmlinuz-2.6.18 ro\n\tinitrd /initrd.img\n"


def context(kind: LoaderKind) -> Context:
    config = LEGACY if kind is LoaderKind.GRUB_LEGACY else GRUB2
    return Context(Guest(boot_loaders=(BootLoader(kind, config),)), NOTHING_KNOWN, Machine())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"default=0\n{XEN}{RESCUE}{LINUX}", f"default=2\n{XEN}{RESCUE}{LINUX}"),
        (f"default 1\n{LINUX}{XEN}", f"default 0\n{LINUX}{XEN}"),
        (f"timeout=5\n{XEN}{LINUX}", f"default=1\ntimeout=5\n{XEN}{LINUX}"),
        (f"default=1\n{XEN}{LINUX}", f"default=1\n{XEN}{LINUX}"),
        (f"default saved\n{XEN}{LINUX}", f"default saved\n{XEN}{LINUX}"),
    ],
)
def test_grub_legacy_starts_linux(tmp_path: Path, before: str, after: str) -> None:
    guest = PlainGuest(
        tmp_path, {LEGACY: before, "/etc/sysconfig/kernel": "DEFAULTKERNEL=kernel-xen\n"}
    )
    findings = guest.fix(context(LoaderKind.GRUB_LEGACY), DefaultKernel())
    assert guest.text(LEGACY) == after
    assert len(findings) == (before != after)
    name = "kernel" if before != after else "kernel-xen"
    assert guest.text("/etc/sysconfig/kernel") == f"DEFAULTKERNEL={name}\n"


def test_where_there_is_only_xen_it_stays_and_is_said(tmp_path: Path) -> None:
    guest = PlainGuest(tmp_path, {LEGACY: f"default=0\n{XEN}"})
    (finding,) = guest.fix(context(LoaderKind.GRUB_LEGACY), DefaultKernel())
    assert finding.severity is Severity.WARNING


def grub2(default: str) -> str:
    xen = "\tmultiboot2 /xen-4.17.gz\n\tmodule2 /vmlinuz-6 ro\n\tmodule2 /initrd.img-6\n"
    linux = "\tlinux /vmlinuz-6 ro\n\tinitrd /initrd.img-6\n"
    return (
        f'if [ "${{next_entry}}" ] ; then\n   set default="${{next_entry}}"\nelse\n'
        f'   set default="{default}"\nfi\nfunction f {{\n  true\n}}\n'
        f"menuentry 'Debian, with Xen' --class x $menuentry_id_option 'xen-1' {{\n{xen}}}\n"
        "submenu 'Advanced' $menuentry_id_option 'advanced-1' {\n"
        f"\tmenuentry 'Xen 6' $menuentry_id_option 'xen-2' {{\n{xen}\t}}\n"
        f"\tmenuentry 'Linux 6' $menuentry_id_option 'linux-6' {{\n{linux}\t}}\n}}\n"
    )


@pytest.mark.parametrize("default", ["0", "xen-1", "Debian, with Xen", "1>0", "advanced-1>xen-2"])
def test_grub_2_starts_linux_by_its_id(tmp_path: Path, default: str) -> None:
    guest = PlainGuest(tmp_path, {GRUB2: grub2(default), "/etc/default/grub": "GRUB_DEFAULT=0\n"})
    guest.fix(context(LoaderKind.GRUB2), DefaultKernel())
    assert guest.text(GRUB2) == grub2("advanced-1>linux-6")
    assert guest.text("/etc/default/grub") == 'GRUB_DEFAULT="advanced-1>linux-6"\n'


@pytest.mark.parametrize("default", ["1>1", "advanced-1>linux-6", "7", ""])
def test_a_default_that_is_no_xen_stays(tmp_path: Path, default: str) -> None:
    guest = PlainGuest(tmp_path, {GRUB2: grub2(default)})
    draft, findings = guest.plan([DefaultKernel()], context(LoaderKind.GRUB2))
    assert (draft.edits(), findings) == ([], [])


def test_a_saved_default_is_saved_anew_in_its_block(tmp_path: Path) -> None:
    block = "# GRUB Environment Block\nsaved_entry=xen-1\n".ljust(1024, "#")
    guest = PlainGuest(
        tmp_path,
        {GRUB2: grub2("${saved_entry}"), "/boot/grub/grubenv": block,
         "/etc/default/grub": "GRUB_DEFAULT=saved\n"},
    )  # fmt: skip
    guest.fix(context(LoaderKind.GRUB2), DefaultKernel())
    assert "saved_entry=advanced-1>linux-6\n" in guest.text("/boot/grub/grubenv")
    assert len(guest.text("/boot/grub/grubenv")) == 1024
    assert guest.text("/etc/default/grub") == "GRUB_DEFAULT=saved\n"
