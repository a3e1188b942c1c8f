"""F20: what is appended to an initramfs, and what the kernel makes of it."""

import gzip
from pathlib import Path

import pytest

from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import BootLoader, Driver, Generator, Guest, Kernel, LoaderKind
from p2v_sync.fixup.initramfs import contents, cpio, segments
from p2v_sync.fixup.initramfs.compression import as_lz4
from p2v_sync.fixup.initramfs.drivers import InitramfsDrivers, states
from p2v_sync.fixup.plan import Bus, Hypervisor, Severity, Target
from p2v_sync.fixup.tree import Tree
from tests.contract import initramfs
from tests.contract.initramfs import IMAGE, MODULES, VERSION, Kernelish, carried_out, context

FIXUP = InitramfsDrivers()
HOME = f"usr{MODULES}"
GENERATORS = [Generator.INITRAMFS_TOOLS, Generator.DRACUT, Generator.MKINITCPIO]


def guest(root: Path, image: bytes, suffix: str = "") -> Path:
    initramfs.install(root, suffix)
    file = root / IMAGE[1:]
    file.parent.mkdir()
    file.write_bytes(image)
    return file


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("generator", GENERATORS)
def test_what_is_missing_is_inside_afterwards_and_nothing_else_changed(
    tmp_path: Path, generator: Generator, truncates: bool
) -> None:
    old = gzip.compress(initramfs.image(generator)) + b"\0"
    file = guest(tmp_path, old)
    assert carried_out(tmp_path, FIXUP, context()) == ([], [IMAGE])
    assert file.read_bytes().startswith(old)

    before, after = Kernelish(old), Kernelish(file.read_bytes(), truncates=truncates)
    assert after.links == before.links
    assert after.files[f"{HOME}/kernel/drivers/block/virtio_blk.ko"] == b"\x7fELFvirtio_blk"
    assert f"{HOME}/kernel/drivers/virtio/virtio_ring.ko" in after.files
    assert f"{HOME}/kernel/drivers/net/virtio_net.ko" not in after.files
    (*_, last) = segments.parse(file.read_bytes()).segments
    named = {entry.name for entry in last.entries if entry.is_directory}
    assert not named & {*before.modes, *before.links}, "it would be made anew, with another mode"
    added = {*after.files} - {*before.files}
    assert all(path.startswith(f"{HOME}/") for path in added)
    changed = {path for path in before.files if before.files[path] != after.files[path]}
    has_list = generator is Generator.INITRAMFS_TOOLS
    assert changed == ({"conf/modules"} if has_list else set())
    if has_list:
        listed = after.files["conf/modules"].decode().split("\n")
        assert listed[:4] == ["# nothing", "mptsas", "virtio_pci", "virtio_blk"]
    assert carried_out(tmp_path, FIXUP, context()) == ([], [])


def test_the_indices_name_the_paths_inside(tmp_path: Path) -> None:
    # mkinitcpio unpacks modules: inside they have other names than in the guest.
    file = guest(tmp_path, gzip.compress(initramfs.image(Generator.MKINITCPIO)), ".gz")
    carried_out(tmp_path, FIXUP, context())
    after = Kernelish(file.read_bytes()).files
    lines = after[f"{HOME}/modules.dep"].decode().splitlines()
    assert (
        "kernel/drivers/block/virtio_blk.ko: "
        "kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko"
    ) in lines
    assert "kernel/drivers/message/mptsas.ko: kernel/drivers/scsi/scsi_mod.ko" in lines
    assert all(f"{HOME}/{path.strip(':')}" in after for line in lines for path in line.split())
    assert after[f"{HOME}/kernel/drivers/block/virtio_blk.ko"].startswith(b"\x7fELF")
    assert "alias virtio:d00000002v* virtio_blk" in after[f"{HOME}/modules.alias"].decode()
    assert b"virtio_net" not in after[f"{HOME}/modules.alias"]


def test_modules_stay_packed_where_the_others_are(tmp_path: Path) -> None:
    image = initramfs.image(Generator.DRACUT, suffix=".gz")
    file = guest(tmp_path, gzip.compress(image), ".gz")
    carried_out(tmp_path, FIXUP, context())
    after = Kernelish(file.read_bytes()).files
    assert after[f"{HOME}/kernel/drivers/block/virtio_blk.ko.gz"][:2] == b"\x1f\x8b"


