"""Linux software RAID, assembled of explicit members, and kept from repairing itself."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from p2v_sync import run
from p2v_sync.device.attributes import SYS, read_text
from p2v_sync.device.topology import read_topology
from p2v_sync.errors import CommandError

# udev would look for members elsewhere; a firmware RAID is not asked for its controller.
_ENVIRON = {"MDADM_NO_UDEV": "1", "IMSM_NO_PLATFORM": "1"}
_NUMBERS = range(100, 512)  # what the guest's own are called is another matter
_PARAMETER = Path("module", "md_mod", "parameters", "start_ro")
_ARRAY = re.compile(r"ARRAY (?:/dev/)?(\S+)")
_NAME = re.compile(r"\bname=(\S+)")


def mdadm_uuid(uuid: str) -> str:
    """blkid's 8-4-4-4-12 as mdadm's four times eight digits."""
    digits = uuid.replace("-", "").lower()
    return ":".join(digits[at : at + 8] for at in range(0, 32, 8))


def parse_aliases(brief: str, uuid: str) -> tuple[str, ...]:
    """Names below /dev from ``mdadm --examine --brief``: md0, md/0, md/home, disk/by-id/md-…"""
    found = [f"disk/by-id/md-uuid-{mdadm_uuid(uuid)}"]
    if array := _ARRAY.search(brief):
        short = array[1].removeprefix("md/").removeprefix("md")
        if short.isdigit():
            found += [f"md{short}", f"md/{short}"]
        elif array[1].startswith("md/"):
            found.append(array[1])
    if name := _NAME.search(brief):
        found.append(f"disk/by-id/md-name-{name[1]}")
    return tuple(dict.fromkeys(found))


def aliases_of(member: Path, uuid: str) -> tuple[str, ...]:
    """What the guest may call the array.  Raises CommandError."""
    return parse_aliases(run.capture(["mdadm", "--examine", "--brief", str(member)]), uuid)


def assemble(uuid: str, members: Sequence[Path]) -> Path | None:
    """The array's device; None when it did not start for lack of members.

    Raises CommandError with what mdadm says against it.

    It starts read-only by itself (Documentation/admin-guide/md.rst, read-auto), so that looking at
    it changes nothing; ``freeze`` is for before the first write, which ends that.
    """
    taken = {node.name for node in read_topology(SYS).disks()}
    name = next(f"md{number}" for number in _NUMBERS if f"md{number}" not in taken)
    device = Path("/dev", name)
    argv = ["mdadm", "--assemble", "--config=/dev/null", f"--uuid={mdadm_uuid(uuid)}"]
    with _starting_read_only():
        try:
            argv += [str(device), *map(str, members)]
            run.capture(argv, environ=_ENVIRON)
        except CommandError:
            with suppress(CommandError):
                run.capture(["mdadm", "--stop", str(device)])
            raise
    state = SYS / "block" / name / "md"
    if read_text(state / "array_state") in ("", "inactive", "clear"):
        run.capture(["mdadm", "--stop", str(device)])
        return None
    return device


def freeze(name: str) -> None:
    """No resync of md127 and the like: it would fill the copy-on-write space."""
    with suppress(OSError):  # a stripe has nothing to repair
        (SYS / "block" / name / "md" / "sync_action").write_text("frozen")


@contextmanager
def _starting_read_only() -> Iterator[None]:
    parameter = SYS / _PARAMETER
    before = read_text(parameter)
    with suppress(OSError):
        parameter.write_text("1")
    try:
        yield
    finally:
        if before:
            with suppress(OSError):
                parameter.write_text(before)
