"""Where the sender keeps its records."""

import os
from pathlib import Path

from p2v_sync.errors import StateError

ELSEWHERE = "name another directory with --state DIR"

_SYSTEM_DIR = Path("/var/lib/p2v-sync")


def default_state_dir() -> Path:
    """``$P2V_STATE``; else the system's directory for root, the user's XDG one for others."""
    if named := os.environ.get("P2V_STATE"):
        return Path(named)
    if os.geteuid() == 0:
        return _SYSTEM_DIR
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "p2v-sync"


def make_state_dir(state_dir: Path) -> None:
    """Create the directory for its owner only: digests and serial numbers are nobody else's.

    Raises StateError.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(state_dir, error) from error


def unusable(path: Path, error: OSError) -> StateError:
    """The error for a file or directory of ours that the system won't let us use."""
    return StateError(f"can't keep records in {path}: {error.strerror}", hint=ELSEWHERE)
