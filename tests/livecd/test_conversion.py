"""A server becomes a virtual machine by the live CD: unattended, cut off, and again by hand."""

import hashlib
import random
import re
import subprocess
from pathlib import Path

import pytest

from p2v_sync.units import KIB, MIB, parse_size
from tests.conftest import Tell
from tests.livecd.conftest import NEEDS_MEDIUM, digest
from tests.livecd.host import TOKEN, Host
from tests.livecd.server import JOB, UUID, Server, to_the_serial_line
from tests.vm.cache import CACHE
from tests.vm.conftest import NEEDS_GUESTS
from tests.vm.guests import Guest, Workshop
from tests.vm.machines import boot_script
from tests.vm.recipes import NAMES
from tests.vm.test_boot import assert_runs, on_virtio, told

pytestmark = [*NEEDS_GUESTS, *NEEDS_MEDIUM]

_LOG = "grep -v DEBUG /run/p2v-sync/log >/dev/ttyS0"
_PASS = re.compile(r"pass (\d) complete in .*, sent ([\d.]+ \w+)")
_BLOCK = 256 * KIB
_CHANGE = 8 * MIB


@pytest.fixture(scope="module")
def guest() -> Guest:
    return Workshop(CACHE).guest(NAMES)


def data_in(image: Path) -> int:
    """Bytes in blocks that are not all zeros: what a first pass has to send."""
    zeros = bytes(_BLOCK)
    with image.open("rb") as file:
        return sum(len(block) for block in iter(lambda: file.read(_BLOCK), b"") if block != zeros)


def allocated(image: Path) -> int:
    return image.stat().st_blocks * 512 if image.exists() else 0


def sent_in_pass(number: int, said: str) -> int:
    """Bytes that the source says it sent, before compression."""
    found = {int(at): parse_size(size.replace(" ", "")) for at, size in _PASS.findall(said)}
    assert number in found, said[-5000:]
    return found[number]


def change_as_the_server_would(disk: Path, point: Path) -> None:
    """A new file, which the guest expects from now on."""
    content = random.Random(3).randbytes(_CHANGE)
    point.mkdir()
    subprocess.run(["mount", "-o", f"loop,offset={MIB}", disk, point], check=True)
    try:
        (point / "srv/data/new.bin").write_bytes(content)
        with (point / "etc/manifest").open("a") as manifest:
            manifest.write(f"{hashlib.sha256(content).hexdigest()}  srv/data/new.bin\n")
    finally:
        subprocess.run(["umount", point], check=True)


def assert_runs_from_its_script(guest: Guest, images: Path) -> str:
    """On virtio, as the QEMU script that was written describes it."""
    script = images / f"{JOB}.qemu.sh"
    assert f"-uuid {UUID}" in script.read_text()
    done = boot_script(script)
    assert_runs(done, guest, called=on_virtio)
    return told(done)


def test_a_server_is_cut_off_resumed_converted_and_cut_over(
    guest: Guest, medium: Path, host: Host, tmp_path: Path, tell: Tell
) -> None:
    disk = tmp_path / "server.img"
    subprocess.run(["cp", "--sparse=always", *guest.images, disk], check=True)
    before, data = digest(disk), data_in(disk)
    images = host.images / JOB
    unattended = host.offer(
        action="convert",
        vm_memory="1G",
        post="poweroff",
        hooks_post=f"{_LOG}; echo ALL-WENT-WELL >/dev/ttyS0",
        hooks_fail=f"{_LOG}; poweroff",
    )

    with Server(tmp_path, medium, disk, parameters=unattended) as server:
        third = "third of the data at the host"
        server.wait_until(lambda: allocated(images / "sda.img") > data // 3, third)
    first, there = host.sent, allocated(images / "sda.img")
    assert there < data * 0.8, "cut off too late to tell"

    with Server(tmp_path, medium, disk, parameters=unattended) as server:
        server.ends()
    assert "ALL-WENT-WELL" in server.said, server.said[-5000:]
    assert "pass 1 resumes" in server.said
    assert "found Debian GNU/Linux 12 (bookworm) (names)" in server.said
    sent = sent_in_pass(1, server.said)
    tell(
        f"cut off at {there // MIB} of {data // MIB} MiB; then {sent // MIB} MiB sent; on the "
        f"link {first // MIB} MiB and {(host.sent - first) // MIB} MiB"
    )
    assert sent <= data - 0.9 * there + 16 * MIB
    assert digest(disk) == before
    tell(assert_runs_from_its_script(guest, images))

    change_as_the_server_would(disk, tmp_path / "point")
    before, earlier = digest(disk), host.sent
    # As somebody would who sits there: no preseed, and all pages.
    with Server(tmp_path, medium, disk, parameters="") as server:
        to_the_serial_line(server)
        asked = server.answer(
            {
                "How does this machine reach the host?": "\r",
                "Number of the VLAN": "\r",
                "Where does the copy go?": f"\x15{host.target}\r",
                "type the token that it prints": f"{TOKEN}\r",
                "Which disks are copied?": "\r",
                "What shall be done?": "c\r",
                "Name of the job": "\r",  # it is called as it was the first time
                "What will the virtual machine run on?": "\r",
                "Memory of the virtual machine": "\x151G\r",
                "Number of virtual processors": "\r",
                "Which bridge or network?": "\r",
                "What happens when all went well?": "p\r",
                "are not written to.": "\r",
            },
            until="All went well.",
        )
        server.ends()
    assert len(asked) == 13, asked
    assert f"The host has {JOB} of this machine:" in server.said
    sent, on_link = sent_in_pass(2, server.said), host.sent - earlier
    tell(
        f"{_CHANGE // MIB} MiB changed: {sent / MIB:.1f} MiB sent, {on_link / MIB:.1f} MiB on the "
        "link with all digests and the delta"
    )
    assert sent <= 1.5 * _CHANGE
    assert on_link <= 1.5 * _CHANGE + 8 * MIB
    assert digest(disk) == before
    tell(assert_runs_from_its_script(guest, images))
