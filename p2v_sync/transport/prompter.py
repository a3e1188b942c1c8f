"""Who is asked when a connection needs an answer; there is nobody where there is no terminal."""

from typing import Protocol


class Prompter(Protocol):
    """A person.  Only one question is open at a time."""

    def confirm(self, question: str) -> bool:
        """Yes or no; no answer is a no."""
        ...

    def secret(self, question: str) -> str:
        """Something that is not shown while it is typed."""
        ...
