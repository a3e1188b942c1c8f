"""F24: drivers in the images of Red Hat's old mkinitrd."""

import gzip
from pathlib import Path

import pytest

from p2v_sync.fixup.initramfs import cpio
from p2v_sync.fixup.initramfs.drivers import InitramfsDrivers
from p2v_sync.fixup.initramfs.nash import NashInit, with_lines
from p2v_sync.fixup.plan import Hypervisor, Severity, Target
from tests.contract import initramfs
from tests.contract.initramfs import IMAGE, Kernelish, carried_out, context

# As RHEL 5's mkinitrd writes it, in excerpts.
INIT = """\
#!/bin/nash

mount -t proc /proc /proc
setquiet
echo Mounting proc filesystem
echo Creating block device nodes.
mkblkdevs
echo "Loading ehci-hcd.ko module"
insmod /lib/ehci-hcd.ko
echo Waiting for driver initialization.
stabilized /proc/bus/usb/devices
echo "Loading scsi_mod.ko module"
insmod /lib/scsi_mod.ko
echo "Loading mptsas.ko module"
insmod /lib/mptsas.ko
echo Waiting for driver initialization.
stabilized --hash --interval 250 /proc/scsi/scsi
mkblkdevs
echo Scanning and configuring dmraid supported devices
echo Creating root device.
mkrootdev -t ext3 -o defaults,ro /dev/VolGroup00/LogVol00
"""


def guest(root: Path, init: str = INIT) -> Path:
    initramfs.install(root)
    (root / "boot").mkdir()
    file = root / IMAGE[1:]
    members = [cpio.directory("lib"), cpio.file("lib/scsi_mod.ko", b"\x7fELF", 0o600)]
    members.append(cpio.file("init", init.encode(), 0o755))
    file.write_bytes(gzip.compress(cpio.write(members)))
    return file


def test_drivers_are_loaded_with_the_others_in_the_order_of_their_needs(tmp_path: Path) -> None:
    file = guest(tmp_path)
    assert carried_out(tmp_path, NashInit(), context()) == ([], [IMAGE])
    after = Kernelish(file.read_bytes(), truncates=False)
    init = after.files["init"].decode()
    assert after.modes["init"] == 0o100755
    added = "".join(
        f'echo "Loading {name}.ko module"\ninsmod /lib/{name}.ko\n'
        for name in ("virtio", "virtio_ring", "virtio_pci", "virtio_blk")
    )
    place = "insmod /lib/mptsas.ko\n"
    assert init == INIT.replace(place, place + added)
    assert after.files["lib/virtio_blk.ko"] == b"\x7fELFvirtio_blk"
    assert carried_out(tmp_path, NashInit(), context()) == ([], [])


def test_other_fixups_leave_these_images_alone_and_this_one_leaves_others(tmp_path: Path) -> None:
    file = guest(tmp_path)
    assert carried_out(tmp_path, InitramfsDrivers(), context()) == ([], [])
    file.write_bytes(initramfs.archive({"init": b"#!/bin/sh\n"}))
    assert carried_out(tmp_path, NashInit(), context()) == ([], [])


def test_modules_that_are_loaded_already_are_not_loaded_twice(tmp_path: Path) -> None:
    before = "mkblkdevs\necho Scanning"
    file = guest(tmp_path, INIT.replace(before, f"insmod /lib/virtio.ko\n{before}"))
    carried_out(tmp_path, NashInit(), context())
    assert Kernelish(file.read_bytes()).files["init"].count(b"/lib/virtio.ko") == 1


def test_what_can_not_be_done_is_said(tmp_path: Path) -> None:
    guest(tmp_path, "#!/bin/nash\nswitchroot\n")
    (finding,), edited = carried_out(tmp_path, NashInit(), context())
    assert finding.severity is Severity.DOWNGRADE
    assert "no place" in finding.text
    (finding,), edited = carried_out(tmp_path, NashInit(), context(Target(Hypervisor.XEN)))
    assert "xen_blkfront" in finding.text
    assert not edited


def test_without_other_modules_they_come_before_the_root() -> None:
    assert with_lines("#!/bin/nash\nmkrootdev sda\n", "x\n") == "#!/bin/nash\nx\nmkrootdev sda\n"
    with pytest.raises(ValueError, match="no place"):
        with_lines("#!/bin/nash\n", "x\n")
