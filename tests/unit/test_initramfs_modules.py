"""The modules of an installed kernel, and the indices that are written for them."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Driver, Kernel
from p2v_sync.fixup.initramfs import kmod_index, modules
from p2v_sync.fixup.tree import Tree
from tests.contract import initramfs
from tests.contract.initramfs import MODULES, VERSION

KERNEL = Kernel(VERSION, modules=MODULES, config=f"/boot/config-{VERSION}")


def installed(root: Path) -> modules.Modules:
    with Tree(root) as tree:
        return modules.installed(Draft(tree), KERNEL)


def test_what_a_module_needs_comes_before_it(tmp_path: Path) -> None:
    initramfs.install(tmp_path)
    found = installed(tmp_path)
    order = found.closure(["virtio_blk", "virtio_pci", "sd_mod", "not_there"])
    assert order == ["virtio", "virtio_ring", "virtio_blk", "virtio_pci", "scsi_mod", "sd_mod"]
    assert found.closure([]) == []


def test_a_circle_of_needs_ends(tmp_path: Path) -> None:
    initramfs.install(tmp_path, paths={"a.ko": ("b.ko",), "b.ko": ("a.ko",)})
    assert sorted(installed(tmp_path).closure(["a"])) == ["a", "b"]


def test_where_a_driver_is(tmp_path: Path) -> None:
    initramfs.install(tmp_path, ".xz")
    (tmp_path / "boot").mkdir()
    (tmp_path / KERNEL.config[1:]).write_text("CONFIG_ATA_PIIX=y\n# CONFIG_SATA_NV is not set\n")
    (tmp_path / MODULES[1:] / "modules.builtin").write_text("kernel/drivers/nvme/host/nvme.ko\n")
    found = installed(tmp_path)
    assert found.state("ata_piix") is Driver.BUILTIN
    assert found.state("nvme") is Driver.BUILTIN
    assert found.state("virtio_blk") is Driver.MODULE
    assert found.state("virtio_blk", {"virtio_blk"}) is Driver.INITRAMFS
    assert found.state("megaraid_sas") is Driver.ABSENT


def test_names_with_dashes_whole_paths_and_junk_of_old_systems(tmp_path: Path) -> None:
    home = tmp_path / MODULES[1:]
    home.mkdir(parents=True)
    (home / "modules.dep").write_text(
        f"{MODULES}/kernel/drivers/xen/xen-blkfront.ko: {MODULES}/kernel/xenbus.ko\n"
        f"{MODULES}/kernel/xenbus.ko:\n"
        "no colon\n../../../etc/passwd.ko:\nnot a module:\n\n"
    )
    (home / "modules.alias").write_text("alias xen:vbd xen-blkfront\nalias too many words\n")
    found = installed(tmp_path)
    assert found.files == {
        "xen_blkfront": "kernel/drivers/xen/xen-blkfront.ko",
        "xenbus": "kernel/xenbus.ko",
    }
    assert found.is_absolute
    assert found.aliases == (("xen:vbd", "xen_blkfront"),)


def test_a_kernel_without_modules_has_none(tmp_path: Path) -> None:
    assert not installed(tmp_path).files
    with Tree(tmp_path) as tree:
        assert not modules.installed(Draft(tree), Kernel("1")).files


def read_index(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """The format as libkmod-index.h of kmod describes it."""
    magic, version, root = struct.unpack_from(">III", data)
    assert (magic, version) == (0xB007F457, 0x00020001)
    yield from _read_node(data, root, b"")


def _read_node(data: bytes, offset: int, key: bytes) -> Iterator[tuple[str, list[str]]]:
    at = offset & 0x0FFFFFFF
    if offset & 0x80000000:
        end = data.index(b"\0", at)
        key, at = key + data[at:end], end + 1
    if offset & 0x20000000:
        first, last = data[at], data[at + 1]
        children = struct.unpack_from(f">{last - first + 1}I", data, at + 2)
        at += 2 + 4 * len(children)
        for character, child in enumerate(children, first):
            if child:
                yield from _read_node(data, child, key + bytes([character]))
    if offset & 0x40000000:
        (count,) = struct.unpack_from(">I", data, at)
        at += 4
        values = []
        for _ in range(count):
            end = data.index(b"\0", at + 4)
            values.append((struct.unpack_from(">I", data, at), data[at + 4 : end].decode()))
            at = end + 1
        assert values == sorted(values)
        yield key.decode(), [value for _, value in values]


KEYS = st.text("ab*:_", max_size=6)


@given(st.lists(st.tuples(KEYS, st.text("xyz/", max_size=5))))
def test_an_index_has_what_was_put_in(pairs: list[tuple[str, str]]) -> None:
    expected: dict[str, list[str]] = {}
    for key, value in pairs:
        expected.setdefault(key, []).append(value)
    assert dict(read_index(kmod_index.index(pairs))) == expected


@pytest.mark.parametrize("key", ["ä", "a\0b"])
def test_keys_that_do_not_fit_into_an_index(key: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        kmod_index.index([(key, "x")])
