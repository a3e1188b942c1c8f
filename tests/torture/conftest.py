"""The torture is done with the same parts as the integration tests."""

from tests.integration.conftest import attach, cleanup, lab

__all__ = ["attach", "cleanup", "lab"]
