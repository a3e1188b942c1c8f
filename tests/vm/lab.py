"""The old machine as p2v-sync's live system sees it: its disks in the lab kernel."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.contract.lab_kernel import run_in_lab_kernel
from tests.vm.layouts import ENCRYPTION

# There is no modprobe for the kernel to ask: what mounting an ESP wants is loaded before.
_MODULES = (
    *("dm-snapshot", "loop", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "nls_iso8859-1"),
    *("raid1", *ENCRYPTION),
)


class Nic(NamedTuple):
    """A network interface of the old machine."""

    name: str
    mac: str


class Said(NamedTuple):
    """``written``: sectors written to each disk until then, by its name (``ubda``)."""

    code: int
    out: str
    err: str
    written: dict[str, int]


def run_in_lab(
    images: Sequence[Path],
    commands: Sequence[Sequence[str]],
    directory: Path,
    *,
    nics: Sequence[Nic] = (),
    timeout_s: float = 900,
) -> list[Said]:
    """Run p2v-sync commands, given by their arguments, where ``images`` are /dev/ubda and so on.

    ``nics`` are there by their names, as udev would have called them.

    ``directory``, on the host, is where they work.  Its ``images`` is lab_commands.IMAGES inside,
    the directory for a TARGET.  Ends at the first command that fails; what each said, in their
    order.  The ledger is kept in ``directory`` for further calls, each of which is a machine that
    was switched on anew.
    """
    names = [nic.name for nic in nics]
    (directory / "commands.json").write_text(json.dumps({"nics": names, "commands": commands}))
    results = directory / "results.json"
    results.unlink(missing_ok=True)
    done = run_in_lab_kernel(
        ["tests.vm.lab_commands", str(directory)],
        directory,
        images=images,
        modules=_MODULES,
        nics=[nic.mac for nic in nics],
        timeout_s=timeout_s,
    )
    assert done.status == 0, done.log + done.kernel
    return [Said(**each) for each in json.loads(results.read_text())]
