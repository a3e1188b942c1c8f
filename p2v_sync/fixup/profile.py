"""Which hardware the two virtual machines of a guest may have, by its drivers."""

from collections.abc import Mapping
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
_ADDS_DRIVERS = {"F20-initramfs", "F24-nash"}


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
    after = _with_plan(before, kernel.initramfs, plan)
    compat_bus = buses.compat_bus(before if buses.finds_disks(before) else after)
    compat = Hardware(compat_bus, _emulated_nic(before))
    is_downgraded = plan is not None and plan.is_downgraded
    if target.hypervisor is Hypervisor.XEN or is_downgraded:
        # Xen's own drivers take over from what is emulated by themselves.
        return Profile(compat, compat)
    bus = buses.wanted_bus(target) if buses.is_ready(after, buses.ways(target)) else compat_bus
    return Profile(Hardware(bus, _best_nic(before)), compat)


def _with_plan(
    drivers: Mapping[str, Driver], initramfs: str, plan: Plan | None
) -> Mapping[str, Driver]:
    """The initramfs has all drivers that are worth it once some were added."""
    edits = plan.edits if plan is not None else ()
    is_added = any(
        isinstance(edit.after, Appended) and _ADDS_DRIVERS & {*edit.fixups} for edit in edits
    )
    if not (is_added and initramfs):
        return drivers
    return {
        name: Driver.INITRAMFS if state is Driver.MODULE and name in buses.WORTH_ADDING else state
        for name, state in drivers.items()
    }


def _is_there(drivers: Mapping[str, Driver], name: str) -> bool:
    return drivers.get(name, Driver.ABSENT) is not Driver.ABSENT


def _best_nic(drivers: Mapping[str, Driver]) -> str:
    """Network drivers come from the root file system: it does not matter where they are."""
    return "virtio" if _is_there(drivers, "virtio_net") else _emulated_nic(drivers)


def _emulated_nic(drivers: Mapping[str, Driver]) -> str:
    return next((nic for name, nic in _NICS.items() if _is_there(drivers, name)), "e1000")
