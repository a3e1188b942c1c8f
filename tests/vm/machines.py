"""The machines guests boot on: QEMU in software emulation, as the old server and as the new VM.

/dev/kvm is not asked for: it may be there and yet hang a guest.  A boot ends by itself: the guest
reports on its second serial port and switches off, or it is seen to be stuck on the first.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

LIMIT_S = 720.0  # for one boot; a tenth of it is enough on a machine that does nothing else
QEMU = "qemu-system-x86_64"
CPU = "qemu64"  # has no AVX, whose emulation is slow
OVMF = Path("/usr/share/OVMF")
_POLL_S = 0.5
_TAIL = 3000  # characters of the console in messages
_PROMPT = "Please unlock disk"  # cryptsetup-initramfs
_CONTROLS = re.compile(r"\x1b(\[[0-9;?=]*[A-Za-z]|[c78])")

# What is on the console of a machine that will not get any further.
STUCK = {
    "initramfs": "(initramfs)",
    "uefi-shell": "UEFI Interactive Shell",
    "no-boot-device": "No bootable",  # SeaBIOS: "device.", OVMF: "option or device was found."
    "panic": "Kernel panic - not syncing",
    "grub-rescue": "grub rescue>",
    "grub-shell": "grub> ",
    "emergency": "You are in emergency mode",
}


@dataclass(frozen=True)
class Machine:
    """``disk`` and ``nic`` are QEMU's device models; ``slot`` is the NIC's place on the bus.

    ``variables``: the file with the UEFI firmware's variables; without one they are empty, as in a
    new VM.  ``passphrase``: what somebody types on the console when a disk is to be unlocked.
    """

    disk: str
    nic: str
    slot: int
    is_uefi: bool = False
    variables: Path | None = None
    passphrase: str = ""


# The same but for what P2V changes.  The NIC's other slot gives it another predictable name.
PHYSICAL = Machine(disk="ide-hd", nic="e1000e", slot=2)
VIRTIO = Machine(disk="virtio-blk-pci", nic="virtio-net-pci", slot=9)


class Kernel(NamedTuple):
    """What is started instead of the disk's own boot loader."""

    image: Path
    initrd: Path
    arguments: str


@dataclass(frozen=True)
class Boot:
    """How a boot ended.  ``end``: ``off`` (the machine was switched off, or reset), a key of STUCK,
    or ``timeout``; ``report``: what the guest said, if it did; ``attempts``: 2 after a timeout."""

    end: str
    report: dict[str, Any] | None
    console: str
    seconds: float
    attempts: int = 1

    def __str__(self) -> str:
        return (
            f"{self.end} after {self.seconds:.0f} s, attempt {self.attempts}, report {self.report};"
            f" the console ends with\n{self.console[-_TAIL:]}"
        )


def boot(
    machine: Machine,
    images: Sequence[Path],
    mac: str,
    *,
    keep: bool = False,
    kernel: Kernel | None = None,
    limit_s: float = LIMIT_S,
) -> Boot:
    """Boot to the end.  The images (raw or qcow2, by suffix) and variables are left as they are
    unless ``keep``."""

    def argv(directory: Path) -> list[str]:
        return [
            *_board(machine, mac),
            *_firmware(machine, directory, keep=keep),
            *_disks(machine, images, keep=keep),
            *_boot_arguments(kernel),
        ]

    return _boot(argv, limit_s, machine.passphrase)


def boot_script(script: Path, *, limit_s: float = LIMIT_S) -> Boot:
    """Boot the machine that a script of ``vm.qemu`` describes; its images are left as they are."""
    # For a host without KVM and without a screen; else it is the machine as it was written.
    host = ("-machine", "accel=tcg", "-cpu", CPU, "-display", "none", "-no-reboot", "-snapshot")
    return _boot(lambda _: ["sh", str(script), *host], limit_s)


def _boot(argv: Callable[[Path], Sequence[str]], limit_s: float, passphrase: str = "") -> Boot:
    """``argv``: of QEMU, which may use the directory.  Once more after a timeout: emulated machines
    lock up now and then."""
    with tempfile.TemporaryDirectory(prefix="p2v-vm-") as name:
        first = _boot_once(argv(Path(name)), Path(name), limit_s, passphrase)
    if first.end != "timeout":
        return first
    with tempfile.TemporaryDirectory(prefix="p2v-vm-") as name:
        second = _boot_once(argv(Path(name)), Path(name), limit_s, passphrase)
    return replace(second, attempts=2)


