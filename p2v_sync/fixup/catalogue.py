"""All fix-ups, in the order in which they are planned."""

from p2v_sync.fixup import (
    cloud_init,
    console,
    crypttab,
    default_kernel,
    device_map,
    fstab,
    graphics,
    hibernation,
    identity,
    kernel_parameters,
    kernel_root,
    leftovers,
    lvm,
    md,
    multipath,
    network_configs,
    network_names,
    services,
    uefi_fallback,
)
from p2v_sync.fixup.plan import Fixup

# Checks, storage names, boot chain, network, system, initramfs, labels, what is left.
# The initramfs comes after all that wants files in it (Draft.want_in_initramfs).
FIXUPS: tuple[Fixup, ...] = (
    *hibernation.FIXUPS,
    # storage names
    *fstab.FIXUPS,
    *crypttab.FIXUPS,
    *kernel_root.FIXUPS,
    *device_map.FIXUPS,
    *lvm.FIXUPS,
    *multipath.FIXUPS,
    *md.FIXUPS,
    # boot chain
    *uefi_fallback.FIXUPS,
    *default_kernel.FIXUPS,
    *console.FIXUPS,
    *kernel_parameters.FIXUPS,
    # network
    *network_names.FIXUPS,
    *network_configs.FIXUPS,
    # system
    *services.FIXUPS,
    *graphics.FIXUPS,
    *cloud_init.FIXUPS,
    *identity.FIXUPS,
    # what the guest remembers of its devices, which was evidence until now
    *device_map.LAST,
    *leftovers.FIXUPS,
)
