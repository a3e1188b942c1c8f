"""The benchmark's own parts: a measurement that can't be trusted is worse than none."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import chart, report
from benchmarks.contest import Contest, Contestant, Results, Sample, Scenario, Stage
from benchmarks.image import is_copy, make_spread_image, toggle_pages, write_image
from benchmarks.link import Line, Link
from benchmarks.processes import Failed, Program
from benchmarks.scenarios import SCENARIOS, chosen
from benchmarks.targets import TARGETS, Row, judge
from p2v_sync.units import KIB, MIB, PAGE

SVG = "{http://www.w3.org/2000/svg}"


def results_of(**seconds: list[float]) -> Results:
    """Of the scenario first-copy; the keyword is the contestant."""
    runs = {name: [{"seconds": each} for each in every] for name, every in seconds.items()}
    return Results({"first-copy": runs})


# Targets and tables.


def test_a_ratio_is_of_medians_and_met_up_to_its_limit() -> None:
    results = results_of(**{"p2v-sync plaintext": [3.0, 9.0, 2.0], "nbdkit+nbdcopy": [4.0] * 3})
    row = judge(results)[0]
    assert (row.value, row.limit, row.share, row.verdict) == ("0.75 ×", "0.75 ×", 1.0, "met")
    results.samples["first-copy"]["p2v-sync plaintext"][0]["seconds"] = 3.1
    assert judge(results)[0].verdict == "NOT MET"


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    rows = judge(results_of(**{"p2v-sync plaintext": [1.0]}))
    assert {row.verdict for row in rows} == {"-"}
    assert {row.value for row in rows} == {"not measured"}


def test_every_target_is_of_runs_that_are_made() -> None:
    figures = ("seconds", "peak_rss", "receiver_peak_rss", "target_read", "carried", "changed")
    everything = {
        scenario.name: {each.name: [dict.fromkeys(figures, 2.0)] for each in scenario.contestants}
        for scenario in SCENARIOS
    }
    assert all(row.share is not None for row in judge(Results(everything)))
    for scenario in SCENARIOS:
        assert scenario.reference in everything[scenario.name]
    assert len(TARGETS) >= 15


def test_the_unchanged_pass_is_allowed_twice_the_reading_and_half_a_second() -> None:
    runs: dict[str, list[Sample]] = {
        "p2v-sync": [{"seconds": 1.5, "target_read": 1}],
        "dd of=/dev/null": [{"seconds": 0.5}],
    }
    row = next(row for row in judge(Results({"unchanged": runs})) if row.share is not None)
    assert (row.value, row.limit, row.share) == ("1.50 s", "1.50 s", 1.0)


def test_the_report_says_who_was_missing_and_who_failed() -> None:
    results = results_of(**{"nbdkit+nbdcopy": [1.0, 3.0, 2.0], "dd|nc": [4.0]})
    results.missing["bdsync"] = ["bdsync"]
    results.failed["first-copy/dd|ssh"] = "the copy differs from the source"
    table = "\n".join(report.contestants_table(SCENARIOS, results))
    assert "dd|nc" in table
    assert "2.00 ×" in table
    assert "missing: bdsync (no bdsync on PATH)" in report.left_out(results)
    assert "FAILED: first-copy/dd|ssh: the copy differs from the source" in report.left_out(results)
    document = json.loads(report.as_json(results, judge(results), {"rounds": 3}))
    assert document["medians"]["first-copy"]["nbdkit+nbdcopy"] == 2.0
    assert document["failed"] == results.failed
    assert len(document["targets"]) == len(TARGETS)


def test_only_chooses_by_scenario_or_contestant() -> None:
    first = SCENARIOS[0]
    assert chosen(first, []) == [*first.contestants]
    assert chosen(first, ["first-copy"]) == [*first.contestants]
    names = [contestant.name for contestant in chosen(first, ["plaintext", "nbdkit"])]
    assert names == ["p2v-sync plaintext", "p2v-sync plaintext --verify none", "nbdkit+nbdcopy"]
    assert chosen(SCENARIOS[2], ["plaintext"]) == []


# The chart.


def test_the_chart_is_svg_with_a_bar_for_each_measured_row() -> None:
    rows = [
        Row("a < b", "≤ 1 × c & d", "0.50 ×", "1.00 ×", 0.5),
        Row("missed", "≤ 1", "2.00 ×", "1.00 ×", 2.0),
        Row("off the chart", "≤ 1", "99 ×", "1.00 ×", 99.0),
        Row("unknown", "≤ 1"),
    ]
    tree = ET.fromstring(chart.draw(rows, "title", "foot"))
    bars = tree.findall(f"{SVG}rect")
    assert [bar.get("class") for bar in bars] == ["met", "missed", "missed"]
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.01)
    line = tree.find(f"{SVG}line")
    assert line is not None
    target = float(line.get("x1", "")) - float(bars[0].get("x", ""))
    assert target == pytest.approx(2 * widths[0], rel=0.01), "the line stands at a share of 1"
    right = max(float(bar.get("x", "")) + width for bar, width in zip(bars, widths, strict=True))
    assert right <= float(tree.get("width", ""))
    texts = [text.text or "" for text in tree.findall(f"{SVG}text")]
    assert any("» 99 ×" in text for text in texts), "a bar that is cut off says so"
    assert any("not measured" in text for text in texts)
    assert "prefers-color-scheme: dark" in (tree.findtext(f"{SVG}style") or "")


# Images.


def test_the_image_has_holes_and_no_block_of_its_data_twice(tmp_path: Path) -> None:
    image = tmp_path / "image"
    write_image(image, 128 * MIB)
    assert 0 < image.stat().st_blocks * 512 < 128 * MIB
    data = image.read_bytes()
    blocks = [data[at : at + 256 * KIB] for at in range(0, len(data), 256 * KIB)]
    filled = [block for block in blocks if block.strip(b"\0")]
    assert len({*filled}) == len(filled) > 4


def test_an_image_without_holes_is_all_data(tmp_path: Path) -> None:
    image = tmp_path / "image"
    write_image(image, 128 * MIB, holes=False)
    data = image.read_bytes()
    assert len(data) == 128 * MIB
    assert all(data[at : at + PAGE].strip(b"\0") for at in range(0, len(data), PAGE))


def test_toggled_pages_are_one_percent_and_come_back(tmp_path: Path) -> None:
    disk, before = tmp_path / "disk", tmp_path / "before"
    for path in (disk, before):
        make_spread_image(path, 9 * MIB, 4 * MIB)
    assert toggle_pages(disk, 7) == 20 * PAGE
    old, new = before.read_bytes(), disk.read_bytes()
    starts = range(0, 9 * MIB, PAGE)
    changed = [at for at in starts if old[at : at + PAGE] != new[at : at + PAGE]]
    assert len(changed) == 20
    assert min(changed) >= MIB
    assert not is_copy(before, disk)
    toggle_pages(disk, 7)
    assert is_copy(before, disk)


@pytest.mark.parametrize("at", [0, 5 * MIB + 3, 9 * MIB - 1])
def test_one_byte_too_many_in_a_hole_is_a_difference(tmp_path: Path, at: int) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        with path.open("wb") as file:
            file.truncate(9 * MIB)
    assert is_copy(one, other)
    with other.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    assert not is_copy(one, other)
    assert not is_copy(other, one)


def test_an_image_of_another_length_is_no_copy(tmp_path: Path) -> None:
    for name, size in (("one", MIB), ("other", MIB + 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    assert not is_copy(tmp_path / "one", tmp_path / "other")


# Rounds.


def test_contestants_take_turns_and_one_that_fails_is_out(tmp_path: Path) -> None:
    turns: list[str] = []

    def good(stage: Stage) -> Sample:
        assert stage.scratch.is_dir()
        (stage.scratch / "rubbish").touch()
        turns.append(f"good {stage.round}")
        return {"seconds": 1.0}

    def bad(stage: Stage) -> Sample:
        turns.append(f"bad {stage.round}")
        raise Failed("no luck")

    contestants = (
        Contestant("good", good),
        Contestant("bad", bad),
        Contestant("absent", good, ("no-such-tool",)),
    )
    source = tmp_path / "source"
    source.write_bytes(bytes(4096))
    contest = Contest(source, tmp_path, None, turns.append)
    contest.hold(Scenario("s", "title", "good", contestants), contestants, 2)
    assert [turn for turn in turns if turn[0] in "gb"] == ["good 1", "bad 1", "good 2"]
    assert contest.results.failed == {"s/bad": "no luck"}
    assert contest.results.missing == {"absent": ["no-such-tool"]}
    assert contest.results.samples == {"s": {"good": [{"seconds": 1.0}] * 2}}
    assert [*tmp_path.iterdir()] == [source], "the scratch directories are gone"


# The link.


def test_a_line_lets_no_more_through_than_its_rate() -> None:
    line = Line(rate=1000.0)
    assert line.reserve(500, now=10.0) == pytest.approx(10.5)
    assert line.reserve(500, now=10.1) == pytest.approx(11.0), "behind what is on the line"
    assert line.reserve(100, now=20.0) == pytest.approx(20.1), "an idle time is not saved up"
    assert line.carried == 1100
    assert Line().reserve(10**9, now=5.0) == 5.0


def echo(server: socket.socket) -> None:
    with server.accept()[0] as sock:
        while data := sock.recv(64 * KIB):
            sock.sendall(data)


def answer_s(link: Link, length: int) -> float:
    """Seconds until all of ``length`` bytes are back, unchanged and in order."""
    data = bytes(range(256)) * (length // 256)
    with socket.create_connection(("127.0.0.1", link.port)) as sock:
        began = time.monotonic()
        threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
        back = b""
        while len(back) < len(data):
            back += sock.recv(64 * KIB)
        assert back == data
        return time.monotonic() - began


@pytest.mark.alone
@pytest.mark.real_parts
@pytest.mark.parametrize(
    ("delay_s", "rate", "length", "least_s"),
    [
        (0.0, 1e12, 256, 0.0),
        (0.05, 1e12, 256, 0.2),  # a round trip to connect, one for the echo
        (0.0, 2e6, 512 * KIB, 0.25),
        (0.05, 2e6, 512 * KIB, 0.44),  # not the sum over all chunks: they are under way together
    ],
)
def test_a_link_delays_and_limits_and_loses_nothing(
    delay_s: float, rate: float, length: int, least_s: float
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        with Link(server.getsockname()[1]) as link:
            link.shape(delay_s=delay_s, rate=rate)
            seconds = answer_s(link, length)
            assert link.carried == 2 * length
    assert least_s <= seconds < least_s + 1.0


# Without durability.


@pytest.mark.real_parts
def test_nothing_is_flushed_by_what_runs_undurable(tmp_path: Path) -> None:
    script = tmp_path / "flusher.py"
    script.write_text(
        "import os, sqlite3, sys\n"
        "os.fsync(-1); os.fdatasync(-1)\n"  # EBADF, were they real
        "db = sqlite3.connect(sys.argv[1])\n"
        "db.execute('PRAGMA synchronous = FULL')\n"
        "print(db.execute('PRAGMA synchronous').fetchone()[0])\n"
    )
    argv = [sys.executable, "-m", "benchmarks.undurable", "flusher", str(tmp_path / "db")]
    root = str(Path(__file__).parents[2])
    env = {"PYTHONPATH": f"{root}:{tmp_path}"}
    done = subprocess.run(argv, cwd=root, env=env, check=True, capture_output=True, text=True)
    assert done.stdout == "0\n"


def test_a_server_that_ended_by_itself_does_not_cost_the_results() -> None:
    with Program([sys.executable, "-c", ""]) as server:
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    assert server.status == 0
