"""The guard and the isolation of tests/conftest.py."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

FAILED = pytest.fail.Exception


def test_a_unit_test_starts_no_programs() -> None:
    with pytest.raises(FAILED, match="starts 'true'"):
        subprocess.run(["true"], check=False)


@pytest.mark.real_parts
def test_one_with_real_parts_does() -> None:
    subprocess.run(["true"], check=True)


def test_a_unit_test_uses_no_network() -> None:
    with socket.socket() as sock, pytest.raises(FAILED, match="uses the network"):
        sock.connect(("127.0.0.1", 9))
    with pytest.raises(FAILED, match="looks up 'localhost'"):
        socket.create_connection(("localhost", 9))
    for one in socket.socketpair():
        one.close()


def test_a_unit_test_opens_no_disks() -> None:
    disks = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    for disk in disks[:1]:
        with pytest.raises(FAILED, match="opens"):
            os.open(disk, os.O_RDONLY)
    os.close(os.open("/dev/null", os.O_RDONLY))


def test_a_test_has_a_home_of_its_own(home: Path) -> None:
    assert Path.home() == home
    assert not [*home.iterdir()]
