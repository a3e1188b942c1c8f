"""Which screen comes when: a pure table.  What was answered beforehand is not asked again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from p2v_sync.transport.address import TcpTarget, parse_target
from p2v_sync.units import GIB, format_duration, format_size
from p2v_sync.wizard.settings import ALL, SETTINGS, Value

Values = Mapping[str, Value]

UNNAMED = "server"  # a machine that has no name at all
_RATE = 100e6  # bytes a second that an ordinary network carries: for a first estimate only


class DiskChoice(NamedTuple):
    """A disk that could be copied.

    ``kept_with``: those that share an md set or volume group.  ``is_pluggable``: like a USB stick.
    """

    name: str
    size: int
    text: str
    kept_with: tuple[str, ...] = ()
    is_pluggable: bool = False


@dataclass(frozen=True)
class KnownJob:
    """What the receiver said when it was asked for a job of this machine's.

    ``disks``: a line for each disk that is there.  ``refusal``: why this machine can't have that
    name.
    """

    name: str
    disks: tuple[str, ...] = ()
    refusal: str = ""


@dataclass(frozen=True)
class Situation:
    """What was found on the machine, and at the receiver, for choices and defaults."""

    hostname: str = ""
    disks: tuple[DiskChoice, ...] = ()
    interfaces: tuple[tuple[str, str], ...] = ()  # (name, MAC and link) that could be used
    is_online: bool = False
    memory: int = 0
    cpus: int = 1
    nics: tuple[str, ...] = ()  # names of those the virtual machine gets
    known_job: KnownJob | None = None  # None: nobody was asked, or nobody could say


class Known(NamedTuple):
    """All that a step may look at: what was answered, and what was found."""

    values: Values
    situation: Situation


class Choice(NamedTuple):
    """One line of a menu; ``tag`` is its value."""

    tag: str
    text: str


@dataclass(frozen=True)
class Menu:
    """One of several."""

    title: str
    text: str
    choices: tuple[Choice, ...]
    default: str = ""


@dataclass(frozen=True)
class Checklist:
    """Some of several.  ``may_be_empty``: then the question counts as not answered."""

    title: str
    text: str
    choices: tuple[Choice, ...]
    chosen: tuple[str, ...] = ()
    may_be_empty: bool = False


@dataclass(frozen=True)
class Input:
    """A line of text.  ``may_be_empty``: then the question counts as not answered."""

    title: str
    text: str
    default: str = ""
    is_secret: bool = False
    may_be_empty: bool = False


@dataclass(frozen=True)
class Confirm:
    """A last look: go on, or back."""

    title: str
    text: str
    go_label: str = "Start"


Page = Menu | Checklist | Input | Confirm


@dataclass(frozen=True)
class Step:
    """One question.  ``look``: its page; ``due``: whether it comes up (None: always)."""

    key: str
    look: Page | Callable[[Known], Page]
    due: Callable[[Known], bool] | None = None

    def page(self, known: Known) -> Page:
        return self.look(known) if callable(self.look) else self.look

    def is_due(self, known: Known) -> bool:
        return self.due is None or self.due(known)


SUMMARY = "summary"


# Network


def _network_mode(known: Known) -> Page:
    choices = [
        Choice("dhcp", "Automatic (DHCP)"),
        Choice("static", "An address that I type"),
    ]
    if known.situation.is_online:
        choices.insert(0, Choice("none", "It is online already: leave it as it is"))
    return Menu("Network", "How does this machine reach the host?", tuple(choices), choices[0].tag)


def _interfaces(known: Known) -> tuple[Choice, ...]:
    return tuple(Choice(name, text) for name, text in known.situation.interfaces)


def _interface(known: Known) -> Page:
    choices = _interfaces(known)
    return Menu("Network", "Which interface?", choices, choices[0].tag if choices else "")


def _bond(known: Known) -> Page:
    text = "Which interfaces are joined to one (a bond)? None: there is no bond."
    return Checklist("Network", text, _interfaces(known), may_be_empty=True)


_VLAN = Input("Network", "Number of the VLAN, where the port is tagged:", may_be_empty=True)


def _is_set_up(known: Known) -> bool:
    return known.values.get("network.mode") in ("dhcp", "static")


def _has_several_interfaces(known: Known) -> bool:
    return _is_set_up(known) and len(known.situation.interfaces) > 1


def _needs_interface(known: Known) -> bool:
    return _has_several_interfaces(known) and "network.bond" not in known.values


def _is_static(known: Known) -> bool:
    return known.values.get("network.mode") == "static"


def _static(key: str, *, may_be_empty: bool = False) -> Step:
    page = Input("Network", f"{SETTINGS[key].meaning}:", may_be_empty=may_be_empty)
    return Step(key, page, _is_static)


# Disks and what to do


def _disks(known: Known) -> Page:
    choices = tuple(Choice(disk.name, disk.text) for disk in known.situation.disks)
    together = sorted(
        {" + ".join((d.name, *d.kept_with)) for d in known.situation.disks if d.kept_with}
    )
    note = f"\nKeep together: {'; '.join(together)}." if together else ""
    text = f"Which disks are copied? None of them is ever written to.{note}"
    return Checklist("Disks", text, choices, tuple(choice.tag for choice in choices))


_DISKS_SHOWN = 4


def _already_there(known: Known) -> list[str]:
    """What the host has of this machine, for people."""
    job = known.situation.known_job
    if job is None or not job.disks:
        return []
    more = len(job.disks) - _DISKS_SHOWN
    rest = [f"  and {more} more"] if more > 0 else []
    shown = [f"  {disk}" for disk in job.disks[:_DISKS_SHOWN]]
    return [f"The host has {job.name} of this machine:", *shown, *rest, ""]


_BEGIN = (
    Choice("convert", "Copy the disks and make a virtual machine of them"),
    Choice("sync", "Copy the disks only; convert later"),
    Choice("cutover", "Last sync and conversion of a job that was copied before"),
)
_GO_ON = (
    Choice("sync", "Go on: copy what is missing or has changed"),
    Choice("cutover", "Copy that, and make a virtual machine of it all"),
)


def _action(known: Known) -> Page:
    there = _already_there(known)
    choices = _GO_ON if there else _BEGIN
    return Menu("What to do", "\n".join([*there, "What shall be done?"]), choices, choices[0].tag)


def _makes_machine(known: Known) -> bool:
    return known.values.get("action") in ("convert", "cutover")


def _name(known: Known) -> Page:
    text = "Name of the job, and of the virtual machine:"
    name, job = known.situation.hostname or UNNAMED, known.situation.known_job
    if job is not None and job.name == name and job.refusal:
        return Input("Name", f"{job.refusal}\n\n{text}", f"{name[:98]}-2")
    return Input("Name", "\n".join([*_already_there(known), text]), name)


def _memory(known: Known) -> Page:
    default = f"{max(known.situation.memory, GIB) / GIB:.4g}G"
    return Input("Virtual machine", "Memory of the virtual machine (8G, 512M):", default)


def _vcpus(known: Known) -> Page:
    return Input("Virtual machine", "Number of virtual processors:", str(known.situation.cpus))


_VM_TARGET = Menu(
    "Virtual machine",
    "What will the virtual machine run on?",
    (
        Choice("kvm", "KVM with libvirt"),
        Choice("proxmox", "Proxmox VE"),
        Choice("xen", "Xen with xl"),
        Choice("generic", "Anything else: the most compatible hardware"),
    ),
    "kvm",
)


def _vm_network(known: Known) -> Page:
    nics = ", ".join(known.situation.nics)
    text = (
        f"Which bridge or network? One for all NICs ({nics}), or {known.situation.nics[0]}=br0,…:"
    )
    return Input("Virtual machine", text, may_be_empty=True)


def _has_nics(known: Known) -> bool:
    return _makes_machine(known) and bool(known.situation.nics)


_TARGET = Input(
    "Target",
    "Where does the copy go?\n\n"
    "  user@host:/directory  over ssh; nothing is installed there\n"
    "  tcp://host:7720       raw TCP; run this on the host first:\n"
    "                        python3 p2v-receiver.pyz listen --dir /directory",
)


def _token(known: Known) -> Page:
    target = parse_target(str(known.values["target"]))
    port = f" --port {target.port}" if isinstance(target, TcpTarget) else ""
    text = (
        "Run this on the host, and type the token that it prints:\n\n"
        f"  python3 p2v-receiver.pyz listen{port} --dir /directory"
    )
    return Input("Target", text, is_secret=True)


def _needs_token(known: Known) -> bool:
    return str(known.values.get("target", "")).startswith("tcp://")


_POST = Menu(
    "At the end",
    "What happens when all went well?",
    (
        Choice("shell", "Stay up, and show the result"),
        Choice("poweroff", "Power off"),
        Choice("reboot", "Reboot"),
    ),
    "shell",
)


def selected(known: Known) -> tuple[DiskChoice, ...]:
    """The disks that were chosen."""
    names = known.values.get("disks", ())
    chosen = names if isinstance(names, tuple) else ()
    return tuple(disk for disk in known.situation.disks if ALL in chosen or disk.name in chosen)


def torn_apart(known: Known) -> str:
    """What is wrong when disks are chosen without those they belong to; '' nothing."""
    names = {disk.name for disk in selected(known)}
    for disk in selected(known):
        if missing := [name for name in disk.kept_with if name not in names]:
            return f"{disk.name} is of no use without {', '.join(missing)}: they belong together"
    return ""


def summary(known: Known) -> str:
    """What is about to happen, with an estimate of space and time."""
    values, situation = known
    disks = selected(known)
    size = sum(disk.size for disk in disks)
    lines = [
        f"Disks:   {', '.join(f'{disk.name} ({format_size(disk.size)})' for disk in disks)}",
        f"Target:  {values.get('target', '')}",
        f"Do:      {values.get('action', '')}, as {values.get('name', '')}",
    ]
    if _makes_machine(known):
        memory = values.get("vm.memory", situation.memory)
        shown = format_size(memory) if isinstance(memory, int) else str(memory)
        cpus = values.get("vm.vcpus", situation.cpus)
        lines.append(f"Machine: {cpus} processors, {shown}, for {values.get('vm.target', '')}")
    lines += [f"End:     {values.get('post', '')}", "", *_already_there(known)]
    lines += [
        f"At most {format_size(size)} at the target; free space costs nothing there.",
        f"A first copy takes about {format_duration(size / _RATE)} at 100 MB/s, later ones less.",
        "The disks of this machine are not written to.",
    ]
    return "\n".join(lines)


def _summary(known: Known) -> Page:
    return Confirm("Ready?", summary(known))


STEPS: Sequence[Step] = (
    Step("network.mode", _network_mode),
    Step("network.bond", _bond, _has_several_interfaces),
    Step("network.interface", _interface, _needs_interface),
    Step("network.vlan", _VLAN, _is_set_up),
    _static("network.address"),
    _static("network.gateway", may_be_empty=True),
    _static("network.dns", may_be_empty=True),
    Step("target", _TARGET),
    Step("login.token", _token, _needs_token),
    Step("disks", _disks),
    Step("action", _action),
    Step("name", _name),
    Step("vm.target", _VM_TARGET, _makes_machine),
    Step("vm.memory", _memory, _makes_machine),
    Step("vm.vcpus", _vcpus, _makes_machine),
    Step("vm.network", _vm_network, _has_nics),
    Step("post", _POST),
    Step(SUMMARY, _summary),
)


def is_end_of_network(key: str, known: Known, given: Values) -> bool:
    """True of the last page about the network: it can be tried now."""
    after = next_step([step.key for step in STEPS].index(key), known, given)
    return key.startswith("network.") and not (
        after is not None and STEPS[after].key.startswith("network.")
    )


def next_step(after: int, known: Known, given: Values) -> int | None:
    """The index of the step that comes behind index ``after``; None behind the last.

    ``given``: what was answered beforehand, and is not asked.
    """
    for index in range(after + 1, len(STEPS)):
        step = STEPS[index]
        if step.key not in given and step.is_due(known):
            return index
    return None


def default_of(page: Page) -> str | tuple[str, ...]:
    """What counts when nobody is there to answer."""
    match page:
        case Checklist():
            return page.chosen
        case Menu() | Input():
            return page.default
        case Confirm():
            return ""
