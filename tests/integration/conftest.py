"""Fixtures for tests with real devices and with real users."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from p2v_receiver import wire
from tests.integration.cli import Lab
from tests.integration.loop import Attach, attach_file


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    """What a test has to take down again, in the opposite order."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def attach(cleanup: ExitStack) -> Attach:
    """``attach(file, *losetup_options)`` → the loop device, for as long as the test runs."""
    return partial(attach_file, cleanup)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A user with the programs installed."""
    with Lab(tmp_path) as one:
        yield one


@pytest.fixture
def grow_impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on silence is death soon: only when nothing has to succeed any more."""
    monkeypatch.setattr(wire, "HEARTBEAT_S", 0.2)
    return lambda: monkeypatch.setattr(wire, "SILENCE_LIMIT_S", 1.0)
