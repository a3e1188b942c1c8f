"""Fixtures for tests with real devices."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

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
