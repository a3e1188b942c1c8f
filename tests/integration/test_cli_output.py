"""What a run looks like: JSON for programs, plain lines for logs, bars on a terminal."""

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from p2v_sync.units import MIB
from tests.integration.cli import BIN, Done, Lab, assert_equal, change, checked, counters_add_up

EVENTS = {
    "pass_started": {"size", "number", "kind", "resumed"},
    "progress": {"phase", "size", "counters"},
    "checkpoint_done": {"generation", "counters"},
    "pass_finished": {"number", "kind", "counters", "seconds", "unreadable"},
    "verified": {"scope", "checked", "mismatches"},
    "disk_failed": {"error", "message", "hint", "exit_code", "details"},
    "notice": {"text"},
    "reconnecting": {"reason", "delay_s"},
}
COUNTERS = {"scanned", "zero", "same", "sent", "wire", "unreadable"}


def test_json_is_stable_and_its_figures_add_up(lab: Lab) -> None:
    image = lab.noise(size=9 * MIB + 5)
    change(image, MIB, bytes(2 * MIB))
    began = time.time()
    done = lab.sync(image, "--rate", "4M", "--compress", "none")
    assert done.err == ""
    names = [event["event"] for event in done.events]
    assert names[0] == "pass_started"
    assert names[-1] == "verified"
    assert "progress" in names[: names.index("pass_finished")]
    before: dict[str, int] = {}
    for event in done.events:
        assert set(event) == {"event", "time", "disk"} | EVENTS[event["event"]]
        assert event["disk"] == "noise"
        assert began - 1 < event["time"] < time.time() + 1
        if event["event"] == "progress" and event["phase"] == "copy":
            counters = event["counters"]
            assert set(counters) == COUNTERS
            assert all(counters[key] >= before.get(key, 0) for key in COUNTERS)
            assert counters["scanned"] <= event["size"]
            before = counters
    (finished,) = done.named("pass_finished")
    assert counters_add_up(finished, 9 * MIB + 5)
    assert finished["counters"]["zero"] == 2 * MIB
    assert finished["counters"]["sent"] <= finished["counters"]["wire"] < 7.1 * MIB
    last_checkpoint = done.named("checkpoint_done")[-1]
    assert last_checkpoint["counters"] == finished["counters"]


def test_json_progress_comes_a_few_times_a_second(lab: Lab) -> None:
    image = lab.noise(size=16 * MIB)
    done = lab.sync(image, "--block-size", "4K", "--verify", "full")
    seconds = done.events[-1]["time"] - done.events[0]["time"]
    assert len(done.named("progress")) < 10 + 10 * seconds


def test_json_errors_leave_standard_output_to_the_objects(lab: Lab) -> None:
    done = lab.fails(3, "sync", lab.image(), "ftp://host/x", "--json", say="no transport")
    assert done.out == ""
    empty = lab.root / "empty.img"
    empty.touch()
    done = lab.fails(10, "sync", empty, lab.out, "--json", say="nothing to copy")
    assert [event["event"] for event in done.events] == ["disk_failed"]


def test_plain_lines_while_it_lasts(lab: Lab) -> None:
    image = lab.noise(size=11 * MIB)
    done = lab.p2v("sync", image, lab.out, "--rate", "1M", "--verify", "none")
    lines = done.err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(
        r"noise: copy \d+ %: zero 0 B, same 0 B, sent \d+\.\d MiB \(\d+\.\d MiB on the link\), "
        r"(0\.9|1\.[01]) MiB/s, ETA \d\.\d s|"
        r"noise: copy \d+ %: .*, (9\d\d|10\d\d)\.\d KiB/s, ETA \d\.\d s",
        lines[1],
    ), lines[1]


@pytest.mark.parametrize("to", ["/dev/full", "head"])
def test_a_log_that_is_full_or_closed_does_not_stop_the_copy(lab: Lab, to: str) -> None:
    image = lab.image()
    where = "| head -n 1; exit ${PIPESTATUS[0]}" if to == "head" else f"> {to}"
    for options in ("--json", "2>&1"):
        command = f"{BIN}/p2v-sync sync {image} {lab.out} {options} {where}"
        done = subprocess.run(
            [shutil.which("bash") or "bash", "-c", command],
            capture_output=True,
            text=True,
            timeout=60,
            env=lab.environ(),
            check=False,
        )
        checked(Done(done.returncode, "", done.stderr), 0)
        assert done.stderr == ""
    assert_equal(image, lab.replica("web"))
    assert lab.status("web")["state"] == "complete"


def on_terminal(argv: list[str | Path], columns: int, environ: dict[str, str]) -> tuple[int, str]:
    """``(exit status, what was shown)`` on a terminal so wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        list(map(str, argv)), stdin=theirs, stdout=theirs, stderr=theirs, env=environ
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.5)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # EIO: nobody has the other end open any more
                break
            shown += piece
    os.close(ours)
    return process.wait(10), shown.decode()


@pytest.mark.parametrize("columns", [120, 80, 20, 0])
def test_bars_on_a_terminal(lab: Lab, columns: int) -> None:
    image = lab.noise(size=6 * MIB)
    other = lab.noise("other.img", size=6 * MIB)
    environ = {key: value for key, value in lab.environ().items() if key != "COLUMNS"}
    argv: list[str | Path] = [BIN / "p2v-sync", "sync", image, other, lab.out, "--rate", "6M"]
    code, shown = on_terminal(argv, columns, {**environ, "TERM": "xterm"})
    assert code == 0, shown
    assert "Traceback" not in shown
    assert_equal(image, lab.out / "noise" / "noise.img")
    assert_equal(other, lab.out / "noise" / "other.img")
    assert "noise: initial pass 1 begins" in shown
    assert "noise: initial pass 1 complete" in shown
    rest = shown.replace("\n", "\r").replace("\x1b[A", "\r").split("\r")
    bars = [piece for piece in rest if re.match(r"(noise|other) (verify )?\d+% ", piece)]
    assert all(len(bar) < (columns or 80) + (columns == 120) for bar in bars)
    if columns in (120, 80, 0):
        figures = r"\S+/s ETA \d:\d\d scanned \S+ zero 0B same 0B sent \S+ *"
        assert {bar.split()[0] for bar in bars if re.search(figures, bar)} == {"noise", "other"}
    assert any("█" in bar for bar in bars) is (columns == 120)


def test_a_token_is_asked_for_on_a_terminal(lab: Lab) -> None:
    image, listener = lab.image(), lab.listen()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(BIN / "p2v-sync"), "sync", str(image), listener.url],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=lab.environ(),
    )
    os.close(theirs)
    shown = b""
    answered = False
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
        if not answered and b"oken" in shown:
            os.write(ours, f"{listener.token}\n".encode())
            answered = True
    os.close(ours)
    assert process.wait(60) == 0, shown
    assert listener.token not in shown.decode()
    assert_equal(image, lab.replica("web"))
