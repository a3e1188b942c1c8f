"""QEMU takes the scripts that are written for it: each option, each device, each file."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from p2v_sync.units import MIB
from p2v_sync.vm import qemu
from p2v_sync.vm.definition import VirtualMachine
from tests.contract.machines import samples

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None,
    reason="qemu-system-x86_64 is missing (package qemu-system-x86)",
)

MACHINES = {
    f"{name}{'-compat' if vm.is_compat else ''}": vm
    for name, definitions, _ in samples()
    for vm in definitions
}


def without_bridges(vm: VirtualMachine) -> VirtualMachine:
    """A bridge would have to be there, and its helper be allowed to."""
    return replace(vm, nics=tuple(replace(nic, network=None) for nic in vm.nics))


@pytest.mark.parametrize("name", MACHINES)
def test_the_machine_is_built(name: str, tmp_path: Path) -> None:
    vm = replace(without_bridges(MACHINES[name]), memory=256 * MIB)
    for disk in vm.disks:
        with (tmp_path / disk.image.file).open("wb") as file:
            file.truncate(64 * MIB)
    script = tmp_path / "run.sh"
    script.write_bytes(qemu.write(vm))
    # A /dev/kvm of any machine may lack what Secure Boot needs, or hang.
    options = ["-machine", "accel=tcg", "-S", "-display", "none", "-serial", "null"]
    argv = ["sh", str(script), *options, "-monitor", "stdio"]
    done = subprocess.run(
        argv,
        input="info status\ninfo block\nquit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "VM status: paused" in done.stdout
    for disk in vm.disks:
        assert f"./{disk.image.file}" in done.stdout
