"""The log of a run: kept in a file, and sent beside the images when the run is over."""

import contextlib
import logging
import time
from pathlib import Path

from p2v_receiver.wire import MAX_FILE
from p2v_sync.errors import P2vError
from p2v_sync.inquiry import Inquiry

log = logging.getLogger(__name__)


def log_to(path: Path) -> None:
    """Everything that is logged, also into this file; it may lie where nothing can be written."""
    with contextlib.suppress(OSError):
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        for shown in root.handlers:  # the terminal says no more than before
            shown.setLevel(root.level)
        root.addHandler(handler)
        logging.getLogger("p2v_sync").setLevel(logging.DEBUG)


def read_end(path: Path, most: int = MAX_FILE) -> bytes:
    """The last whole lines of a file, at most so many bytes.  Raises OSError."""
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(length - most, 0))
        end = file.read(most)
    return end if length <= most else end.partition(b"\n")[2]


def name_at(began: float) -> str:
    """What the log of a run that began then is called: runs do not overwrite each other's."""
    return f"p2v-sync-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(began))}.log"


def send(path: Path, inquiry: Inquiry, began: float) -> None:
    """As far as it goes: what becomes of the log never changes what became of the run."""
    try:
        is_there = inquiry.put(name_at(began), read_end(path))
    except (P2vError, OSError) as error:
        log.warning("the log can't be sent to the host: %s", error)
        return
    log.info("the log is beside the images" if is_there else "the host has no images to put it to")
