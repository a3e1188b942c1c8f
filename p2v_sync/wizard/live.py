"""The wizard from its first question to the result: answers, network, hooks, the run, the end."""

import contextlib
import logging
import os
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from p2v_sync import jobs, run
from p2v_sync.config import Connection, SyncConfig
from p2v_sync.convert import ConvertConfig
from p2v_sync.errors import (
    CommandError,
    Interrupted,
    P2vError,
    PreseedError,
    SourceMissing,
    StateError,
)
from p2v_sync.fixup.plan import Hypervisor, Target
from p2v_sync.transport.ask import Ask
from p2v_sync.vm.network import Networks, parse_networks
from p2v_sync.wizard import network
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
from p2v_sync.wizard.flow import Known, Situation, Values, torn_apart
from p2v_sync.wizard.settings import ALL, Value
from p2v_sync.wizard.situation import interface_names

log = logging.getLogger(__name__)

MEDIUM_PRESEED = Path("/etc/p2v-sync/preseed.toml")
_FETCH_WITHIN_S = 30.0
_HOOK_WITHIN_S = 3600.0


def log_to(path: Path) -> None:
    """Everything that is logged, also into this file; it may lie where nothing can be written."""
    with contextlib.suppress(OSError):
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        for shown in root.handlers:  # the terminal says no more than before
            shown.setLevel(root.level)
        root.addHandler(handler)
        logging.getLogger("p2v_sync").setLevel(logging.DEBUG)


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


def gather(preseed: Path | None, command_line: str) -> Given:
    """All answers given beforehand but those at ``config``.  What is wrong is in ``problem``."""
    typed = read_kernel_command_line(command_line)
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
        key: answer for key, answer in given.answers.items() if answer.origin == KERNEL_COMMAND_LINE
    }
    fetched = read_preseed(data, str(url))
    return Given(merge(typed, fetched.answers, given.answers), fetched.problem)


class Session:
    """One go through the wizard.  ``screen``: None where nobody is there."""

    def __init__(
        self, given: Given, look: Callable[[], Situation], screen: Callable[[], Screen | None]
    ) -> None:
        self._given = given
        self._look = look
        self._make_screen = screen
        self._network_is_up_as: Values | None = None
        self.screen: Screen | None = None
        self.situation = Situation()

    def values(self) -> dict[str, Value]:
        """All answers.  Raises Interrupted, DeviceError, NetworkError, PreseedError."""
        self._check_given()
        self.situation = self._look()
        if not self.situation.disks:
            raise SourceMissing(
                "this machine has no disk that could be copied",
                hint="'p2v-sync disks' lists what there is; is the controller's driver loaded?",
            )
        if self._given.values.get("config"):
            self._bring_up(self._alone_network())
            self._given = with_fetched(self._given)
            self._check_given()
        if "disks" in self._given.values:
            sources_of(self._given.values, self.situation)
        self.screen = None if self._given.is_alone else self._make_screen()
        if self.screen is None:
            return self._alone()
        return converse(self.screen, self._given.values, self.situation, self._check)

    def given(self) -> dict[str, Value]:
        """What was answered beforehand, as far as it is known by now."""
        return self._given.values

    def _check_given(self) -> None:
        if self._given.problem is not None:
            raise self._given.problem

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
        try:
            if key == "disks":
                return torn_apart(Known(values, self.situation))
            if key in ("target", "login.token"):
                self._bring_up(values)
                is_ready = key == "login.token" or not str(values["target"]).startswith("tcp:")
                if is_ready:
                    self._reach(values)
        except P2vError as error:
            return str(error)
        return ""

    def _reach(self, values: Values) -> None:
        with login(values) as connection:
            jobs.reach(str(values["target"]), connection, self.screen)


@contextlib.contextmanager
def login(values: Values) -> Iterator[Connection]:
    """How to reach the receiver; the token is in the environment meanwhile, not in a file."""
    token, before = values.get("login.token"), os.environ.get("P2V_TOKEN")
    if token is not None:
        os.environ["P2V_TOKEN"] = str(token)
    identity = values.get("login.identity")
    try:
        yield Connection(identity_file=Path(str(identity)) if identity else None)
    finally:
        if token is not None:
            os.environ.pop("P2V_TOKEN")
        if before is not None:
            os.environ["P2V_TOKEN"] = before


