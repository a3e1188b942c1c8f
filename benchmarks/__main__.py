"""``python -m benchmarks``: measure, print the tables, and write them as JSON and as a chart."""

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import chart, report
from benchmarks.contest import Contest, Results
from benchmarks.image import make_image
from benchmarks.processes import find
from benchmarks.scenarios import SCENARIOS, chosen
from benchmarks.sshd import running_sshd
from benchmarks.targets import judge
from p2v_sync.units import MIB

_TITLE = "p2v-sync: what was measured, as a share of what the target allows (shorter is better)"
_CONDITIONS = (
    "{date}: image of {size_mib} MiB, medians of {rounds}; {cpus} CPUs, {file_system}, {network}"
)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    names = ", ".join(scenario.name for scenario in SCENARIOS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure p2v-sync and its peers on one image, in turn, in one run.",
        epilog="The fastest useful run: --only first-copy/p2v-sync\\ plaintext nbdkit",
    )
    parser.add_argument("--size", type=int, default=4096, help="of the image, MiB (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="medians are of so many runs")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"part of scenario/contestant: {names}",
    )
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="for source and target")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the chart")
    options = parser.parse_args(arguments)
    for text in options.only:
        if not any(chosen(scenario, [text]) for scenario in SCENARIOS):
            parser.error(f"--only {text}: there is no such scenario or contestant")
    return options


def measure(options: argparse.Namespace) -> Results:
    """Everybody in turn, on one image and with one sshd."""
    with contextlib.ExitStack() as stack:
        make_directory = tempfile.TemporaryDirectory(prefix="p2v-bench-", dir=options.dir)
        scratch = Path(stack.enter_context(make_directory))
        host = stack.enter_context(running_sshd(scratch)) if find("sshd") else None
        source = scratch / "source.img"
        make_image(source, options.size * MIB)
        contest = Contest(source, options.dir, host, lambda line: print(line, flush=True))
        for scenario in SCENARIOS:
            if contestants := chosen(scenario, options.only):
                contest.hold(scenario, contestants, options.rounds)
        return contest.results


def conditions(options: argparse.Namespace) -> dict[str, object]:
    """What a reader must know to judge the figures."""
    argv = ["findmnt", "--first-only", "-no", "FSTYPE", "--target", str(options.dir)]
    file_system = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "size_mib": options.size,
        "rounds": options.rounds,
        "cpus": os.cpu_count(),
        "cpu": _cpu_model(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": file_system,
        "network": "loopback",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when a run of ours failed; a target that is not met is a result."""
    options = _options(arguments)
    # So that a run that is stopped takes its programs and its directories with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = measure(options)
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return 130
    rows, known = judge(results), conditions(options)
    print()
    for line in report.contestants_table(SCENARIOS, results):
        print(line)
    print()
    for line in (*report.targets_table(rows), *report.left_out(results)):
        print(line)
    if options.json:
        options.json.write_text(report.as_json(results, rows, known))
    if options.svg:
        options.svg.write_text(chart.draw(rows, _TITLE, _CONDITIONS.format(**known)))
    return int(any("/p2v-sync" in name for name in results.failed))


if __name__ == "__main__":
    sys.exit(main())
