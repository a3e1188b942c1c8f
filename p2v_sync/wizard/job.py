"""What the answers ask for, in the terms of a run: disks, login, configurations."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from p2v_sync import jobs
from p2v_sync.config import Connection, SyncConfig
from p2v_sync.convert import ConvertConfig, Fixups
from p2v_sync.errors import PreseedError, StateError
from p2v_sync.fixup.plan import Hypervisor, Target
from p2v_sync.inquiry import Inquiry
from p2v_sync.overlay import luks
from p2v_sync.transport.ask import Ask
from p2v_sync.vm.network import Networks, parse_networks
from p2v_sync.wizard.flow import Situation, Values
from p2v_sync.wizard.settings import ALL

# A secret among the answers → the variable that the run takes it from.
_VARIABLES = {"login.token": "P2V_TOKEN", "login.luks": luks.VARIABLE}


@contextlib.contextmanager
def login(values: Values) -> Iterator[Connection]:
    """How to reach the receiver; secrets are in the environment meanwhile, not in files."""
    given = {variable: str(values[key]) for key, variable in _VARIABLES.items() if values.get(key)}
    before = {name: os.environ[name] for name in given if name in os.environ}
    os.environ.update(given)
    identity = values.get("login.identity")
    try:
        yield Connection(identity_file=Path(str(identity)) if identity else None)
    finally:
        for name in given:
            os.environ.pop(name)
        os.environ.update(before)


def copied_disks(values: Values, situation: Situation) -> list[str]:
    """Kernel names of the disks that were chosen, there or not."""
    wanted = cast("tuple[str, ...]", values["disks"])
    return [disk.name for disk in situation.disks] if ALL in wanted else list(wanted)


def sources_of(values: Values, situation: Situation) -> tuple[Path, ...]:
    """The disks' device nodes.  Raises PreseedError for one that is not there."""
    there = {disk.name for disk in situation.disks}
    names = copied_disks(values, situation)
    if missing := [name for name in names if name not in there]:
        raise PreseedError(
            f"there is no disk {missing[0]} that could be copied",
            hint=f"there are: {', '.join(sorted(there)) or 'none'}",
        )
    return tuple(Path("/dev", name.replace("!", "/")) for name in names)


def inquiry(
    name: str, values: Values, situation: Situation, connection: Connection, ask: Ask | None
) -> Inquiry:
    """About job ``name`` of the disks that were chosen.  Raises PreseedError, DeviceError."""
    sources = jobs.name_sources(sources_of(values, situation))
    by_name = {source.name: source.path for source in sources}
    return Inquiry(name, by_name, str(values["target"]), connection, ask)


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
        fixups=Fixups(str(values.get("vm.fixups", Fixups.OWN.value))),
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
