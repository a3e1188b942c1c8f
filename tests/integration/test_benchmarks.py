"""Our rows of ``make bench`` on a tiny image: the harness works, its figures are of real runs."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from p2v_sync.units import MIB

ONLY = (
    "first-copy/p2v-sync plaintext",
    "unchanged/p2v-sync",
    "manifest-lost/p2v-sync",
    "changed-pages/p2v-sync,",
    "durability/p2v-sync without fsync",
    "long-link/the link alone",
    "long-link/p2v-sync incremental, 50 ms",
    "sparse/p2v-sync",
    "first-copy/nbdkit",
)


@pytest.mark.slow
def test_our_rows_are_measured_and_the_copies_are_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, picture, scratch = tmp_path / "json", tmp_path / "svg", tmp_path / "scratch"
    scratch.mkdir()
    files = ["--json", str(document), "--svg", str(picture), "--dir", str(scratch)]
    status = main(["--size", "32", "--rounds", "1", *files, "--only", *ONLY])
    said = capsys.readouterr().out
    results = json.loads(document.read_text())
    assert status == 0, said
    assert results["failed"] == {}
    assert not [*scratch.iterdir()], "nothing is left of the images"
    samples = {
        f"{scenario}/{name}": runs[0]
        for scenario, measured in results["samples"].items()
        for name, runs in measured.items()
    }
    counted = samples["changed-pages/p2v-sync, bytes counted"]
    assert counted["carried"] >= counted["changed"] > 0
    assert samples["unchanged/p2v-sync"]["sent"] == 0
    assert 0 < samples["unchanged/p2v-sync"]["target_read"] < 32 * MIB
    assert 0 < samples["unchanged/p2v-sync, bytes counted"]["carried"] < MIB
    assert samples["sparse/p2v-sync"]["sent"] == 8 * MIB
    assert samples["sparse/p2v-sync"]["receiver_peak_rss"] > MIB
    assert samples["long-link/the link alone"]["seconds"] > 0
    ET.parse(picture)


def test_a_round_with_a_wrong_name_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--size", "1", "--only", "no-such-scenario"])
    assert "no-such-scenario" in capsys.readouterr().err
