"""The live CD's medium in emulated machines: it boots, touches nothing, and says what failed."""

from pathlib import Path

import pytest

from tests.livecd.conftest import NEEDS_MEDIUM, digest
from tests.livecd.host import Host
from tests.livecd.server import Server, to_the_serial_line

pytestmark = NEEDS_MEDIUM


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_p1_it_boots_to_the_first_screen_and_touches_no_disk(
    firmware: str, medium: Path, copy_of_disk: Path, disk: Path, tmp_path: Path
) -> None:
    with Server(tmp_path, medium, copy_of_disk, uefi=firmware == "uefi") as server:
        to_the_serial_line(server)
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
    assert digest(copy_of_disk) == digest(disk)


def test_a_failure_fires_its_hook_and_the_machine_stays_up(
    medium: Path, copy_of_disk: Path, host: Host, tmp_path: Path
) -> None:
    line = host.offer(disks="sdz", hooks_fail="echo FAILED-$P2V_STATUS >/dev/ttyS0")
    with Server(tmp_path, medium, copy_of_disk, parameters=line) as server:
        server.wait_for("FAILED-6")
        server.keys("\r")
        server.wait_for("w Enter: the wizard")
