"""A medium for a site, with all that ``livecd/build`` can put on it: ``make e2e-all``."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.livecd.conftest import NEEDS_MEDIUM, build, digest, made_of_sources
from tests.livecd.host import TOKEN, Host, free_port
from tests.livecd.server import JOB, LIMIT_S, Server

pytestmark = [*NEEDS_MEDIUM, pytest.mark.more]

PRESEED = f"""action = "sync"
auto = true
post = "shell"

[login]
token = "{TOKEN}"

[hooks]
post = "echo SITE-IS-DONE >/dev/ttyS0"
fail = "echo $P2V_ERROR >/dev/ttyS0"
"""


def build_for_site(directory: Path) -> None:
    (directory / "site.toml").write_text(PRESEED)
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key"]
    subprocess.run(keygen, cwd=directory, check=True)
    options = ["--suite", "trixie", "--firmware", "on"]
    build(directory, *options, "--authorized-key", "key.pub", "--preseed", "site.toml")


@pytest.fixture
def site_medium() -> Path:
    return made_of_sources("site-medium", build_for_site, PRESEED)


def over_ssh(port: int, key: Path, command: str) -> str:
    """What ``command`` says on the live system, once its ssh server answers."""
    options = ["-i", str(key), "-p", str(port), "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]
    options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    argv = ["ssh", *options, "root@127.0.0.1", command]
    deadline = time.monotonic() + LIMIT_S
    while (done := subprocess.run(argv, capture_output=True, text=True)).returncode == 255:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(2)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_site_medium_asks_nothing_and_lets_its_administrator_in(
    site_medium: Path, copy_of_disk: Path, disk: Path, host: Host, tmp_path: Path
) -> None:
    port = free_port()
    line = f"p2v.target={host.target}"
    with Server(tmp_path, site_medium, copy_of_disk, parameters=line, ssh_port=port) as server:
        server.wait_for("SITE-IS-DONE")
        look = "cat /etc/debian_version; ls /lib/firmware/bnx2; ls /etc/ssh"
        said = over_ssh(port, site_medium / "key", look).split()
    assert said[0].startswith("13")
    assert any(each.endswith(".fw") for each in said)
    assert "ssh_host_ed25519_key" in said
    assert digest(host.images / JOB / "sda.img") == digest(disk) == digest(copy_of_disk)
