"""F22, F23 and F25: what the guest needs to know when it makes an initramfs itself."""

from pathlib import Path

import pytest

from p2v_sync.fixup.guest import Generator
from p2v_sync.fixup.initramfs.aliases import Aliases
from p2v_sync.fixup.initramfs.kdump import CrashDumps
from p2v_sync.fixup.initramfs.persist import LaterKernels
from p2v_sync.fixup.plan import Bus, Fixup, Hypervisor, Severity, Target
from tests.contract import initramfs
from tests.contract.initramfs import carried_out, context

ALL = "virtio_pci virtio_blk sd_mod ahci"


def edited(root: Path, fixup: Fixup, path: str, before: str | None, **guest: object) -> str:
    """The file after the fix-up, which has nothing more to do then."""
    initramfs.install(root)
    file = root / path[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    if before is not None:
        file.write_bytes(before.encode("latin-1"))
    carried_out(root, fixup, context(**guest))  # type: ignore[arg-type]
    assert carried_out(root, fixup, context(**guest))[1] == []  # type: ignore[arg-type]
    return file.read_bytes().decode("latin-1") if file.exists() else ""


def test_dracut(tmp_path: Path) -> None:
    path = "/etc/dracut.conf.d/90-p2v-sync.conf"
    text = edited(tmp_path, LaterKernels(), path, None, generator=Generator.DRACUT)
    assert f'add_drivers+=" {ALL} "\n' in text


@pytest.mark.parametrize("ending", ["", "\n"])
def test_initramfs_tools(tmp_path: Path, ending: str) -> None:
    before = f"# List\nahci\nvirtio-pci{ending}"
    text = edited(
        tmp_path,
        LaterKernels(),
        "/etc/initramfs-tools/modules",
        before,
        generator=Generator.INITRAMFS_TOOLS,
    )
    assert text == (
        "# List\nahci\nvirtio-pci\n# BEGIN p2v F22\nvirtio_blk\nsd_mod\n# END p2v F22\n"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# x\nMODULES=()\nHOOKS=(base)\n", f"# x\nMODULES=({ALL})\nHOOKS=(base)\n"),
        ("MODULES=(ahci\n  ext4)\n", "MODULES=(ahci\n  ext4 virtio_pci virtio_blk sd_mod)\n"),
        ('MODULES="ahci"\n', 'MODULES="ahci virtio_pci virtio_blk sd_mod"\n'),
        ("#MODULES=()\nMODULES=()", f"#MODULES=()\nMODULES=({ALL})"),
    ],
)
def test_mkinitcpio_of_old(tmp_path: Path, before: str, after: str) -> None:
    generator = Generator.MKINITCPIO
    path = "/etc/mkinitcpio.conf"
    assert edited(tmp_path, LaterKernels(), path, before, generator=generator) == after


def test_mkinitcpio_that_reads_more_files(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/mkinitcpio").write_text("for f in mkinitcpio.conf.d/*; do . $f; done")
    path = "/etc/mkinitcpio.conf.d/p2v-sync.conf"
    text = edited(tmp_path, LaterKernels(), path, None, generator=Generator.MKINITCPIO)
    assert f"MODULES+=({ALL})\n" in text


def test_suse(tmp_path: Path) -> None:
    before = '## Type: string\nINITRD_MODULES="mptsas ahci"\nMODULES_LOADED=""\n'
    text = edited(
        tmp_path, LaterKernels(), "/etc/sysconfig/kernel", before, generator=Generator.MKINITRD_SUSE
    )
    assert text == before.replace("mptsas ahci", "mptsas ahci virtio_pci virtio_blk sd_mod")


def test_a_generator_that_is_not_known_is_said(tmp_path: Path) -> None:
    initramfs.install(tmp_path)
    (finding,), changed = carried_out(tmp_path, LaterKernels(), context())
    assert finding.severity is Severity.WARNING
    assert not changed


RHEL5 = """\
alias eth0 tg3
alias  eth1\tbnx2
alias scsi_hostadapter megaraid_sas
alias scsi_hostadapter1 usb-storage
options tg3 x=1
alias snd-card-0 snd-hda-intel"""


def test_aliases_name_the_new_drivers(tmp_path: Path) -> None:
    text = edited(tmp_path, Aliases(), "/etc/modprobe.conf", RHEL5)
    assert text == (
        "alias eth0 virtio_net\n"
        "alias  eth1\tvirtio_net\n"
        "alias scsi_hostadapter virtio_blk\n"
        "#p2v# alias scsi_hostadapter1 usb-storage\n"
        "options tg3 x=1\n"
        "alias snd-card-0 snd-hda-intel"
    )


def test_aliases_follow_the_bus(tmp_path: Path) -> None:
    initramfs.install(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/modprobe.conf").write_text(RHEL5)
    carried_out(tmp_path, Aliases(), context(Target(bus=Bus.SATA)))
    assert "alias scsi_hostadapter ahci\n" in (tmp_path / "etc/modprobe.conf").read_text()


def test_a_driver_that_is_not_installed_is_not_named(tmp_path: Path) -> None:
    initramfs.install(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/modprobe.conf").write_text(RHEL5)
    assert carried_out(tmp_path, Aliases(), context(Target(Hypervisor.XEN)))[1] == []


def test_bans_of_the_new_drivers_are_lifted(tmp_path: Path) -> None:
    before = (
        "blacklist virtio_blk\nblacklist pcspkr\ninstall virtio-pci /bin/true\n"
        "install usb-storage /bin/true\ninstall virtio_net /sbin/modprobe -i virtio_net\n"
    )
    text = edited(tmp_path, Aliases(), "/etc/modprobe.d/hardening.conf", before)
    assert text == (
        "#p2v# blacklist virtio_blk\nblacklist pcspkr\n#p2v# install virtio-pci /bin/true\n"
        "install usb-storage /bin/true\ninstall virtio_net /sbin/modprobe -i virtio_net\n"
    )


def test_crash_dumps_are_looked_at_only(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "boot/initramfs-5.14kdump.img").write_bytes(b"")
    (tmp_path / "etc/kdump.conf").write_text("# raw /dev/sdz\next4 /dev/sda2\npath /var/crash\n")
    findings, changed = carried_out(tmp_path, CrashDumps(), context())
    assert [finding.severity for finding in findings] == [Severity.NOTE, Severity.WARNING]
    assert "/dev/sda2" in findings[1].text
    assert not changed
