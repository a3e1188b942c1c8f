"""Which hardware the two virtual machines of a guest may have, by its drivers."""

from collections.abc import Container, Mapping
from typing import NamedTuple

from p2v_sync.fixup.draft import Appended
from p2v_sync.fixup.guest import Driver, Guest
from p2v_sync.fixup.initramfs import buses
from p2v_sync.fixup.plan import Bus, Hypervisor, Plan, Target

_NICS = {  # driver → the card that libvirt has for it, newest first
    "e1000e": "e1000e",
    "e1000": "e1000",
    "8139cp": "rtl8139",
    "8139too": "rtl8139",
}
_APPENDS, _APPENDS_FEW = "F20-initramfs", "F24-nash"  # few: what the wanted bus needs


class Hardware(NamedTuple):
    """``bus``: any but AUTO.  ``nic``: virtio, e1000e, e1000 or rtl8139."""

    bus: Bus
    nic: str


class Profile(NamedTuple):
    """The machine at its best, and the one to fall back to."""

    recommended: Hardware
    compat: Hardware


# For a guest of which no kernel was found: what almost every system has a driver for.
_UNKNOWN = Profile(Hardware(Bus.SATA, "e1000e"), Hardware(Bus.IDE, "e1000"))


def profile(guest: Guest, target: Target, plan: Plan | None) -> Profile:
    """What the default kernel finds its disks and its network on.

    ``plan``: of the fix-ups that will be carried out; None for none.
    """
    kernel = guest.default_kernel
    if kernel is None or not kernel.drivers:
        return _UNKNOWN
    before = kernel.drivers
    after = _with_plan(before, target, plan)
    compat_bus = buses.compat_bus(before if buses.finds_disks(before) else after)
    compat = Hardware(compat_bus, _emulated_nic(before))
    is_downgraded = plan is not None and plan.is_downgraded
    if target.hypervisor is Hypervisor.XEN or is_downgraded:
        # Xen's own drivers take over from what is emulated by themselves.
        return Profile(compat, compat)
    bus = buses.wanted_bus(target) if buses.is_ready(after, buses.ways(target)) else compat_bus
    return Profile(Hardware(bus, _best_nic(before)), compat)


def _with_plan(
    drivers: Mapping[str, Driver], target: Target, plan: Plan | None
) -> Mapping[str, Driver]:
    """Once drivers are appended to the initramfs, all that are worth it are."""
    edits = plan.edits if plan is not None else ()
    fixups = {each for edit in edits if isinstance(edit.after, Appended) for each in edit.fixups}
    added: Container[str] = ()
    if _APPENDS in fixups:
        added = buses.WORTH_ADDING
    elif _APPENDS_FEW in fixups:
        added = buses.first_possible(drivers, buses.ways(target))
    return {
        name: Driver.INITRAMFS if state is Driver.MODULE and name in added else state
        for name, state in drivers.items()
    }


def _is_there(drivers: Mapping[str, Driver], name: str) -> bool:
    return drivers.get(name, Driver.ABSENT) is not Driver.ABSENT


def _best_nic(drivers: Mapping[str, Driver]) -> str:
    """Network drivers come from the root file system: it does not matter where they are."""
    return "virtio" if _is_there(drivers, "virtio_net") else _emulated_nic(drivers)


def _emulated_nic(drivers: Mapping[str, Driver]) -> str:
    return next((nic for name, nic in _NICS.items() if _is_there(drivers, name)), "e1000")
