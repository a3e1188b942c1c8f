"""What takes minutes to make is kept in the user's cache directory, as long as it would be made of
the same."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

# When this is imported HOME and XDG_CACHE_HOME still are the user's.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2v-sync"


def made_once(cache: Path, kind: str, inputs: Iterable[str], make: Callable[[Path], None]) -> Path:
    """The directory in ``cache`` that ``make`` filled, now or before; one process at a time.

    ``inputs``: what it is made of.  Its predecessors, made of something else, are removed.
    """
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    directory = cache / f"{kind}-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():
            return directory
        for old in cache.glob(f"{kind}-*"):
            shutil.rmtree(old)
        new = cache / f"{directory.name}-new"
        new.mkdir()
        make(new)
        new.rename(directory)
    return directory