def _boot_once(argv: Sequence[str], directory: Path, limit_s: float, passphrase: str) -> Boot:
    console, report, complaint = (directory / each for each in ("console", "report", "stderr"))
    started = time.monotonic()
    with console.open("wb") as screen, complaint.open("wb") as stderr:
        # Its snapshots would go to /var/tmp.
        process = subprocess.Popen(
            [
                *argv,
                *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
                *("-serial", f"file:{report}"),
            ],
            stdin=subprocess.PIPE,
            stdout=screen,
            stderr=stderr,
            env={**os.environ, "TMPDIR": str(directory)},
        )
        with process:
            try:
                end = _watch(process, console, passphrase, started + limit_s)
            finally:
                process.kill()
    seconds = time.monotonic() - started
    assert process.returncode <= 0, _text(complaint)
    # UEFI writes to that port too, before.
    said = re.findall(r"^\{.*\}\r?$", _text(report), flags=re.MULTILINE)
    return Boot(end, json.loads(said[-1]) if said else None, _text(console), seconds)


def _watch(
    process: "subprocess.Popen[bytes]", console: Path, passphrase: str, deadline: float
) -> str:
    while time.monotonic() < deadline:
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            text = _text(console)
            if (stuck := stuck_at(text)) is not None:
                return stuck
            if passphrase and _PROMPT in text:
                _type(process, passphrase)
                passphrase = ""
        else:
            return "off"
    return "timeout"


def _type(process: "subprocess.Popen[bytes]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()


def stuck_at(console: str) -> str | None:
    """The key in STUCK of what the console shows; firmware moves the cursor within words."""
    text = _CONTROLS.sub("", console)
    return next((key for key, mark in STUCK.items() if mark in text), None)


def _board(machine: Machine, mac: str) -> list[str]:
    return [
        *(QEMU, "-nodefaults", "-display", "none", "-no-reboot"),
        # Without graphics the BIOS and GRUB use the serial port.  The BIOS's way of reading an AHCI
        # disk through SMM hangs in emulation.
        *("-machine", "q35,graphics=off,smm=off", "-accel", "tcg,thread=multi", "-cpu", CPU),
        *("-smp", "2", "-m", "1024", "-netdev", "user,id=net"),
        *("-device", f"{machine.nic},netdev=net,mac={mac},addr={machine.slot:#x},romfile="),
    ]


def _firmware(machine: Machine, directory: Path, *, keep: bool) -> list[str]:
    """The BIOS comes with QEMU."""
    if not machine.is_uefi:
        return []
    variables = machine.variables or OVMF / "OVMF_VARS_4M.fd"
    if not keep:
        variables = Path(shutil.copy(variables, directory))
    flash = "if=pflash,format=raw"
    argv = ["-drive", f"{flash},unit=0,file={OVMF / 'OVMF_CODE_4M.fd'},readonly=on"]
    argv += ["-drive", f"{flash},unit=1,file={variables}"]
    for version in (4, 6):  # it would wait for a server before it gives up
        argv += ["-fw_cfg", f"name=opt/org.tianocore/IPv{version}PXESupport,string=n"]
    return argv


def _disks(machine: Machine, images: Sequence[Path], *, keep: bool) -> list[str]:
    argv = []
    for number, image in enumerate(images):
        kind = "qcow2" if image.suffix == ".qcow2" else "raw"
        # What nobody changes needs no lock; the lab kernel wants one on its disks.
        access = "snapshot=off" if keep else "snapshot=on,file.locking=off"
        drive = f"if=none,id=disk{number},file={image},format={kind},cache=unsafe"
        place = f",bus=ide.{number}" if machine.disk.startswith("ide-") else ""
        argv += ["-drive", f"{drive},{access}"]
        argv += ["-device", f"{machine.disk},drive=disk{number},bootindex={number + 1}{place}"]
    return argv


def _boot_arguments(kernel: Kernel | None) -> list[str]:
    if kernel is None:
        return []
    files = ("-kernel", str(kernel.image), "-initrd", str(kernel.initrd))
    return [*files, "-append", kernel.arguments]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