def test_behind_lz4_the_stream_goes_on(tmp_path: Path) -> None:
    old = as_lz4(initramfs.image(Generator.DRACUT) + bytes(2))
    file = guest(tmp_path, old)
    carried_out(tmp_path, FIXUP, context())
    new = file.read_bytes()
    assert new[len(old) : len(old) + 4] == b"\x02\x21\x4c\x18"
    found = contents.examine(new, VERSION)
    assert len(found.image.segments) == 1
    assert "virtio_blk" in found.modules
    assert carried_out(tmp_path, FIXUP, context()) == ([], [])


def test_nothing_is_added_where_all_is_there(tmp_path: Path) -> None:
    inside = ("virtio_pci", "virtio_blk")
    guest(tmp_path, initramfs.image(Generator.DRACUT, inside))
    assert carried_out(tmp_path, FIXUP, context()) == ([], [])


def test_files_that_others_want_inside(tmp_path: Path) -> None:
    inside = initramfs.image(Generator.DRACUT, ("virtio_pci", "virtio_blk"))
    inside += initramfs.archive({"etc/crypttab": b"root /dev/sda2 none luks,discard\n"})
    file = guest(tmp_path, inside)
    wanted = {"/etc/crypttab": b"root UUID=1\n", "/lib/udev/rules.d/70-p2v.rules": b"rule\n"}
    assert carried_out(tmp_path, FIXUP, context(), wanted) == ([], [IMAGE])
    for truncates in (True, False):
        after = Kernelish(file.read_bytes(), truncates=truncates).files
        assert after["etc/crypttab"].rstrip(b"\n") == b"root UUID=1"
        assert after["usr/lib/udev/rules.d/70-p2v.rules"] == b"rule\n"
    assert carried_out(tmp_path, FIXUP, context(), wanted) == ([], [])


def test_debians_own_crypttab_names_what_lasts(tmp_path: Path) -> None:
    """cryptsetup-initramfs keeps by-id, and what it could not resolve: that has gone in the VM."""
    inside = initramfs.image(Generator.INITRAMFS_TOOLS, ("virtio_pci", "virtio_blk"))
    baked = b"a_crypt /dev/sda3 none luks\nb /dev/disk/by-id/ata-x-part1 /cryptroot/b.key x\n"
    inside += initramfs.archive({"cryptroot/crypttab": baked + b"c UUID=3 none luks\n"})
    file = guest(tmp_path, inside)
    (tmp_path / "etc").mkdir(exist_ok=True)
    crypttab = "# d\na_crypt UUID=1 none luks,initramfs\nb UUID=2 /etc/b.key x\nc LABEL=3 none\n"
    (tmp_path / "etc/crypttab").write_text(crypttab)
    assert carried_out(tmp_path, FIXUP, context()) == ([], [IMAGE])
    after = Kernelish(file.read_bytes()).files["cryptroot/crypttab"]
    lines = [line.split() for line in after.decode().strip().split("\n")]
    assert lines == [
        ["a_crypt", "UUID=1", "none", "luks"],
        ["b", "UUID=2", "/cryptroot/b.key", "x"],
        ["c", "UUID=3", "none", "luks"],
    ]
    assert carried_out(tmp_path, FIXUP, context()) == ([], [])


def test_programs_stay_executable(tmp_path: Path) -> None:
    image = initramfs.image(Generator.DRACUT, ("virtio_pci", "virtio_blk"))
    image += cpio.write([cpio.file("init", b"#!/bin/sh\n", 0o755)])
    file = guest(tmp_path, image)
    carried_out(tmp_path, FIXUP, context(), {"/init": b"#!/bin/bash\n"})
    assert Kernelish(file.read_bytes()).modes["init"] == 0o100755


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"MZ" + bytes(200), "unified kernel image"),
        (b"\x45\x3d\xcd\x28" + bytes(200), "cramfs"),
        (gzip.compress(initramfs.image(Generator.DRACUT), mtime=0)[:-9], "too early"),
        (initramfs.archive({"run_all.sh": b"", "init": b""}), "mkinitrd"),
        (initramfs.archive({"init": b"#!/bin/sh\n"}), "no udev"),
    ],
)
def test_what_can_not_be_appended_to_costs_the_faster_bus(
    tmp_path: Path, image: bytes, reason: str
) -> None:
    guest(tmp_path, image)
    (finding,), edited = carried_out(tmp_path, FIXUP, context())
    assert finding.severity is Severity.DOWNGRADE
    assert reason in finding.text
    assert not edited


