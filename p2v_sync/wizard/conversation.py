"""Asking, step by step, with a way back; or, with ``auto``, answering by oneself."""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Protocol

from p2v_sync.errors import PreseedError
from p2v_sync.wizard.flow import (
    STEPS,
    SUMMARY,
    Checklist,
    Input,
    Known,
    Menu,
    Page,
    Situation,
    Values,
    default_of,
    next_step,
)
from p2v_sync.wizard.settings import SETTINGS, Value

Reply = str | tuple[str, ...]


class Way(Enum):
    """What else than an answer somebody may give."""

    BACK = "back"


class Front(Protocol):
    """Whoever shows pages: dialog(1), or a test."""

    def show(self, page: Page, *, can_go_back: bool) -> Reply | Way:
        """An answer, or BACK.  Raises Interrupted when the operator leaves."""

    def complain(self, text: str) -> None:
        """Show why an answer can't be taken."""


# Looks at an answer beyond its form: is the host there?  Returns what is wrong, or ''.
Check = Callable[[str, Values], str]


# What is known when the page of a key comes up, after these answers.
Look = Callable[[str, Values], Situation]


def converse(front: Front, given: Values, look: Look, check: Check) -> dict[str, Value]:
    """All answers, those given beforehand among them.  Raises Interrupted."""
    answers: dict[str, Value] = {}
    been: list[int] = []

    def known(key: str = "") -> Known:
        values = {**given, **answers}
        return Known(values, look(key, values))

    at = next_step(-1, known(), given)
    while at is not None:
        step = STEPS[at]
        page = _with_earlier_answer(step.page(known(step.key)), step.key, answers)
        reply = front.show(page, can_go_back=bool(been))
        if isinstance(reply, Way):
            at = been.pop() if been else at
            continue
        problem = _take(step.key, page, reply, answers) or check(step.key, known().values)
        if problem:
            front.complain(problem)
            continue
        been.append(at)
        at = next_step(at, known(), given)
    # What was typed for a step that a later change made pointless is not part of it.
    due = {step.key for step in STEPS if step.is_due(known())}
    return {**given, **{key: value for key, value in answers.items() if key in due}}


def _with_earlier_answer(page: Page, key: str, answers: dict[str, Value]) -> Page:
    """Back on a page, what was answered there stands in it."""
    earlier = answers.get(key)
    match page:
        case Checklist() if isinstance(earlier, tuple):
            return replace(page, chosen=earlier)
        case Menu() if isinstance(earlier, str):
            return replace(page, default=earlier)
        case Input(is_secret=False) if earlier is not None:
            text = ",".join(earlier) if isinstance(earlier, tuple) else str(earlier)
            return replace(page, default=text)
    return page


def _take(key: str, page: Page, reply: Reply, answers: dict[str, Value]) -> str:
    """Put the reply among the answers; returns what is wrong with it, or ''."""
    if key == SUMMARY:
        return ""
    if isinstance(page, Input | Checklist) and page.may_be_empty and not reply:
        answers.pop(key, None)
        return ""
    try:
        answers[key] = SETTINGS[key].parse(reply)
    except ValueError as error:
        answers.pop(key, None)
        shown = ", ".join(reply) if isinstance(reply, tuple) else reply
        return f"{shown or 'Nothing'}: {error}"
    return ""


def answer_alone(given: Values, situation: Situation) -> dict[str, Value]:
    """Every answer without asking: as given, else found on the machine.

    Raises PreseedError for one that nobody can know, as the target.
    """
    answers: dict[str, Value] = dict(given)
    known = Known(answers, situation)
    at = next_step(-1, known, given)
    while at is not None:
        key, page = STEPS[at].key, STEPS[at].page(known)
        default = default_of(page)
        if default:
            answers[key] = SETTINGS[key].parse(default)
        elif key != SUMMARY and not (isinstance(page, Input | Checklist) and page.may_be_empty):
            raise PreseedError(
                f"nobody answered {key} ({SETTINGS[key].meaning})",
                hint=f"put it into the preseed, or {SETTINGS[key].parameter}=… on the kernel "
                "command line",
            )
        at = next_step(at, known, given)
    return answers