def sources_of(values: Values, situation: Situation) -> tuple[Path, ...]:
    """The disks' device nodes.  Raises PreseedError for one that is not there."""
    there = {disk.name for disk in situation.disks}
    wanted = cast("tuple[str, ...]", values["disks"])
    names = [disk.name for disk in situation.disks] if ALL in wanted else list(wanted)
    if missing := [name for name in names if name not in there]:
        raise PreseedError(
            f"there is no disk {missing[0]} that could be copied",
            hint=f"there are: {', '.join(sorted(there)) or 'none'}",
        )
    return tuple(Path("/dev", name.replace("!", "/")) for name in names)


def sync_config(
    values: Values, situation: Situation, state_dir: Path, connection: Connection
) -> SyncConfig:
    """How the disks are copied.  Raises PreseedError."""
    return SyncConfig(
        sources=sources_of(values, situation),
        target=str(values["target"]),
        state_dir=state_dir,
        job=str(values["name"]),
        connection=connection,
    )


def convert_config(values: Values, sync: SyncConfig) -> ConvertConfig:
    """What the copy becomes.  Raises ConfigError for networks that can't be."""
    network, memory, vcpus = (values.get(f"vm.{key}") for key in ("network", "memory", "vcpus"))
    return ConvertConfig(
        sync=sync,
        target=Target(Hypervisor(str(values.get("vm.target", Hypervisor.KVM.value)))),
        name=sync.job,
        memory=memory if isinstance(memory, int) else None,
        vcpus=vcpus if isinstance(vcpus, int) else None,
        networks=parse_networks(network) if isinstance(network, str) else Networks(),
        start=values.get("vm.start") is True,
    )


def remember_host_key(values: Values) -> None:
    """``login.host_key`` into this user's known_hosts.  Raises StateError."""
    line = f"{values['login.host_key']}\n" if "login.host_key" in values else ""
    path = Path.home() / ".ssh" / "known_hosts"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("a+") as file:
            file.seek(0)
            if line not in file.read():
                file.write(line)
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"login.host_key can't be put into {path}: {error}") from error


def hook(values: Values, name: str, told: Mapping[str, str]) -> None:
    """Run ``hooks.NAME`` with ``told`` in its environment.  Raises CommandError."""
    command = values.get(f"hooks.{name}")
    if command is None:
        return
    log.info("the hook %s: %s", name, command)
    settings = [f"{key}={value}" for key, value in told.items()]
    said = run.capture(["env", *settings, "sh", "-c", str(command)], timeout_s=_HOOK_WITHIN_S)
    log.info("the hook %s ended well: %s", name, said.strip())


def end(values: Values) -> None:
    """Power off or reboot, where that was asked for.  Raises CommandError."""
    action = values.get("post", "shell")
    if action in ("poweroff", "reboot"):
        run.capture(["systemctl", str(action)])


Work = Callable[[dict[str, Value]], None]


def with_hooks(
    given: Callable[[], Values], take_values: Callable[[], dict[str, Value]], work: Work
) -> dict[str, Value]:
    """``work`` between its hooks; the fail hook on every failure but the operator's leaving.

    ``given``: what is known when there are no values yet.  Returns all values.  The fail hook's
    own failure is only logged.
    """
    values: dict[str, Value] = {}
    try:
        values = take_values()
        remember_host_key(values)
        hook(values, "pre", _told(values))
        work(values)
        hook(values, "post", _told(values))
    except Interrupted:
        raise
    except Exception as error:
        values = values or dict(given())
        status = error.exit_code if isinstance(error, P2vError) else 1
        log.info("failed with status %d: %s", status, error)
        try:
            told = {"P2V_ERROR": str(error), "P2V_STATUS": str(status)}
            hook(values, "fail", {**_told(values), **told})
        except CommandError as second:
            log.error("the fail hook: %s", second)
        raise
    return values


def _told(values: Values) -> dict[str, str]:
    return {"P2V_NAME": str(values.get("name", "")), "P2V_TARGET": str(values.get("target", ""))}
