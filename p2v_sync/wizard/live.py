"""The wizard's way to its answers: those given beforehand, the questions, what is tried of each."""

import logging
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from p2v_sync import jobs
from p2v_sync.errors import P2vError, PreseedError, SourceMissing, TargetLocked, TargetTaken
from p2v_sync.inquiry import Inquiry
from p2v_sync.transport.ask import Ask
from p2v_sync.wizard import network, stick
from p2v_sync.wizard.answers import (
    KERNEL_COMMAND_LINE,
    PRESEED_MOST,
    Answer,
    Found,
    merge,
    read_kernel_command_line,
    read_preseed,
)
from p2v_sync.wizard.conversation import Front, answer_alone, converse
from p2v_sync.wizard.flow import (
    SUMMARY,
    UNNAMED,
    Known,
    KnownJob,
    Situation,
    Values,
    is_end_of_network,
    torn_apart,
)
from p2v_sync.wizard.job import copied_disks, inquiry, login, remember_host_key, sources_of
from p2v_sync.wizard.log import send
from p2v_sync.wizard.settings import Value
from p2v_sync.wizard.situation import interface_names

log = logging.getLogger(__name__)

STATE_OPTION = "--state"
MEDIUM_PRESEED = Path("/etc/p2v-sync/preseed.toml")
_FETCH_WITHIN_S = 30.0


class Screen(Front, Ask, Protocol):
    """Whoever shows pages and can also ask for passwords and host keys."""


@dataclass(frozen=True)
class Given:
    """What was answered before anybody was asked.  ``problem``: what is wrong with it."""

    answers: Mapping[str, Answer]
    problem: P2vError | None = None

    @property
    def values(self) -> dict[str, Value]:
        return {key: answer.value for key, answer in self.answers.items()}

    @property
    def is_alone(self) -> bool:
        return self.values.get("auto") is True


