"""Which screen comes when: a pure table.  What was answered beforehand is not asked again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from p2v_sync.units import GIB, format_duration, format_size
from p2v_sync.wizard.settings import ALL, SETTINGS, Value

Values = Mapping[str, Value]

_RATE = 100e6  # bytes a second that an ordinary network carries: for a first estimate only


class DiskChoice(NamedTuple):
    """A disk that could be copied.  ``kept_with``: those that share an md set or volume group."""

    name: str
    size: int
    text: str
    kept_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Situation:
    """What was found on the machine, for choices and defaults."""

    hostname: str = ""
    disks: tuple[DiskChoice, ...] = ()
    interfaces: tuple[tuple[str, str], ...] = ()  # (name, MAC and link) that could be used
    is_online: bool = False
    memory: int = 0
    cpus: int = 1
    nics: tuple[str, ...] = ()  # names of those the virtual machine gets
    known_job: str = ""  # the job that an earlier run left at the receiver


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
    """Some of several, one at least."""

    title: str
    text: str
    choices: tuple[Choice, ...]
    chosen: tuple[str, ...] = ()


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


def _interface(known: Known) -> Page:
    choices = tuple(Choice(name, text) for name, text in known.situation.interfaces)
    return Menu("Network", "Which interface?", choices, choices[0].tag if choices else "")


def _needs_interface(known: Known) -> bool:
    is_set_up = (
        known.values.get("network.mode") in ("dhcp", "static")
        and "network.bond" not in known.values
    )
    return is_set_up and len(known.situation.interfaces) > 1


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


def _action(known: Known) -> Page:
    choices = (
        Choice("convert", "Copy the disks and make a virtual machine of them"),
        Choice("sync", "Copy the disks only; convert later"),
        Choice("cutover", "Last sync and conversion of a job that was copied before"),
    )
    job = known.situation.known_job
    text = "What shall be done?"
    if job:
        return Menu(
            "What to do", f"{text}\nThe host has this machine as {job}.", choices, "cutover"
        )
    return Menu("What to do", text, choices, "convert")


def _makes_machine(known: Known) -> bool:
    return known.values.get("action") in ("convert", "cutover")


def _name(known: Known) -> Page:
    text = "Name of the job, and of the virtual machine:"
    return Input("Name", text, known.situation.known_job or known.situation.hostname or "server")


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


_TOKEN = Input("Target", "The token that p2v-receiver listen printed:", is_secret=True)


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
    lines += [
        f"End:     {values.get('post', '')}",
        "",
        f"At most {format_size(size)} at the target; free space costs nothing there.",
        f"A first copy takes about {format_duration(size / _RATE)} at 100 MB/s, later ones less.",
        "The disks of this machine are not written to.",
    ]
    return "\n".join(lines)


def _summary(known: Known) -> Page:
    return Confirm("Ready?", summary(known))


STEPS: Sequence[Step] = (
    Step("network.mode", _network_mode),
    Step("network.interface", _interface, _needs_interface),
    _static("network.address"),
    _static("network.gateway", may_be_empty=True),
    _static("network.dns", may_be_empty=True),
    Step("target", _TARGET),
    Step("login.token", _TOKEN, _needs_token),
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
