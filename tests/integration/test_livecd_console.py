"""What the live CD's console says about its medium, by the script's own functions."""

import os
import re
import stat
import subprocess
import time
from pathlib import Path

import pytest

CONSOLE = Path(__file__).parents[2] / "livecd" / "root" / "usr" / "lib" / "p2v-live" / "console"
PATIENCE_S = 60.0


def script(medium: Path | str) -> str:
    """The functions, and what begins them."""
    text = CONSOLE.read_text()
    functions = re.search(r"^watch_medium\(\) \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)
    line = re.search(r'^\[ -b "\$medium" \].*\n', text, re.MULTILINE)
    assert functions
    assert line
    return (
        f"medium={medium}\nsleep() {{ command sleep 0.1; }}\n{functions[0]}{line[0]}watch_medium\n"
    )


def run(medium: Path | str) -> subprocess.Popen[str]:
    return subprocess.Popen(["sh", "-c", script(medium)], stdout=subprocess.PIPE, text=True)


def test_a_system_in_memory_needs_no_medium(tmp_path: Path) -> None:
    for source in ("/dev/shm", "tmpfs", str(tmp_path)):
        process = run(source)
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert said == "The medium may be taken out.\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a device node")
def test_a_medium_that_is_taken_out_is_named(tmp_path: Path) -> None:
    node = tmp_path / "sr0"
    os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(7, 255))
    process = run(node)
    assert process.stdout is not None
    assert process.stdout.readline() == "Leave the medium in: the system runs from it.\n"
    time.sleep(0.5)
    assert process.poll() is None, "it watches"
    node.unlink()
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert "The medium was taken out" in said
    assert "boot again" in said
