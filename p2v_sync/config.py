"""What a run was asked to do, checked as far as that is possible without touching anything."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2v_sync.errors import ConfigError
from p2v_sync.units import KIB, MIB

_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,99}")
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._+@-]+")


@dataclass(frozen=True)
class Connection:
    """How to reach the receiver, beyond the target itself."""

    token_file: Path | None = None
    identity_file: Path | None = None
    sudo: bool = False
    data: str = "auto"  # the way of an ssh target's data; or "direct", "inband"


@dataclass(frozen=True)
class SyncConfig:
    """``p2v-sync sync`` as typed."""

    sources: tuple[Path, ...]
    target: str
    state_dir: Path
    job: str | None = None
    block_size: int | None = None  # None: as the target has it, else the default
    streams: int = 2
    rate: int | None = None  # bytes a second, all disks and streams together
    compress: str = "auto"
    digest: str | None = None
    verify: str = "auto"
    on_read_error: str = "skip"
    seed: bool = False
    used_only: bool = False
    retry_for_s: float = 24 * 3600.0
    connection: Connection = field(default_factory=Connection)


def check_job_name(name: str) -> str:
    """The name itself.  Raises ConfigError when it can't be the name of a directory."""
    if _JOB_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"--job {name!r} can't be the name of a job",
            hint="letters, digits and . _ + @ - are allowed, and no leading dot",
        )
    return name


def plain_name(text: str) -> str:
    """``text`` with whatever can't be in a name of a job or disk replaced: "my disk" → my_disk."""
    return _FORBIDDEN.sub("_", text).lstrip("._+@-")[:100] or "disk"


def check_block_size(size: int) -> int:
    """The size itself.  Raises ConfigError unless it is a power of two from 4K to 4M."""
    if not 4 * KIB <= size <= 4 * MIB or size & (size - 1):
        raise ConfigError(
            f"--block-size {size} is not possible",
            hint="a power of two from 4K to 4M; 256K is good",
        )
    return size


def check_rate(rate: int) -> int:
    """The rate itself.  Raises ConfigError when it lets nothing through."""
    if rate <= 0:
        raise ConfigError(
            f"--rate {rate} lets nothing through", hint="leave --rate out for no limit"
        )
    return rate


def common_name(names: Sequence[str]) -> str | None:
    """A name that stands more than once in ``names``, or None."""
    return next((name for name in names if names.count(name) > 1), None)
