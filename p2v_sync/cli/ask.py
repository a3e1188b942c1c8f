"""Questions on the terminal, for passwords, tokens and host keys."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from p2v_sync.overlay.luks import Keys, read_keys


class TerminalAsk:
    """Satisfies ``transport.dialer.Ask``."""

    def secret(self, prompt: str) -> str:
        """Something that must not be shown."""
        answer: str = click.prompt(
            prompt, hide_input=True, default="", show_default=False, err=True
        )
        return answer

    def confirm(self, question: str) -> bool:
        """Yes or no; no is the default."""
        return click.confirm(question, default=False, err=True)


def terminal_ask() -> TerminalAsk | None:
    """None where nobody is there to answer."""
    return TerminalAsk() if sys.stdin.isatty() and sys.stderr.isatty() else None


def volume_keys(files: Iterable[Path]) -> Keys:
    """For encrypted volumes: those files, the environment's, then what is typed.

    Raises ConfigError.
    """
    ask = terminal_ask()
    return read_keys(files, os.environ, ask.secret if ask else None)
