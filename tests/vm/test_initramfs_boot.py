"""F20 with a real kernel: without virtio inside it finds no disk; with what is appended, it does.

The kernel, its modules, modprobe and QEMU are real; only what calls modprobe for each device that
the kernel announces is a loop in a shell, where a distribution has udev.
"""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import NOTHING_KNOWN
from p2v_sync.fixup.draft import Appended, Draft
from p2v_sync.fixup.guest import Guest, Kernel
from p2v_sync.fixup.initramfs import cpio, kmod_index
from p2v_sync.fixup.initramfs.compression import as_lz4
from p2v_sync.fixup.initramfs.drivers import InitramfsDrivers
from p2v_sync.fixup.initramfs.modules import module_name
from p2v_sync.fixup.plan import Bus, Context, Target
from p2v_sync.fixup.tree import Tree

_BOOT_S = 300  # software emulation on a busy machine; 15 s on an idle one

_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
# Twice: virtio's bus appears with the driver of its PCI device.
for round in 1 2; do
    for alias in $(/bin/busybox find /sys/devices -name modalias -exec /bin/busybox cat {} +); do
        /sbin/modprobe -q -b "$alias"
    done
done
/bin/busybox sleep 1
[ -b /dev/vda ] && echo "FOUND $(/bin/busybox head -c 8 /dev/vda)" || echo "NO DISK"
[ -e /etc/crypttab ] && echo "CRYPTTAB $(/bin/busybox cat /etc/crypttab)"
/bin/busybox poweroff -f
"""


@dataclass(frozen=True)
class Parts:
    """A kernel package and busybox, unpacked."""

    root: Path
    version: str


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """From the distribution's archive, or from the cache directory of an earlier run."""
    cache = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "p2v-sync-tests" / "packages"
    cache.mkdir(parents=True, exist_ok=True)
    root = tmp_path_factory.mktemp("kernel")
    for pattern in ("linux-image-*-cloud-amd64_*.deb", "busybox-static_*.deb"):
        if not any(cache.glob(pattern)):
            _download(cache, pattern)
        run("dpkg-deb", "-x", str(max(cache.glob(pattern))), str(root))
    version = next((root / "lib/modules").iterdir()).name
    run("depmod", "-b", str(root), version)
    return Parts(root, version)


def _download(cache: Path, pattern: str) -> None:
    name = "busybox-static"
    if pattern.startswith("linux"):
        needs = subprocess.run(
            ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True
        ).stdout
        match = re.search(r"Depends: (linux-image-\S+)", needs)
        name = match[1] if match else "linux-image-cloud-amd64"
    done = subprocess.run(["apt-get", "download", name], cwd=cache, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the distribution's archive has no {name} for us: {done.stderr.strip()}")


def run(*argv: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(argv, input=stdin, capture_output=True, check=True).stdout


def image(parts: Parts) -> bytes:
    """An archive as made on a machine with an IDE disk: its driver is inside, virtio's is not."""
    files = {"init": (_INIT.encode(), 0o755), "usr/lib/systemd/systemd-udevd": (b"", 0o755)}
    files["bin/busybox"] = ((parts.root / "bin/busybox").read_bytes(), 0o755)
    files["usr/bin/kmod"] = (Path(shutil.which("kmod") or "/bin/kmod").read_bytes(), 0o755)
    for library in re.findall(r"(/\S+)", run("ldd", "/bin/kmod").decode()):
        files[f"usr{library}".replace("usr/usr", "usr")] = (Path(library).read_bytes(), 0o755)
    for path in ("kernel/drivers/ata/ata_piix.ko", "kernel/drivers/ata/libata.ko"):
        name = f"usr/lib/modules/{parts.version}/{path}"
        files[name] = ((parts.root / "lib/modules" / parts.version / path).read_bytes(), 0o644)
    links = {"lib": "usr/lib", "lib64": "usr/lib64", "sbin/modprobe": "../usr/bin/kmod"}
    parents = {str(each) for name in [*files, *links] for each in Path(name).parents} - {"."}
    return cpio.write(
        [
            *(cpio.directory(name) for name in sorted(parents - {"lib", "lib64"})),
            *(cpio.link(name, target) for name, target in links.items()),
            *(cpio.file(name, data, mode) for name, (data, mode) in files.items()),
        ]
    )


def boot(parts: Parts, initramfs: Path, where: Path) -> str:
    """What the machine with a virtio disk says on its serial port until it is off."""
    disk = where / "disk.raw"
    disk.write_bytes(b"P2V-DISK".ljust(1 << 20, b"\0"))
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64", "-m", "512", "-no-reboot"]
    argv += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-net", "none"]
    argv += ["-kernel", str(parts.root / f"boot/vmlinuz-{parts.version}")]
    argv += ["-initrd", str(initramfs), "-append", "console=ttyS0 panic=-1 quiet"]
    argv += ["-drive", f"file={disk},format=raw,if=virtio"]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_BOOT_S, check=False
    )
    return done.stdout.decode(errors="replace")


def zstd(data: bytes) -> bytes:
    return run("zstd", "-q", "-c", stdin=data)


def test_our_index_is_that_of_depmod(parts: Parts) -> None:
    home = parts.root / "lib/modules" / parts.version
    lines = (home / "modules.dep").read_text().splitlines()
    index = kmod_index.index((module_name(line.partition(":")[0]), line) for line in lines)
    assert index == (home / "modules.dep.bin").read_bytes()


@pytest.fixture
def root(parts: Parts, tmp_path: Path) -> Path:
    """A guest whose initramfs is still to be written."""
    guest = tmp_path / "guest"
    (guest / "boot").mkdir(parents=True)
    shutil.copytree(parts.root / "lib/modules", guest / "usr/lib/modules")
    (guest / "lib").symlink_to("usr/lib")
    return guest


@pytest.mark.timeout(4 * _BOOT_S)
@pytest.mark.parametrize("pack", [zstd, as_lz4])
def test_a_kernel_finds_its_virtio_disk_with_what_was_appended(
    parts: Parts, root: Path, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    initramfs = root / "boot/initrd.img"
    microcode = cpio.write([cpio.file("kernel/x86/microcode/GenuineIntel.bin", bytes(2048))])
    initramfs.write_bytes(microcode + pack(image(parts)))
    if pack is zstd:
        assert "NO DISK" in boot(parts, initramfs, tmp_path)
    assert append(root, parts.version)
    said = boot(parts, initramfs, tmp_path)
    assert "FOUND P2V-DISK" in said
    assert "CRYPTTAB root UUID=1" in said
    assert not append(root, parts.version)


def append(root: Path, version: str) -> bool:
    """Plan and carry out; whether there was anything to do."""
    modules = f"/lib/modules/{version}"
    kernel = Kernel(version, initramfs="/boot/initrd.img", modules=modules, is_default=True)
    context = Context(Guest(kernels=(kernel,)), NOTHING_KNOWN, Machine(), Target(bus=Bus.VIRTIO))
    with Tree(root) as tree:
        draft = Draft(tree)
        draft.want_in_initramfs("/etc/crypttab", b"root UUID=1\n")
        assert not [*InitramfsDrivers().plan(draft, context)]
        for edit in draft.edits():
            assert isinstance(edit.after, Appended)
            with open(root / edit.path.lstrip("/"), "ab") as file:
                file.write(edit.after.data)
        return bool(draft.edits())
