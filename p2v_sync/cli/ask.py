"""Questions on the terminal, for passwords, tokens and host keys."""

import sys

import click


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
