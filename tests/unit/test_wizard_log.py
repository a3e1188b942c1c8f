"""The log of a run: its end is kept, and no failure to send it changes the run's result."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from p2v_sync.errors import ConnectFailed, Interrupted, TargetTaken
from p2v_sync.inquiry import Inquiry
from p2v_sync.wizard import hooks, log
from p2v_sync.wizard.flow import Values
from p2v_sync.wizard.settings import Value

VALUES: dict[str, Value] = {"name": "box", "target": "/d", "disks": ("sda",)}


def test_the_end_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(1000)))
    assert log.read_end(path, 30) == b"line 997\nline 998\nline 999\n"
    assert log.read_end(path) == path.read_bytes()


def test_each_run_has_a_log_of_its_own() -> None:
    assert log.name_at(0) == "p2v-sync-19700101T000000Z.log"
    assert log.name_at(1) != log.name_at(0)


class Asked:
    """Stands for an Inquiry."""

    def __init__(self, answer: bool | Exception) -> None:
        self._answer = answer
        self.put_there: dict[str, bytes] = {}

    def put(self, name: str, content: bytes) -> bool:
        if isinstance(self._answer, Exception):
            raise self._answer
        self.put_there[name] = content
        return self._answer


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (True, "is beside the images"),
        (False, "no images"),
        (ConnectFailed("gone"), "can't be sent to the host: gone"),
        (TargetTaken("another's"), "another's"),
    ],
)
def test_sending_never_fails(
    answer: bool | Exception, says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "log").write_text("a line\n")
    asked = Asked(answer)
    log.send(tmp_path / "log", cast(Inquiry, asked), 0.0)
    assert says in caplog.text
    assert asked.put_there == (
        {} if isinstance(answer, Exception) else {log.name_at(0.0): b"a line\n"}
    )


def test_a_log_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log.send(tmp_path / "none", cast(Inquiry, Asked(True)), 0.0)
    assert "can't be sent" in caplog.text


# When it is kept: after the work, before a hook that may switch the machine off.


def order(
    work: Exception | None, monkeypatch: pytest.MonkeyPatch, values: Callable[[], dict[str, Value]]
) -> list[str]:
    done: list[str] = []

    def hook(values: Values, name: str, told: object) -> None:
        del values, told
        done.append(name)

    def working(values: dict[str, Value]) -> None:
        done.append(f"work for {values['name']}")
        if work is not None:
            raise work

    monkeypatch.setattr(hooks, "hook", hook)
    try:
        hooks.with_hooks(dict, values, working, lambda values: done.append(f"log {values['name']}"))
    except (ConnectFailed, Interrupted) as error:
        done.append(type(error).__name__)
    return done


def test_after_a_run_that_went_well(monkeypatch: pytest.MonkeyPatch) -> None:
    done = order(None, monkeypatch, VALUES.copy)
    assert done == ["pre", "work for box", "log box", "post"]


def test_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    done = order(ConnectFailed("x"), monkeypatch, VALUES.copy)
    assert done == ["pre", "work for box", "log box", "fail", "ConnectFailed"]


def test_after_the_operator_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done = order(Interrupted("x"), monkeypatch, VALUES.copy)
    assert done == ["pre", "work for box", "log box", "Interrupted"]


def test_before_there_are_answers_there_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_values() -> dict[str, Value]:
        raise ConnectFailed("x")

    assert order(None, monkeypatch, no_values) == ["fail", "ConnectFailed"]
