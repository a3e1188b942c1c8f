"""What has to come out.  Pure: medians in, rows out; every target is "no more than"."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.contest import Results
from p2v_sync.units import KIB, MIB, format_size

_Measure = Callable[[Results], float]  # raises KeyError where a run is missing


@dataclass(frozen=True)
class Target:
    work: str
    goal: str
    value: _Measure
    limit: _Measure
    show: Callable[[float], str]


@dataclass(frozen=True)
class Row:
    """``share``: of what is allowed, so that 1 is just met; None: there is no measurement."""

    work: str
    goal: str
    value: str = "not measured"
    limit: str = ""
    share: float | None = None

    @property
    def verdict(self) -> str:
        if self.share is None:
            return "-"
        return "met" if self.share <= 1 else "NOT MET"


def judge(results: Results) -> list[Row]:
    return [_judge_one(target, results) for target in TARGETS]


def _judge_one(target: Target, results: Results) -> Row:
    try:
        value, limit = target.value(results), target.limit(results)
    except KeyError:
        return Row(target.work, target.goal)
    shown = target.show(value), target.show(limit)
    return Row(target.work, target.goal, *shown, value / limit)


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _times(value: float) -> str:
    return f"{value:.2f} ×"


def _of(scenario: str, contestant: str, figure: str = "seconds") -> _Measure:
    return lambda results: results.median(scenario, contestant, figure)


def _always(limit: float) -> _Measure:
    return lambda _: limit


def _ratio(work: str, scenario: str, ours: str, most: float, peer: str) -> Target:
    def value(results: Results) -> float:
        return results.median(scenario, ours) / results.median(scenario, peer)

    return Target(work, f"≤ {most:.2f} × {peer}", value, _always(most), _times)


def _bytes(work: str, run: tuple[str, str, str], most: int) -> Target:
    return Target(work, f"≤ {format_size(most)}", _of(*run), _always(most), format_size)


def _unchanged_limit(results: Results) -> float:
    return 2 * results.median("unchanged", "dd of=/dev/null") + 0.5


def _slower_read(results: Results) -> float:
    reads = ("read source", "read target")
    return 1.2 * max(results.median("manifest-lost", read) for read in reads)


def _changed_limit(results: Results) -> float:
    return 1.5 * results.median("changed-pages", "p2v-sync, bytes counted", "changed") + 8 * MIB


def _sparse_limit(results: Results) -> float:
    return results.median("sparse", "p2v-sync, the data alone") + 5


_LINK_SLOWER = 1 / 0.9  # 90 % of the rate
# The sample that a receiver compares when it opens an image (32 blocks), the one that is verified
# after the pass (64 blocks and two MiB), and the manifest.
_SAMPLE = 32 * MIB

TARGETS = (
    _ratio("first copy, tcp plaintext", "first-copy", "p2v-sync plaintext", 0.75, "nbdkit+nbdcopy"),
    _ratio(
        "first copy, not read back",
        "first-copy",
        "p2v-sync plaintext --verify none",
        0.75,
        "nbdkit+nbdcopy",
    ),
    _ratio("no holes, tcp plaintext", "full-copy", "p2v-sync plaintext", 1.0, "nbdkit+nbdcopy"),
    _ratio(
        "no holes, not read back",
        "full-copy",
        "p2v-sync plaintext --verify none",
        1.0,
        "nbdkit+nbdcopy",
    ),
    _ratio("first copy, tcp with TLS", "first-copy", "p2v-sync TLS", 1.0, "nbdkit+nbdcopy"),
    _ratio("first copy, ssh", "first-copy", "p2v-sync ssh", 0.5, "dd|zstd|ssh"),
    _ratio("first copy, ssh in-band", "first-copy", "p2v-sync ssh in-band", 0.8, "dd|zstd|ssh"),
    Target(
        "unchanged pass",
        "≤ 2 × dd of=/dev/null + 0.5 s",
        _of("unchanged", "p2v-sync"),
        _unchanged_limit,
        _seconds,
    ),
    _ratio("unchanged pass", "unchanged", "p2v-sync", 0.5, "blocksync-fast --make-delta"),
    _bytes(
        "unchanged pass, on the wire",
        ("unchanged", "p2v-sync, bytes counted", "carried"),
        64 * KIB,
    ),
    _bytes("unchanged pass, read at the target", ("unchanged", "p2v-sync", "target_read"), _SAMPLE),
    Target(
        "manifest lost",
        "≤ 1.2 × the slower of reading source and target",
        _of("manifest-lost", "p2v-sync"),
        _slower_read,
        _seconds,
    ),
    Target(
        "1 % of pages changed, on the wire",
        "≤ 1.5 × changed bytes + 8 MiB",
        _of("changed-pages", "p2v-sync, bytes counted", "carried"),
        _changed_limit,
        format_size,
    ),
    _ratio("1 % of pages changed, ssh", "changed-pages", "p2v-sync ssh", 0.5, "rsync --inplace"),
    _ratio("durability", "durability", "p2v-sync", 1.1, "p2v-sync without fsync"),
    _ratio(
        "the proxy itself, 50 ms",
        "long-link",
        "the link alone, 50 ms",
        _LINK_SLOWER,
        "the link alone",
    ),
    _ratio(
        "50 ms round trip, first copy", "long-link", "p2v-sync, 50 ms", _LINK_SLOWER, "p2v-sync"
    ),
    _ratio(
        "50 ms round trip, incremental",
        "long-link",
        "p2v-sync incremental, 50 ms",
        _LINK_SLOWER,
        "p2v-sync incremental",
    ),
    Target(
        "8 TiB sparse",
        "≤ the data alone + 5 s",
        _of("sparse", "p2v-sync"),
        _sparse_limit,
        _seconds,
    ),
    _bytes("8 TiB sparse, sender's memory", ("sparse", "p2v-sync", "peak_rss"), 256 * MIB),
    _bytes(
        "8 TiB sparse, receiver's memory", ("sparse", "p2v-sync", "receiver_peak_rss"), 128 * MIB
    ),
)
