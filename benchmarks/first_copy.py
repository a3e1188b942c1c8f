"""First copy over loopback TCP: p2v-sync and nbdkit + nbdcopy, the same image, in turn, one run.

    python -m benchmarks.first_copy [--size 4096] [--rounds 3] [--dir /dev/shm] [--json FILE]

Prints medians and their ratio.  The machine may be noisy: quote the ratio, never the seconds.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.image import make_image
from p2v_sync.units import MIB

_TOKEN = "benchmark"


@contextlib.contextmanager
def _running(argv: list[str], port: int) -> Iterator[None]:
    """A server, up until the end of the ``with``."""
    environ = {**os.environ, "P2V_TOKEN": _TOKEN}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, env=environ, stdout=quiet, stderr=quiet) as process:
        try:
            _wait_for(port)
            yield
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _timed(argv: list[str]) -> float:
    began = time.monotonic()
    environ = {**os.environ, "P2V_TOKEN": _TOKEN}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{argv[0]} failed: {done.stderr}")
    return time.monotonic() - began


def run_p2v_sync(image: Path, scratch: Path, *options: str) -> float:
    """Seconds of one complete first copy: connect, copy, durable, verified, reported."""
    port = _free_port()
    target = scratch / "target"
    target.mkdir()
    listen = [sys.executable, "-m", "p2v_receiver", "listen", "--bind", "127.0.0.1"]
    listen += ["--port", str(port), "--dir", str(target), "--plaintext"]
    sync = [sys.executable, "-m", "p2v_sync", "sync", str(image), f"tcp://127.0.0.1:{port}"]
    with _running(listen, port):
        seconds = _timed([*sync, "--state", str(scratch / "state"), *options])
    replica = target / image.stem / f"{image.stem}.img"
    _compare(image, replica)
    return seconds


def run_nbdcopy(image: Path, scratch: Path) -> float:
    """Seconds of ``nbdcopy`` from ``nbdkit file`` into a new sparse file."""
    port = _free_port()
    replica = scratch / "nbdcopy.img"
    with replica.open("wb") as file:
        file.truncate(image.stat().st_size)
    serve = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "file", str(image)]
    copy = ["nbdcopy", "--destination-is-zero", f"nbd://127.0.0.1:{port}", str(replica)]
    with _running(serve, port):
        seconds = _timed(copy)
    _compare(image, replica)
    return seconds


def _compare(image: Path, replica: Path) -> None:
    if subprocess.run(["cmp", str(image), str(replica)], check=False).returncode:
        raise SystemExit(f"{replica} differs from {image}")


def measure(image: Path, directory: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by name; the contestants take turns."""
    contestants = {
        "p2v-sync": run_p2v_sync,
        "p2v-sync --verify none": lambda *args: run_p2v_sync(*args, "--verify", "none"),
        "nbdkit+nbdcopy": run_nbdcopy,
    }
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            scratch = Path(tempfile.mkdtemp(prefix="p2v-bench-", dir=directory))
            try:
                results[name].append(run(image, scratch))
            finally:
                shutil.rmtree(scratch)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=4096, help="of the image, MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    missing = [tool for tool in ("nbdkit", "nbdcopy") if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}; apt-get install nbdkit libnbd-bin")
    with tempfile.TemporaryDirectory(prefix="p2v-bench-", dir=options.dir) as scratch:
        image = Path(scratch, "source.img")
        make_image(image, options.size * MIB)
        results = measure(image, options.dir, options.rounds)
    medians = {name: statistics.median(seconds) for name, seconds in results.items()}
    peer = medians["nbdkit+nbdcopy"]
    for name, median in medians.items():
        each = " ".join(f"{seconds:.1f}" for seconds in results[name])
        print(f"{name:24} {median:6.2f} s   {median / peer:5.2f} x nbdcopy   ({each})")
    if options.json:
        options.json.write_text(json.dumps({"seconds": results, "medians": medians}, indent=2))


if __name__ == "__main__":
    main()
