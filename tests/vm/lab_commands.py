"""What runs inside the lab kernel: p2v-sync, one command after the other.

    lab_commands.py DIRECTORY

DIRECTORY (on the host) has ``commands.json``: ``nics``, what eth0 and so on are to be called, and
``commands``, a list of argument lists; ``images``, which is IMAGES here; and perhaps ``programs``,
which are found before all others.  ``results.json`` is put there, an object for each command that
ran: the first that fails is the last.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from p2v_sync.cli import main

IMAGES = Path("/run/p2v-lab/images")  # where a TARGET is


def written() -> dict[str, int]:
    """Sectors written to each disk image, by the kernel's count."""
    stats = Path("/sys/block").glob("ubd*/stat")
    return {path.parts[-2]: int(path.read_text().split()[6]) for path in stats}


def copy(source: Path, target: Path) -> None:
    """All files, with their holes."""
    argv = ["cp", "--archive", "--sparse=always", f"{source}/.", str(target)]
    subprocess.run(argv, check=True)


def run(directory: Path) -> None:
    os.environ["P2V_STATE"] = str(directory / "state")
    os.environ["PATH"] = f"{directory / 'programs'}:{os.environ['PATH']}"
    asked = json.loads((directory / "commands.json").read_text())
    for number, name in enumerate(asked["nics"]):
        subprocess.run(["ip", "link", "set", f"eth{number}", "name", name], check=True)
    # Not on the host: hostfs changes a file's times after it was flushed, as if somebody else had.
    IMAGES.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80%", "tmpfs", IMAGES], check=True)
    copy(directory / "images", IMAGES)
    results = []
    for arguments in asked["commands"]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        result = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "written": written()}
        results.append(result)
        (directory / "results.json").write_text(json.dumps(results))
        if code:
            break
    copy(IMAGES, directory / "images")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
