"""Which hardware the two virtual machines of a guest may have, by its drivers."""

from collections.abc import Container, Mapping
from enum import StrEnum
from typing import NamedTuple

from p2v_sync.fixup.draft import Appended
from p2v_sync.fixup.guest import Driver, Guest
from p2v_sync.fixup.initramfs import buses
from p2v_sync.fixup.plan import Bus, Hypervisor, Plan, Target

_APPENDS, _APPENDS_FEW = "F20-initramfs", "F24-nash"  # few: what the wanted bus needs


class NicModel(StrEnum):
    """Network cards, newest first."""

    VIRTIO = "virtio"
    E1000E = "e1000e"
    E1000 = "e1000"
    RTL8139 = "rtl8139"


class Hardware(NamedTuple):
    """What a guest's drivers decide.  ``bus``: any but AUTO."""

    bus: Bus
    nic: NicModel


class Twins(NamedTuple):
    """The machine at its best, and the one to fall back to."""

    recommended: Hardware
    compat: Hardware


_NICS = {  # driver → the card that libvirt has for it, newest first
    "e1000e": NicModel.E1000E,
    "e1000": NicModel.E1000,
    "8139cp": NicModel.RTL8139,
    "8139too": NicModel.RTL8139,
}
# For a guest of which no kernel was found: what almost every system has a driver for.
UNKNOWN_GUEST = Twins(Hardware(Bus.SATA, NicModel.E1000E), Hardware(Bus.IDE, NicModel.E1000))


def profile(guest: Guest, target: Target, plan: Plan | None) -> Twins:
    """What the default kernel finds its disks and its network on.

    ``plan``: of the fix-ups that will be carried out; None for none.
    """
    kernel = guest.default_kernel
    if kernel is None or not kernel.drivers:
        return UNKNOWN_GUEST
    before = kernel.drivers
    after = _with_plan(before, target, plan)
    compat_bus = buses.compat_bus(before if buses.finds_disks(before) else after)
    compat = Hardware(compat_bus, _emulated_nic(before))
    is_downgraded = plan is not None and plan.is_downgraded
    if target.hypervisor is Hypervisor.XEN or is_downgraded:
        # Xen's own drivers take over from what is emulated by themselves.
        return Twins(compat, compat)
    bus = buses.wanted_bus(target) if buses.is_ready(after, buses.ways(target)) else compat_bus
    return Twins(Hardware(bus, _best_nic(before)), compat)


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


def _best_nic(drivers: Mapping[str, Driver]) -> NicModel:
    """Network drivers come from the root file system: it does not matter where they are."""
    return NicModel.VIRTIO if _is_there(drivers, "virtio_net") else _emulated_nic(drivers)


def _emulated_nic(drivers: Mapping[str, Driver]) -> NicModel:
    return next((nic for name, nic in _NICS.items() if _is_there(drivers, name)), NicModel.E1000)
