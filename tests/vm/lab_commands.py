"""What runs inside the lab kernel: p2v-sync, one command after the other.

    lab_commands.py DIRECTORY

DIRECTORY (on the host) has ``commands.json``: ``nics``, what eth0 and so on are to be called, and
``commands``, a list of argument lists.  ``results.json`` is put there, an object for each command
that ran: the first that fails is the last.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from p2v_sync.cli import main


def written() -> dict[str, int]:
    """Sectors written to each disk image, by the kernel's count."""
    stats = Path("/sys/block").glob("ubd*/stat")
    return {path.parts[-2]: int(path.read_text().split()[6]) for path in stats}


def run(directory: Path) -> None:
    os.environ["P2V_STATE"] = str(directory / "state")
    asked = json.loads((directory / "commands.json").read_text())
    for number, name in enumerate(asked["nics"]):
        subprocess.run(["ip", "link", "set", f"eth{number}", "name", name], check=True)
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


if __name__ == "__main__":
    run(Path(sys.argv[1]))
