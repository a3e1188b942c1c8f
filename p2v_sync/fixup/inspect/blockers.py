"""What is in the way of any fix-up.  The copy is not concerned."""

from collections.abc import Iterator

from p2v_sync.fixup.guest import Guest


def is_system(guest: Guest) -> bool:
    """Whether this looks like an operating system at all."""
    signs = (guest.windows, guest.distribution.source, guest.mounts, guest.kernels)
    return any(signs)


def blockers(guest: Guest) -> Iterator[str]:
    """A sentence each."""
    if guest.is_hibernated and guest.windows:
        yield (
            "Windows is hibernated or in fast start-up: start it, run powercfg /h off, "
            "and shut it down with shutdown /s /f /t 0"
        )
    elif guest.is_hibernated:
        yield "the system is hibernated: resume it, and shut it down"
    if guest.windows and guest.windows.is_dynamic:
        yield "Windows is on dynamic disks or a storage pool, which virt-v2v can't convert"