def test_the_downgrade_says_what_the_guest_has_drivers_for(tmp_path: Path) -> None:
    image = initramfs.archive(
        {f"{MODULES[1:]}/kernel/{name}.ko": b"" for name in ("ahci", "sd_mod")}
    )
    guest(tmp_path, image)
    (finding,), _ = carried_out(tmp_path, FIXUP, context())
    assert "SATA" in finding.hint

    old = initramfs.archive({f"{MODULES[1:]}/kernel/{name}.ko": b"" for name in initramfs.DISKS})
    (tmp_path / IMAGE[1:]).write_bytes(old)
    (finding,), _ = carried_out(tmp_path, FIXUP, context())
    assert "lsisas1068" in finding.hint


def test_a_kernel_without_the_driver_at_all(tmp_path: Path) -> None:
    guest(tmp_path, initramfs.image(Generator.DRACUT))
    (finding,), edited = carried_out(tmp_path, FIXUP, context(Target(Hypervisor.XEN)))
    assert finding.severity is Severity.DOWNGRADE
    assert "xen_blkfront" in finding.text
    assert not edited


def test_each_bus_has_its_drivers(tmp_path: Path) -> None:
    file = guest(tmp_path, initramfs.image(Generator.DRACUT))
    assert carried_out(tmp_path, FIXUP, context(Target(bus=Bus.SATA))) == ([], [IMAGE])
    assert f"{HOME}/kernel/drivers/ata/ahci.ko" in Kernelish(file.read_bytes()).files


def test_lilo_would_not_see_what_is_appended(tmp_path: Path) -> None:
    guest(tmp_path, initramfs.image(Generator.DRACUT))
    lilo = (BootLoader(LoaderKind.LILO),)
    (finding,), edited = carried_out(tmp_path, FIXUP, context(boot_loaders=lilo))
    assert "LILO" in finding.text
    assert not edited


def test_files_that_can_not_be_put_inside_are_a_warning_only(tmp_path: Path) -> None:
    guest(
        tmp_path,
        initramfs.archive({f"{MODULES[1:]}/{n}.ko": b"" for n in ("virtio_pci", "virtio_blk")}),
    )
    (finding,), edited = carried_out(tmp_path, FIXUP, context(), {"/etc/crypttab": b"x"})
    assert finding.severity is Severity.WARNING
    assert not edited


def test_other_kernels_get_the_same_and_rescue_kernels_are_left(tmp_path: Path) -> None:
    guest(tmp_path, initramfs.image(Generator.DRACUT))
    (tmp_path / "boot/second").write_bytes(initramfs.archive({"init": b""}))
    kernels = (
        Kernel(VERSION, initramfs=IMAGE, modules=MODULES, is_default=True),
        Kernel(VERSION, initramfs="/boot/second", modules=MODULES),
        Kernel("0-rescue", initramfs="/boot/not-there", is_rescue=True),
        Kernel(VERSION, initramfs="/boot/gone", modules=MODULES),
        Kernel(VERSION, modules=MODULES),
    )
    findings, edited = carried_out(tmp_path, FIXUP, context(kernels=kernels))
    assert edited == [IMAGE]
    assert [finding.severity for finding in findings] == [Severity.WARNING] * 3
    assert [
        word in finding.text
        for word, finding in zip(("udev", "gone", "no initramfs"), findings, strict=True)
    ] == [True] * 3


def test_what_inspection_says_of_drivers(tmp_path: Path) -> None:
    guest(tmp_path, initramfs.image(Generator.DRACUT))
    kernel = Kernel(VERSION, initramfs=IMAGE, modules=MODULES)
    with Tree(tmp_path) as tree:
        drivers, reason = states(Draft(tree), kernel, Guest())
    assert reason == ""
    assert drivers["mptsas"] is Driver.INITRAMFS
    assert drivers["virtio_blk"] is Driver.MODULE
    assert drivers["nvme"] is Driver.ABSENT


def test_hostile_names_stay_inside(tmp_path: Path) -> None:
    image = cpio.write(
        [
            cpio.link("a", "/b"),
            cpio.link("b", "a"),
            cpio.directory("../../etc"),
            cpio.file("../../../etc/x", b"1"),
            cpio.file("a/b/c", b"2"),
            cpio.file("/", b"3"),
        ]
    )
    guest(tmp_path, image)
    found = contents.examine(image, VERSION)
    assert "etc/x" in found.files
    carried_out(tmp_path, FIXUP, context(), {"/a/b/c": b"new"})
