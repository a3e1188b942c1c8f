"""What a guest is: found out by looking at its files, and never an error.

What can't be found out is a line in ``Guest.problems``.
"""

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import Storage
from p2v_sync.fixup.guest import Guest
from p2v_sync.fixup.inspect import (
    architecture,
    distribution,
    entries,
    firmware,
    fstab,
    kernels,
    loaders,
    network,
    system,
    windows,
)
from p2v_sync.fixup.inspect.locate import Locator
from p2v_sync.fixup.inspect.reader import Reader
from p2v_sync.fixup.tree import Tree

_HIBERNATED = "swsuspend"  # as blkid calls swap space with an image in it


def inspect(tree: Tree, storage: Storage, machine: Machine) -> Guest:
    """All but ``Kernel.drivers``, which takes looking into the initramfs.

    Raises FixupError when this kernel has no openat2(2), and for nothing that the guest holds.
    """
    reader = Reader(tree)
    found = windows.find_windows(reader, storage)
    if found is None:
        return _linux(reader, storage, machine)
    program = reader.without_case(f"{found.root}/explorer.exe")
    return Guest(
        architecture=architecture.windows_architecture(reader, program),
        firmware=firmware.find_firmware(reader, storage, machine, (), ()),
        is_hibernated=found.is_hibernated,
        windows=found,
        problems=tuple(reader.problems),
    )


def _linux(reader: Reader, storage: Storage, machine: Machine) -> Guest:
    mounts = fstab.read(reader, storage)
    installed = loaders.find_loaders(reader, mounts)
    locator = Locator(reader, loaders.efi_directories(reader, mounts))
    entry = entries.default_entry(reader, installed, locator)
    networks, interfaces = network.find_network(reader)
    return Guest(
        distribution=distribution.find_distribution(reader),
        architecture=architecture.find_architecture(reader),
        hostname=distribution.hostname_of(reader),
        firmware=firmware.find_firmware(reader, storage, machine, mounts, installed),
        init=system.find_init(reader),
        boot_loaders=installed,
        kernels=kernels.find_kernels(reader, entry),
        generator=system.find_generator(reader),
        mounts=mounts,
        networks=networks,
        interfaces=interfaces,
        selinux=system.find_selinux(reader, entry),
        is_hibernated=any(volume.kind == _HIBERNATED for volume in storage),
        uses=system.find_uses(reader, storage, mounts),
        problems=tuple(reader.problems),
        default_entry=entry,
    )