def gather(preseed: Path | None, command_line: str, state: Path | None = None) -> Given:
    """All answers given beforehand but those at ``config``.  What is wrong is in ``problem``.

    ``state``: as an option, which is stronger than all of them.
    """
    typed = read_kernel_command_line(command_line)
    if state is not None:
        named = str(state) if stick.is_named_by(str(state)) else str(state.absolute())
        typed.answers["state"] = Answer(named, STATE_OPTION)
    on_medium = Found({})
    path = preseed or MEDIUM_PRESEED
    try:
        on_medium = read_preseed(_read(path), str(path))
    except FileNotFoundError:
        if preseed is not None:
            on_medium = Found({}, PreseedError(f"there is no {preseed}"))
    except PreseedError as error:
        on_medium = Found({}, error)
    return Given(merge(typed.answers, on_medium.answers), typed.problem or on_medium.problem)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(PRESEED_MOST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PreseedError(f"{path} can't be read: {error.strerror}") from error


def with_fetched(given: Given) -> Given:
    """With the answers at the URL ``config``; needs the network.  Raises PreseedError.

    They come behind the kernel command line's and before the medium's.  What is wrong with them is
    in ``problem``.
    """
    url = given.values.get("config")
    if url is None:
        return given
    try:
        with urllib.request.urlopen(str(url), timeout=_FETCH_WITHIN_S) as response:
            data: bytes = response.read(PRESEED_MOST + 1)
    except (OSError, ValueError) as error:
        raise PreseedError(f"{url} can't be fetched: {error}", hint="is the network up?") from error
    typed = {
        key: answer
        for key, answer in given.answers.items()
        if answer.origin in (KERNEL_COMMAND_LINE, STATE_OPTION)
    }
    fetched = read_preseed(data, str(url))
    return Given(merge(typed, fetched.answers, given.answers), fetched.problem)


Question = tuple[Value | None, ...]


def _question(name: str, values: Values) -> Question:
    """All that the answer to an inquiry depends on."""
    return (name, *(values.get(key) for key in ("target", "login.token", "disks")))


class Session:
    """One go through the wizard.  ``screen``: None where nobody is there."""

    def __init__(
        self, given: Given, look: Callable[[], Situation], screen: Callable[[], Screen | None]
    ) -> None:
        self._given = given
        self._look = look
        self._make_screen = screen
        self._network_is_up_as: Values | None = None
        self._asked: dict[Question, tuple[Inquiry, KnownJob]] = {}
        self.screen: Screen | None = None
        self.situation = Situation()

    def values(self) -> dict[str, Value]:
        """All answers.  Raises Interrupted, DeviceError, NetworkError, PreseedError, StateError."""
        self._check_given()
        self.situation = self._look()
        if self._given.values.get("config"):
            self._bring_up(self._alone_network())
            self._given = with_fetched(self._given)
            self._check_given()
        self._set_stick_apart()
        if not self.situation.disks:
            raise SourceMissing(
                "this machine has no disk that could be copied",
                hint="'p2v-sync disks' lists what there is; is the controller's driver loaded?",
            )
        remember_host_key(self._given.values)
        if "disks" in self._given.values:
            sources_of(self._given.values, self.situation)
        self.screen = None if self._given.is_alone else self._make_screen()
        if self.screen is None:
            return self._alone()
        return converse(self.screen, self._given.values, self._look_at, self._check)

    def given(self) -> dict[str, Value]:
        """What was answered beforehand, as far as it is known by now."""
        return self._given.values

    def _check_given(self) -> None:
        if self._given.problem is not None:
            raise self._given.problem

    def _set_stick_apart(self) -> None:
        """A stick for the ledger is none of the machine's disks; another disk may well be."""
        state = str(self._given.values.get("state", ""))
        if not stick.is_named_by(state):
            return
        below = stick.disks_below(stick.find(state))
        asked_for = self._given.values.get("disks", ())
        kept = tuple(
            disk
            for disk in self.situation.disks
            if not (disk.is_pluggable and disk.name in below)
            or (isinstance(asked_for, tuple) and disk.name in asked_for)
        )
        self.situation = replace(self.situation, disks=kept)

    def _alone(self) -> dict[str, Value]:
        values = answer_alone(self._given.values, self.situation)
        if problem := torn_apart(Known(values, self.situation)):
            raise PreseedError(problem)
        self._bring_up(values)
        return values

    def _alone_network(self) -> dict[str, Value]:
        default = "none" if self.situation.is_online else "dhcp"
        return {"network.mode": default, **self._given.values}

    def _bring_up(self, values: Values) -> None:
        wanted = {key: value for key, value in values.items() if key.startswith("network.")}
        if wanted == self._network_is_up_as:
            return
        network.bring_up(wanted, interface_names())
        self._network_is_up_as = wanted

    def _check(self, key: str, values: Values) -> str:
        """What does not hold of an answer, found out by trying."""
        known = Known(values, self.situation)
        try:
            if key == "disks":
                self._refuse_stick(values)
                return torn_apart(known)
            if is_end_of_network(key, known, self._given.values):
                self._bring_up(values)
            elif key in ("target", "login.token"):
                self._bring_up(values)
                is_ready = key == "login.token" or not str(values["target"]).startswith("tcp:")
                if is_ready:
                    self._reach(values)
            elif key in ("name", SUMMARY):
                self._bring_up(values)
                self.require_own(values)
        except P2vError as error:
            return str(error)
        return ""

    def _refuse_stick(self, values: Values) -> None:
        state = str(values.get("state", ""))
        if stick.is_named_by(state):
            stick.refuse_copied(state, stick.find(state), copied_disks(values, self.situation))

    # What the receiver has

    def _look_at(self, key: str, values: Values) -> Situation:
        """For some pages with what the receiver has of this machine."""
        name = self.situation.hostname or UNNAMED
        if key == SUMMARY:
            name = str(values["name"])
        elif key not in ("action", "name"):
            return self.situation
        try:
            self._bring_up(values)
            job = self._ask_for(name, values)
        except (TargetTaken, TargetLocked) as error:
            job = KnownJob(name, refusal=str(error))
        except P2vError as error:
            log.info("the host can't be asked for %s: %s", name, error)  # the next answer's check
            return self.situation
        return replace(self.situation, known_job=job)

    def require_own(self, values: Values) -> None:
        """Raises TargetTaken, TargetLocked for a name that is another machine's or in use (P10)."""
        self._ask_for(str(values["name"]), values)

    def _ask_for(self, name: str, values: Values) -> KnownJob:
        """Once is enough for the same question: each disk costs a connection."""
        question = _question(name, values)
        if question not in self._asked:
            with login(values) as connection:
                asked = inquiry(name, values, self.situation, connection, self.screen)
                lines = tuple(str(replica) for replica in asked.replicas())
            self._asked[question] = asked, KnownJob(name, lines)
        return self._asked[question][1]

    def keep_log(self, path: Path, values: Values, began: float) -> None:
        """Beside the images, if they are known to be this machine's."""
        asked, _ = self._asked.get(_question(str(values["name"]), values), (None, None))
        if asked is not None:
            with login(values):
                send(path, asked, began)

    def _reach(self, values: Values) -> None:
        with login(values) as connection:
            jobs.reach(str(values["target"]), connection, self.screen)
