"""The old server with the live CD in its drive: a machine emulated by QEMU, and its serial port."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.vm.machines import CPU, OVMF, PHYSICAL, QEMU
from tests.vm.recipes import NAMES

# For the live system to come up, which takes a busy machine five minutes, and for a step after it.
BOOT_S, LIMIT_S = 600.0, 1200.0
_UP = "this machine's disks are read-only"  # the console's first line
_CONSOLE = "console=tty0 console=ttyS0,115200 quiet loglevel=3"
# The live system has no other name for the server than what stands here.
JOB = "PowerEdge_R640-8XK2Q13"
UUID = "4c4c4544-0058-4b10-8032-b8c04f513133"
_SMBIOS = f"type=1,manufacturer=Dell Inc.,product=PowerEdge R640,serial=8XK2Q13,uuid={UUID}"


class Server:
    """On inside the ``with``; after it the plug is pulled.

    One AHCI disk, a DVD drive with the medium, and the NIC of the guest NAMES; ``parameters`` of
    the kernel: it is started past the boot loader, with these.  ``ssh_port``: of this host, leads
    to its port 22.  ``said``: what came out of its first serial port.  ``attempts``: 2 when it was
    switched on twice.
    """

    def __init__(
        self,
        directory: Path,
        medium: Path,
        disk: Path,
        *,
        uefi: bool = False,
        parameters: str | None = None,
        ssh_port: int | None = None,
    ) -> None:
        self._log, self._port = directory / "serial.log", directory / "serial"
        self._argv = [*_board(disk, medium / "p2v.iso"), *_network(ssh_port), *self._serial()]
        if uefi:
            self._argv += _firmware(directory)
        if parameters is not None:
            self._argv += _kernel(medium / "pxe", parameters)
        self.attempts = 1

    def _serial(self) -> list[str]:
        port = f"socket,id=s,path={self._port},server=on,wait=off,logfile={self._log}"
        return ["-chardev", port, "-serial", "chardev:s"]

    def __enter__(self) -> Self:
        """Emulated machines lock up now and then: then it is switched off and on again, once."""
        self._switch_on()
        if not self._waited(lambda: _UP in self.said, BOOT_S):
            assert self.is_on, f"QEMU ended\n{self.said[-5000:]}"
            self.pull_the_plug()
            self.attempts = 2
            self._switch_on()
            self.wait_for(_UP)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.pull_the_plug()

    def _switch_on(self) -> None:
        self._log.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL)

    def pull_the_plug(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def is_on(self) -> bool:
        return self._process.poll() is None

    def _waited(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Whether ``condition`` came true in time, and before the machine was off."""
        deadline = time.monotonic() + limit_s
        while not (is_true := condition()) and self.is_on and time.monotonic() < deadline:
            time.sleep(0.2)
        return is_true or condition()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        assert self._waited(condition, LIMIT_S), f"no {what}\n{self.said[-5000:]}"

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.said, repr(text))

    def keys(self, text: str) -> None:
        with socket.socket(socket.AF_UNIX) as port:
            port.connect(str(self._port))
            port.sendall(text.encode())
            time.sleep(1)  # QEMU drops what is in the socket when it is closed

    def answer(self, answers: Mapping[str, str], until: str) -> list[str]:
        """Type what ``answers`` has for each question that comes up; the questions, in order.

        A question is a part of its page that stands on no other.
        """
        asked: list[str] = []
        start = 0  # of what was said since the last answer

        def question() -> str | None:
            new = self.said[start:]
            return next((each for each in (until, *answers) if each in new), None)

        while True:
            self.wait_until(lambda: question() is not None, f"page after {asked}")
            if (found := question()) is None or found == until:
                return asked
            time.sleep(3)  # it is drawn, and dialog reads keys
            start = len(self.said)
            self.keys(answers[found])
            asked.append(found)

    def ends(self) -> None:
        """Wait until it has switched itself off."""
        try:
            assert self._process.wait(LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not switch itself off\n{self.said[-5000:]}")


def to_the_serial_line(server: Server) -> None:
    """The wizard, which may have come up on the screen."""
    first = ("How does this machine reach the host?", "w Enter: the wizard")
    server.wait_until(lambda: any(each in server.said for each in first), "first page")
    if first[0] not in server.said:
        server.keys("w\r")


def _board(disk: Path, iso: Path) -> list[str]:
    return [
        *(QEMU, "-machine", "q35,smm=off", "-accel", "tcg,thread=multi", "-cpu", CPU),
        *("-smp", "2", "-m", "2048", "-display", "none", "-smbios", _SMBIOS),
        *("-drive", f"if=none,id=d,file={disk},format=raw,cache=unsafe"),
        *("-device", f"{PHYSICAL.disk},drive=d,bus=ide.0,bootindex=5"),
        *("-drive", f"if=none,id=cd,file={iso},format=raw,media=cdrom,readonly=on"),
        *("-device", "ide-cd,drive=cd,bus=ide.2,bootindex=1"),
    ]


def _network(ssh_port: int | None) -> list[str]:
    forward = "" if ssh_port is None else f",hostfwd=tcp:127.0.0.1:{ssh_port}-:22"
    place = f"mac={NAMES.mac},addr={PHYSICAL.slot:#x},romfile="
    return ["-netdev", f"user,id=n{forward}", "-device", f"{PHYSICAL.nic},netdev=n,{place}"]


def _firmware(directory: Path) -> list[str]:
    variables = shutil.copy(OVMF / "OVMF_VARS_4M.fd", directory)
    flash = "if=pflash,format=raw"
    return [
        *("-drive", f"{flash},unit=0,file={OVMF / 'OVMF_CODE_4M.fd'},readonly=on"),
        *("-drive", f"{flash},unit=1,file={variables}"),
    ]


def _kernel(pxe: Path, parameters: str) -> list[str]:
    return [
        *("-kernel", str(pxe / "vmlinuz"), "-initrd", str(pxe / "initrd.img")),
        *("-append", f"boot=live nopersistence {_CONSOLE} {parameters}"),
    ]
