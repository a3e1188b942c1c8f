"""The sender of today with a receiver under the oldest Python of this machine (3.6, if there)."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2v_sync import jobs
from p2v_sync.config import SyncConfig
from p2v_sync.events import Event, PassFinished, Verified
from p2v_sync.units import MIB
from tests.conftest import OLDEST_PYTHON
from tests.contract.channel_suite import ROOT, noise

TOKEN = "an old friend"


@pytest.fixture(params=[[], ["--plaintext"]], ids=["tls", "plaintext"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A ``p2v-receiver listen`` under it."""
    (tmp_path / "images").mkdir()
    argv = [OLDEST_PYTHON, "-m", "p2v_receiver", "listen", f"--dir={tmp_path / 'images'}"]
    argv += ["--bind=127.0.0.1", "--port=0", *request.param]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "receiver"), "P2V_TOKEN": TOKEN}
    environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"token: {TOKEN}\n"
        yield process.stdout.readline().split()[-1]
        process.terminate()


def test_two_passes_and_a_full_verification(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2V_TOKEN", TOKEN)
    disk = tmp_path / "disk.img"
    content = bytearray(noise(3 * MIB) + bytes(2 * MIB) + b"text " * 100_000 + b"end")
    events: list[Event] = []
    config = SyncConfig(
        sources=(disk,), target=target, state_dir=tmp_path / "state", job="old", verify="full"
    )
    for changed in (b"", b"changed"):
        content[MIB : MIB + len(changed)] = changed
        disk.write_bytes(content)
        jobs.sync(config, events.append, None)
        assert (tmp_path / "images" / "old" / "disk.img").read_bytes() == content
    first, second = (event for event in events if isinstance(event, PassFinished))
    assert first.counters.sent > 3 * MIB > second.counters.sent > 0
    assert [event.mismatches for event in events if isinstance(event, Verified)] == [(), ()]
