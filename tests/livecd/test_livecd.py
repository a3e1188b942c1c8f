"""The live CD in emulated machines: built once, then booted as on a server.

Takes minutes, and root: ``make e2e-all``.
"""

import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_sync.units import MIB
from tests.conftest import Tell
from tests.vm.machines import OVMF, QEMU

ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0  # for one boot and what it has to do; 3 minutes when the machine is busy
TOKEN = "a-token-of-thirty-two-characters"
CONSOLE = "console=tty0 console=ttyS0,115200 quiet loglevel=3"

_missing = [each for each in (QEMU, "mmdebstrap", "xorriso") if shutil.which(each) is None]
pytestmark = [
    pytest.mark.skipif(bool(_missing), reason=f"needs {', '.join(_missing)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="session")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with p2v.iso and what ``--pxe`` writes."""
    directory = tmp_path_factory.mktemp("livecd")
    build = [str(ROOT / "livecd" / "build"), "--out", "p2v.iso", "--pxe", "pxe"]
    subprocess.run(build, cwd=directory, check=True, timeout=LIMIT_S)
    return directory


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's disk: a partition with an ext4 file system that was not unmounted, and data."""
    directory = tmp_path_factory.mktemp("disk")
    part, point, image = directory / "part", directory / "point", directory / "disk.img"
    with part.open("wb") as file:
        file.truncate(100 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(part)], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(part), str(point)], check=True)
    try:
        (point / "file").write_bytes(random.Random(1).randbytes(MIB))
        subprocess.run(["sync", "-f", str(point)], check=True)
        dirty = part.read_bytes()
    finally:
        subprocess.run(["umount", str(point)], check=True)
    with image.open("wb") as file:
        file.truncate(400 * MIB)
        file.seek(MIB)
        file.write(dirty)
        file.seek(150 * MIB)
        file.write(random.Random(2).randbytes(200 * MIB))
    table = "start=2048, size=204800, type=83\n"
    subprocess.run(["sfdisk", "-q", str(image)], input=table, text=True, check=True)
    features = subprocess.run(["dumpe2fs", "-h", str(part)], check=True, capture_output=True)
    assert b"has_journal" in features.stdout
    return image


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Server:
    """A machine with one AHCI disk and a DVD drive; ``kernel``: past the boot loader, by its line.

    Its first serial port is a socket, what came out of it is in ``said``.
    """

    def __init__(
        self, directory: Path, iso: Path, disk: Path, *, uefi: bool = False, kernel: str = ""
    ) -> None:
        self._log, port = directory / "serial.log", directory / "serial"
        self._log.unlink(missing_ok=True)
        argv = [QEMU, "-machine", "q35,smm=off", "-accel", "tcg,thread=multi", "-cpu", "qemu64"]
        argv += ["-smp", "2", "-m", "2048", "-display", "none", "-netdev", "user,id=n"]
        argv += ["-device", "e1000e,netdev=n,romfile="]
        argv += ["-drive", f"if=none,id=d,file={disk},format=raw,cache=unsafe"]
        argv += ["-device", "ide-hd,drive=d,bus=ide.0,bootindex=5"]
        argv += ["-drive", f"if=none,id=cd,file={iso},format=raw,media=cdrom,readonly=on"]
        argv += ["-device", "ide-cd,drive=cd,bus=ide.2,bootindex=1"]
        argv += ["-chardev", f"socket,id=s,path={port},server=on,wait=off,logfile={self._log}"]
        argv += ["-serial", "chardev:s"]
        if uefi:
            variables = shutil.copy(OVMF / "OVMF_VARS_4M.fd", directory)
            flash = "if=pflash,format=raw"
            argv += ["-drive", f"{flash},unit=0,file={OVMF / 'OVMF_CODE_4M.fd'},readonly=on"]
            argv += ["-drive", f"{flash},unit=1,file={variables}"]
        if kernel:
            pxe = iso.parent / "pxe"
            argv += ["-kernel", str(pxe / "vmlinuz"), "-initrd", str(pxe / "initrd.img")]
            argv += ["-append", f"boot=live nopersistence {CONSOLE} {kernel}"]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        self._port = port

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while text not in self.said:
            assert self._process.poll() is None, f"ended without {text!r}\n{self.said[-3000:]}"
            assert time.monotonic() < deadline, f"no {text!r}\n{self.said[-3000:]}"
            time.sleep(0.5)

    def keys(self, text: str) -> None:
        with socket.socket(socket.AF_UNIX) as port:
            port.connect(str(self._port))
            port.sendall(text.encode())
            time.sleep(1)  # QEMU drops what is in the socket when it is closed

    def ends(self) -> None:
        """Wait until it has switched itself off."""
        try:
            assert self._process.wait(LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not switch itself off\n{self.said[-3000:]}")

    def pull_the_plug(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def copy_of_disk(disk: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(disk, tmp_path / "server.img"))


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_p1_it_boots_to_the_first_screen_and_touches_no_disk(
    firmware: str, medium: Path, copy_of_disk: Path, disk: Path, tmp_path: Path
) -> None:
    server = Server(tmp_path, medium / "p2v.iso", copy_of_disk, uefi=firmware == "uefi")
    try:
        server.wait_for("p2v-sync 0")
        time.sleep(5)
        if "How does this machine reach" not in server.said:  # the wizard is on the screen
            server.wait_for("w Enter")
            server.keys("w\r")
        server.wait_for("How does this machine reach the host?")
        server.keys("\x1b")
        server.wait_for("ended with status 130")
        server.keys("\r")
        server.wait_for("# ")
        server.keys("echo ro $(blockdev --getro /dev/sda /dev/sda1) dm:$(dmsetup ls); exit\r")
        server.wait_for("ro 1 1 dm:No devices found")
        server.keys("\r")
        server.keys("grep -c ^/dev/sd /proc/mounts | sed s/^/mounted:/; poweroff\r")
        server.wait_for("mounted:0")
        server.ends()
    finally:
        server.pull_the_plug()
    assert digest(copy_of_disk) == digest(disk)


class Host:
    """A receiver and a web server with a preseed, on ports of the loopback."""

    def __init__(self, directory: Path) -> None:
        self.replica = directory / "replicas" / "box" / "sda.img"
        (directory / "replicas").mkdir()
        self._web = directory / "web"
        self._web.mkdir()
        self.port, self.web_port = free_port(), free_port()
        receiver = [sys.executable, "-m", "p2v_receiver", "listen", "--bind", "127.0.0.1"]
        receiver += ["--dir", str(directory / "replicas"), "--port", str(self.port)]
        environ = {**os.environ, "P2V_TOKEN": TOKEN, "PYTHONPATH": str(ROOT / "receiver")}
        web = [sys.executable, "-m", "http.server", str(self.web_port), "--bind", "127.0.0.1"]
        self._processes = [
            subprocess.Popen(receiver, env=environ, stdout=subprocess.DEVNULL),
            subprocess.Popen(web, cwd=self._web, stderr=subprocess.DEVNULL),
        ]

    def offer(self, **answers: str) -> str:
        """Kernel parameters for a preseed with these besides the target."""
        lines = [f'{key.replace("_", ".")} = "{value}"' for key, value in answers.items()]
        target = f'target = "tcp://10.0.2.2:{self.port}"\nname = "box"\nauto = true\n'
        text = target + f'login.token = "{TOKEN}"\n' + "\n".join(lines)
        (self._web / "site.toml").write_text(text)
        return f"p2v.config=http://10.0.2.2:{self.web_port}/site.toml p2v.auto"

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    try:
        yield host
    finally:
        host.close()


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0


def test_unattended_and_cut_off_and_again(
    medium: Path, copy_of_disk: Path, disk: Path, host: Host, tmp_path: Path, tell: Tell
) -> None:
    log = "cat /run/p2v-sync/log >/dev/ttyS0; echo ALL-COPIED >/dev/ttyS0"
    line = host.offer(action="sync", post="poweroff", hooks_post=log)
    first = Server(tmp_path, medium / "p2v.iso", copy_of_disk, kernel=line)
    try:
        deadline = time.monotonic() + LIMIT_S
        while allocated(host.replica) < 60 * MIB:
            assert time.monotonic() < deadline, first.said[-3000:]
            time.sleep(0.2)
    finally:
        first.pull_the_plug()
    before = allocated(host.replica)
    assert before < 190 * MIB, "cut off too late to tell"
    second = Server(tmp_path, medium / "p2v.iso", copy_of_disk, kernel=line)
    try:
        second.wait_for("ALL-COPIED")
        second.ends()
    finally:
        second.pull_the_plug()
    assert "pass 1 resumes" in second.said
    finished = next(each for each in second.said.splitlines() if "pass 1 complete" in each)
    tell(f"cut off at {before // MIB} MiB; then {finished.strip()}")
    assert digest(host.replica) == digest(disk) == digest(copy_of_disk)


def test_a_failure_fires_its_hook_and_the_machine_stays_up(
    medium: Path, copy_of_disk: Path, host: Host, tmp_path: Path
) -> None:
    line = host.offer(disks="sdz", hooks_fail="echo FAILED-$P2V_STATUS >/dev/ttyS0")
    server = Server(tmp_path, medium / "p2v.iso", copy_of_disk, kernel=line)
    try:
        server.wait_for("FAILED-6")
        server.keys("\r")
        server.wait_for("w Enter: the wizard")
    finally:
        server.pull_the_plug()
