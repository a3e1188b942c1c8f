"""Who is asked when a connection needs an answer, and what the answers were."""

import threading
from collections.abc import Iterator
from typing import Protocol

_ASK_MOST = 3


class Ask(Protocol):
    """Whoever can answer questions: a terminal, a dialog.  None where nobody is there."""

    def secret(self, prompt: str) -> str:
        """Something that is not shown while it is typed."""
        ...

    def confirm(self, question: str) -> bool:
        """Yes or no; no answer is a no."""
        ...


class Secrets:
    """What was typed, so that other disks and a reconnect in the night need not ask again.

    Who asks holds ``lock``: one question is open at a time.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._known: dict[str, str] = {}

    def candidates(self, question: str, ask: Ask | None) -> Iterator[str]:
        """What was the answer before, then what is typed now, a few times."""
        if question in self._known:
            yield self._known[question]
        if ask is not None:
            for _ in range(_ASK_MOST):
                yield ask.secret(question)

    def remember(self, question: str, answer: str) -> None:
        self._known[question] = answer

    def once(self, question: str, ask: Ask) -> str:
        """The answer, asked for only the first time."""
        with self.lock:
            answer = next(self.candidates(question, ask))
            self.remember(question, answer)
            return answer


TYPED = Secrets()  # of this process
