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
    xen_console,
)
from p2v_sync.fixup.initramfs.aliases import Aliases
from p2v_sync.fixup.initramfs.drivers import InitramfsDrivers
from p2v_sync.fixup.initramfs.kdump import CrashDumps
from p2v_sync.fixup.initramfs.nash import NashInit
from p2v_sync.fixup.initramfs.persist import LaterKernels
from p2v_sync.fixup.plan import Fixup

FIXUPS: tuple[Fixup, ...] = (
    *hibernation.FIXUPS,
    # storage names
    *fstab.FIXUPS,
    *crypttab.FIXUPS,
    *kernel_root.FIXUPS,
    *lvm.FIXUPS,
    *md.FIXUPS,
    *multipath.FIXUPS,
    *device_map.FIXUPS,
    # boot chain
    *uefi_fallback.FIXUPS,
    *default_kernel.FIXUPS,
    *kernel_parameters.FIXUPS,
    *console.FIXUPS,
    *xen_console.FIXUPS,
    # network
    *network_names.FIXUPS,
    *network_configs.FIXUPS,
    # system
    *services.FIXUPS,
    *cloud_init.FIXUPS,
    *graphics.FIXUPS,
    *identity.FIXUPS,
    # drivers; the initramfs after all that wants files in it (Draft.want_in_initramfs)
    LaterKernels(),
    Aliases(),
    NashInit(),
    InitramfsDrivers(),
    CrashDumps(),
    # what the guest remembers of its devices, which was evidence until now
    *device_map.LAST,
    *leftovers.FIXUPS,
)
