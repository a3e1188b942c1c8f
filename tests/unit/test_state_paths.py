"""Where records are kept."""

import os
from pathlib import Path

import pytest

from p2v_sync.state.paths import default_state_dir


@pytest.mark.parametrize(
    ("uid", "environment", "expected"),
    [
        (0, {"P2V_STATE": "/srv/p2v"}, "/srv/p2v"),
        (1000, {"P2V_STATE": "/srv/p2v", "XDG_STATE_HOME": "/x"}, "/srv/p2v"),
        (0, {"XDG_STATE_HOME": "/x"}, "/var/lib/p2v-sync"),
        (0, {"P2V_STATE": ""}, "/var/lib/p2v-sync"),
        (1000, {"XDG_STATE_HOME": "/x"}, "/x/p2v-sync"),
        (1000, {"XDG_STATE_HOME": ""}, "/home/admin/.local/state/p2v-sync"),
        (1000, {}, "/home/admin/.local/state/p2v-sync"),
    ],
)
def test_the_default_directory(
    monkeypatch: pytest.MonkeyPatch, uid: int, environment: dict[str, str], expected: str
) -> None:
    for name in ("P2V_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/admin", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert default_state_dir() == Path(expected)
