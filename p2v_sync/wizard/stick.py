"""The ledger on a stick: the one file system that ``state`` names is mounted, and written to.

All other disks stay read-only (P1), those that are copied above all: what lies on one of them is
refused.  The live system sets the stick read-only like every disk; its flag is cleared only while
it is mounted.
"""

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from p2v_sync import run
from p2v_sync.device import readonly
from p2v_sync.device.attributes import SYS
from p2v_sync.device.topology import Topology, read_topology
from p2v_sync.errors import CommandError, DeviceError, PreseedError, StateError

log = logging.getLogger(__name__)

MOUNT_POINT = Path("/run/p2v-sync/state")
# What is written to the stick is for whoever runs this system, and nothing there is run by it.
_OPTIONS = "nosuid,nodev,noexec"
_APPEARS_WITHIN_S = 15.0  # USB may be slower than the boot


def is_named_by(state: str) -> bool:
    """False of a plain directory."""
    return state.startswith(("LABEL=", "UUID=", "/dev/"))


def find(state: str, within_s: float = _APPEARS_WITHIN_S) -> Path:
    """The device with the file system that ``state`` names.  Raises StateError."""
    deadline = time.monotonic() + within_s
    while not (found := _candidates(state)):
        if time.monotonic() > deadline:
            raise StateError(f"there is no {state} to keep the ledger on", hint="is it plugged in?")
        time.sleep(1)
    if len(found) > 1:
        named = ", ".join(sorted(map(str, found)))
        raise StateError(f"{state} is on {named}", hint="name one of them: state = UUID=…")
    return found[0]


def _candidates(state: str) -> list[Path]:
    if state.startswith("/dev/"):
        return [Path(state)] if Path(state).is_block_device() else []
    # Not from its cache, which may tell of a stick that was pulled out; 2: there is none.
    argv = ["blkid", "--cache-file", "/dev/null", "--match-token", state, "--output", "device"]
    try:
        return [Path(line) for line in run.capture(argv, statuses=(0, 2)).splitlines()]
    except CommandError as error:
        raise StateError(f"{state} can't be looked for: {error.message}") from error


def disks_below(device: Path) -> set[str]:
    """Kernel names of all that a device lies on, the whole disks among them."""
    number = device.stat().st_rdev
    return names_below(read_topology(SYS), f"{os.major(number)}:{os.minor(number)}")


def names_below(topology: Topology, dev: str) -> set[str]:
    """``disks_below`` of the device with that ``major:minor``.  Pure."""
    node = topology.by_dev(dev)
    ahead, found = {node.name} if node else set[str](), set[str]()
    while ahead:
        name = ahead.pop()
        whole = topology.nodes[name].disk if name in topology.nodes else name
        found |= {name, whole}
        ahead |= (topology.slaves(name) | topology.slaves(whole)) - found
    return found


def refuse_copied(state: str, device: Path, copied: Collection[str]) -> None:
    """Raises PreseedError when ``device`` is on one of the disks ``copied``."""
    if on := sorted(disks_below(device) & set(copied)):
        raise PreseedError(
            f"state: {state} is on {on[0]}, which is to be copied",
            hint="nothing is written to such a disk; name a stick, or leave that disk out",
        )


@contextlib.contextmanager
def mounted(device: Path, point: Path = MOUNT_POINT) -> Iterator[Path]:
    """The file system of ``device``, written to while inside.  Raises StateError."""
    nodes = [Path("/dev", name.replace("!", "/")) for name in sorted(disks_below(device))]
    locked = [node for node in nodes if _is_read_only(node)]
    try:
        readonly.unlock(locked)
        _mount(device, point)
        try:
            yield point
        finally:
            _unmount(point)
    finally:
        with contextlib.suppress(DeviceError):  # it may have been pulled out
            for node in locked:
                readonly.lock(node)


def _is_read_only(node: Path) -> bool:
    return node not in readonly.writable_nodes(node)


def _mount(device: Path, point: Path) -> None:
    try:
        point.mkdir(parents=True, exist_ok=True)
        while os.path.ismount(point):  # by a run that was killed
            run.capture(["umount", str(point)])
        # -w: not read-only instead, without a word (mount(8)).
        run.capture(["mount", "-w", "-o", _OPTIONS, str(device), str(point)])
    except (OSError, CommandError) as error:
        text = error.message if isinstance(error, CommandError) else str(error.strerror)
        reason = " ".join(text.split())  # mount(8) has several lines to say
        raise StateError(f"{device} can't be mounted to keep the ledger on: {reason}") from error


def _unmount(point: Path) -> None:
    """A failure must not hide what went wrong before."""
    try:
        run.capture(["umount", str(point)])
    except CommandError as error:
        log.warning("the stick stays mounted: %s", error)


@contextlib.contextmanager
def state_dir(state: str, copied: Collection[str]) -> Iterator[Path]:
    """The directory that ``state`` names, on a stick or not.  Raises StateError, PreseedError."""
    if not is_named_by(state):
        yield Path(state)
        return
    device = find(state)
    refuse_copied(state, device, copied)
    with mounted(device) as point:
        yield point / "p2v-sync"
