"""The pages on a terminal, by dialog(1) through pythondialog; they fit 80x24 and a serial line."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from dialog import Dialog, DialogError, ExecutableNotFound

from p2v_sync.errors import CommandError, Interrupted
from p2v_sync.wizard.conversation import Reply, Way
from p2v_sync.wizard.flow import Checklist, Confirm, Input, Menu, Page

_WIDTH, _HEIGHT = 76, 20


@contextlib.contextmanager
def _on_the_terminal() -> Iterator[None]:
    """dialog draws on standard output, which may go to a file (``--answers-only >FILE``)."""
    if os.isatty(1):
        yield
        return
    elsewhere = os.dup(1)
    try:
        with open("/dev/tty", "wb") as terminal:
            os.dup2(terminal.fileno(), 1)
        yield
    finally:
        os.dup2(elsewhere, 1)
        os.close(elsewhere)


def _clear() -> None:
    """What comes next is no page, and dialog leaves its last one behind."""
    with contextlib.suppress(OSError), open("/dev/tty", "wb") as terminal:
        terminal.write(b"\x1b[H\x1b[2J")


class Screens:
    """Satisfies ``conversation.Front`` and ``transport.ask.Ask``.  Raises CommandError."""

    def __init__(self) -> None:
        try:
            self._dialog = Dialog(dialog="dialog", autowidgetsize=False)
        except ExecutableNotFound as error:
            raise CommandError("dialog can't be started: it is not installed") from error
        self._dialog.set_background_title("p2v-sync: from a physical to a virtual machine")

    def show(self, page: Page, *, can_go_back: bool) -> Reply | Way:
        options: dict[str, Any] = {"cancel_label": "Back" if can_go_back else "Leave"}
        try:
            with _on_the_terminal():
                code, reply = self._ask(page, options)
        except DialogError as error:
            raise CommandError(f"dialog failed: {error}") from error
        is_last = isinstance(page, Confirm) if code == self._dialog.OK else not can_go_back
        if is_last:
            _clear()
        if code == self._dialog.OK:
            return tuple(reply) if isinstance(reply, list) else reply
        if can_go_back:
            return Way.BACK
        raise Interrupted("the operator left the wizard")

    def _ask(self, page: Page, options: dict[str, Any]) -> tuple[str, Any]:
        size = {"width": _WIDTH, "height": _HEIGHT, "title": page.title, "no_collapse": True}
        reply: tuple[str, Any]
        match page:
            case Menu():
                choices = [tuple(choice) for choice in page.choices]
                reply = self._dialog.menu(
                    page.text, choices=choices, default_item=page.default, **size, **options
                )
            case Checklist():
                rows = [(tag, text, tag in page.chosen) for tag, text in page.choices]
                reply = self._dialog.checklist(page.text, choices=rows, **size, **options)
            case Input(is_secret=True):
                reply = self._dialog.passwordbox(page.text, insecure=True, **size, **options)
            case Input():
                reply = self._dialog.inputbox(page.text, init=page.default, **size, **options)
            case Confirm():
                labels = {"yes_label": page.go_label, "no_label": options["cancel_label"]}
                reply = self._dialog.yesno(page.text, **size, **labels), ""
        return reply

    def complain(self, text: str) -> None:
        with _on_the_terminal():
            self._dialog.msgbox(text, width=_WIDTH, height=10, title="That won't do")

    def tell(self, text: str) -> None:
        with _on_the_terminal():
            self._dialog.infobox(text, width=_WIDTH, height=5)

    def secret(self, prompt: str) -> str:
        with _on_the_terminal():
            code, reply = self._dialog.passwordbox(prompt, insecure=True, width=_WIDTH, height=10)
        _clear()
        return str(reply) if code == self._dialog.OK else ""

    def confirm(self, question: str) -> bool:
        with _on_the_terminal():
            code = self._dialog.yesno(question, width=_WIDTH, height=12, defaultno=True)
        _clear()
        return bool(code == self._dialog.OK)
