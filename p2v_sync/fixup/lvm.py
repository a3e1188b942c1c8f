"""LVM finds its physical volumes on disks that have other names, serial numbers and WWNs."""

import re
from collections.abc import Iterator

from p2v_sync.device.storage import Storage
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.lvm_filter import ACCEPT, accepting
from p2v_sync.fixup.plan import Bus, Context, Finding, Fixup, Hypervisor, Severity, Target

_CONFIG = "/etc/lvm/lvm.conf"
_DEVICES = "/etc/lvm/devices"
_CACHES = ("/etc/lvm/cache/.cache", "/etc/lvm/.cache")


class Lvm:
    """No devices file of the physical machine, filters that pass the new names, no old caches.

    The initramfs has no devices file (dracut copies lvm.conf only), so without this the root is
    found and every other volume is missing.  Newer versions mend the file when the product UUID
    changes, which we keep.
    """

    key = "F08-lvm"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        config = draft.text_or_empty(_CONFIG)
        yield from self._devices_file(draft, config)
        for path in _CACHES:
            if draft.is_file(path):
                draft.remove(path)
        yield from self._filters(draft, config, context)

    def _devices_file(self, draft: Draft, config: str) -> Iterator[Finding]:
        found = re.findall(
            r'^[ \t]*(?:devices/)?devicesfile[ \t]*=[ \t]*"([\w.-]{1,64})"', config, re.M
        )
        path = f"{_DEVICES}/{found[-1] if found else 'system.devices'}"
        if not draft.is_file(path):
            return
        if draft.exists(f"{path}.p2v"):
            draft.remove(path)
        else:
            draft.rename(path, f"{path}.p2v")
        yield Finding(
            self.key,
            Severity.NOTE,
            f"{path} names the physical disks: put aside, so LVM looks at all disks",
            "in the virtual machine: vgimportdevices -a",
        )

    def _filters(self, draft: Draft, config: str, context: Context) -> Iterator[Finding]:
        new = accepting(config, _physical_volumes(context.storage, context.target))
        if new != config:
            draft.write(_CONFIG, new)
            text = f"{_CONFIG} let only disks of the old names through"
            yield Finding(self.key, Severity.NOTE, text)
        if ACCEPT in new:
            draft.want_in_initramfs(_CONFIG, new.encode("latin-1"))


def _physical_volumes(storage: Storage, target: Target) -> Iterator[list[str]]:
    """The names below /dev of each physical volume on a disk, one list for each way to attach."""
    kinds = ["vd", "sd"]
    if target.hypervisor is Hypervisor.XEN:
        kinds.append("xvd")
    if target.bus is Bus.IDE:
        kinds.append("hd")
    places = [
        (number, volume.partition)
        for number, disk in enumerate(storage.disks)
        for volume in storage
        if volume.kind == "LVM2_member" and volume.disk == disk
    ]
    if not storage.is_complete:
        places = [(0, 2)]
    for number, partition in places:
        for kind in kinds:
            yield [f"/dev/{kind}{_letters(number)}{partition or ''}"]


def _letters(number: int) -> str:
    """0 → a, 25 → z, 26 → aa."""
    letters = chr(ord("a") + number % 26)
    return (_letters(number // 26 - 1) if number >= 26 else "") + letters


FIXUPS: tuple[Fixup, ...] = (Lvm(),)
