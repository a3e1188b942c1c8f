"""Initramfs images made for tests, and a model of how the kernel unpacks them."""

import gzip
import stat
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.draft import Appended, Content, Draft
from p2v_sync.fixup.guest import Generator, Guest, Kernel
from p2v_sync.fixup.initramfs import cpio
from p2v_sync.fixup.plan import Context, Finding, Fixup, Target
from p2v_sync.fixup.tree import Tree

VERSION = "6.1.0-9-amd64"
MODULES = f"/lib/modules/{VERSION}"
IMAGE = "/boot/initrd.img"

# path → what it needs, as modules.dep has it.
INSTALLED = {
    "kernel/drivers/virtio/virtio.ko": (),
    "kernel/drivers/virtio/virtio_ring.ko": ("kernel/drivers/virtio/virtio.ko",),
    "kernel/drivers/virtio/virtio_pci.ko": (
        "kernel/drivers/virtio/virtio_ring.ko",
        "kernel/drivers/virtio/virtio.ko",
    ),
    "kernel/drivers/block/virtio_blk.ko": (
        "kernel/drivers/virtio/virtio_ring.ko",
        "kernel/drivers/virtio/virtio.ko",
    ),
    "kernel/drivers/scsi/scsi_mod.ko": (),
    "kernel/drivers/scsi/sd_mod.ko": ("kernel/drivers/scsi/scsi_mod.ko",),
    "kernel/drivers/ata/ahci.ko": ("kernel/drivers/scsi/scsi_mod.ko",),
    "kernel/drivers/message/mptsas.ko": ("kernel/drivers/scsi/scsi_mod.ko",),
    "kernel/drivers/net/virtio_net.ko": ("kernel/drivers/virtio/virtio.ko",),
    "kernel/drivers/net/e1000e.ko": (),
}
ALIASES = {
    "virtio:d00000002v*": "virtio_blk",
    "pci:v00001AF4d*sv*sd*bc*sc*i*": "virtio_pci",
    "pci:v*d*sv*sd*bc01sc06i01*": "ahci",
}
DISKS = ("scsi_mod", "sd_mod", "mptsas")  # what the old machine needs

# Name → contents; what each generator leaves behind.
SIGNS: Mapping[Generator, Mapping[str, bytes]] = {
    Generator.INITRAMFS_TOOLS: {
        "init": b"#!/bin/sh\n",
        "conf/initramfs.conf": b"MODULES=dep\n",
        "conf/modules": b"# nothing\nmptsas",
        "scripts/functions": b"",
    },
    Generator.DRACUT: {
        "usr/lib/dracut-lib.sh": b"",
        "usr/lib/systemd/systemd-udevd": b"",
    },
    Generator.MKINITCPIO: {
        "config": b"",
        "init_functions": b"",
        "usr/lib/systemd/systemd-udevd": b"",
    },
}


def stem(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0]


def module(path: str) -> bytes:
    return b"\x7fELF" + stem(path).encode()


def install(root: Path, suffix: str = "", paths: Mapping[str, Sequence[str]] = INSTALLED) -> None:
    """The modules of a kernel; ``suffix``: .gz packs them."""
    home = root / MODULES[1:]
    dependencies = []
    for path, needs in paths.items():
        file = home / f"{path}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(module(path)) if suffix else module(path))
        dependencies.append(
            f"{path}{suffix}:" + "".join(f" {need}{suffix}" for need in needs) + "\n"
        )
    (home / "modules.dep").write_text("".join(dependencies))
    (home / "modules.alias").write_text(
        "# Aliases\n" + "".join(f"alias {alias} {name}\n" for alias, name in ALIASES.items())
    )


def archive(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """With the directories of all of them."""
    links = links or {}
    parents = {str(each) for name in [*files, *links] for each in Path(name).parents} - {"."}
    return cpio.write(
        [
            *(cpio.directory(name) for name in sorted(parents - {*links})),
            *(cpio.link(name, target) for name, target in links.items()),
            *(cpio.file(name, data) for name, data in files.items()),
        ]
    )


def image(generator: Generator, modules: Sequence[str] = DISKS, suffix: str = "") -> bytes:
    """An archive as that generator would make it, with a merged /usr."""
    files = dict(SIGNS[generator])
    for path in INSTALLED:
        if stem(path) in modules:
            name = f"usr{MODULES}/{path}{suffix}"
            files[name] = gzip.compress(module(path)) if suffix else module(path)
    return archive(files, {"lib": "usr/lib"})


def context(target: Target | None = None, **guest: object) -> Context:
    kernel = Kernel(VERSION, initramfs=IMAGE, modules=MODULES, is_default=True)
    found = Guest(**{"kernels": (kernel,), **guest})  # type: ignore[arg-type]
    return Context(found, NOTHING_KNOWN, Machine(), target or Target())


def carried_out(
    root: Path, fixup: Fixup, context: Context, wanted: Mapping[str, bytes] | None = None
) -> tuple[list[Finding], list[str]]:
    """Plan, write the plan into the tree: what was said, and which files were changed."""
    with Tree(root) as tree:
        draft = Draft(tree)
        for path, data in (wanted or {}).items():
            draft.want_in_initramfs(path, data)
        with draft.of(fixup.key):
            findings = [*fixup.plan(draft, context)]
        for edit in draft.edits():
            file = root / edit.path[1:]
            match edit.after:
                case Appended(_, data):
                    file.write_bytes(file.read_bytes() + data)
                case Content(data):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
                case other:
                    raise AssertionError(f"{edit.path}: {other}")
        return findings, [edit.path for edit in draft.edits()]


class Kernelish:
    """What init/initramfs.c leaves in memory: gzip and plain archives are enough for its rules.

    ``truncates``: since 2.6.34 a file that is replaced does not keep its old end.
    """

    def __init__(self, image: bytes, *, truncates: bool = True) -> None:
        self.files: dict[str, bytes] = {}
        self.modes: dict[str, int] = {}
        self.links: dict[str, str] = {}
        self._truncates = truncates
        at = 0
        while at < len(image):
            if image[at] == 0:
                at += 1
            elif image[at : at + 6] == b"070701":
                assert at % 4 == 0, "the kernel would not take it for an archive"
                at = self._archive(image, at)
            else:
                unpacker = zlib.decompressobj(wbits=31)
                self._archive(unpacker.decompress(image[at:]), 0)
                at = len(image) - len(unpacker.unused_data)

    def _archive(self, data: bytes, at: int) -> int:
        while True:
            field = [int(data[at + 6 + 8 * each :][:8], 16) for each in range(13)]
            mode, size, name_size = field[1], field[6], field[11]
            name = data[at + 110 : at + 110 + name_size - 1].decode()
            start = (at + 110 + name_size + 3) & ~3
            at = (start + size + 3) & ~3
            if name == "TRAILER!!!":
                return at
            self._member(name, mode, data[start : start + size])

    def _member(self, name: str, mode: int, data: bytes) -> None:
        parent, _, last = name.rpartition("/")
        if parent:
            top, slash, rest = parent.partition("/")
            parent = self.links.get(top, top) + slash + rest
            assert self.modes.get(parent, 0) == stat.S_IFDIR, f"{name}: no directory {parent}"
        path = f"{parent}/{last}" if parent else last
        self.links.pop(path, None)  # whatever comes takes a link's place
        if stat.S_ISDIR(mode):
            self.modes[path] = stat.S_IFDIR
        elif stat.S_ISLNK(mode):
            self.links[path] = data.decode()
        else:
            old = b"" if self._truncates else self.files.get(path, b"")
            self.files[path] = data + old[len(data) :]
            self.modes[path] = mode
