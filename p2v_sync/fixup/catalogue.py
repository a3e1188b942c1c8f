"""All fix-ups, in the order in which they are planned."""

from p2v_sync.fixup import crypttab, device_map, fstab, hibernation, kernel_root, leftovers
from p2v_sync.fixup.plan import Fixup

# Checks, storage names, initramfs, boot chain, network, system, labels, what is left.
# The initramfs comes after all that wants files in it (Draft.want_in_initramfs).
FIXUPS: tuple[Fixup, ...] = (
    *hibernation.FIXUPS,
    # storage names
    *fstab.FIXUPS,
    *crypttab.FIXUPS,
    *kernel_root.FIXUPS,
    *device_map.FIXUPS,
    # what the guest remembers of its devices, which was evidence until now
    *device_map.LAST,
    *leftovers.FIXUPS,
)
