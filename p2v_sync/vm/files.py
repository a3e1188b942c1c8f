"""The files that stand beside the images: each machine in each form, and what is known about it."""

from collections.abc import Callable, Mapping

from p2v_sync.vm import inventory, kubevirt, libvirt, proxmox, qemu, virt_v2v, xl
from p2v_sync.vm.definition import Definitions, VirtualMachine
from p2v_sync.vm.inventory import Facts

_WRITERS: Mapping[str, Callable[[VirtualMachine], bytes]] = {
    ".xml": libvirt.write,
    ".cfg": xl.write,
    ".proxmox.sh": proxmox.write,
    ".qemu.sh": qemu.write,
    ".kubevirt.yaml": kubevirt.write,
}


def files(
    definitions: Definitions, facts: Facts, *, with_virt_v2v: bool = False
) -> Mapping[str, bytes]:
    """Name → content.  NAME.xml and NAME.compat.xml, and so on; NAME.json for both.

    What virt-v2v needs is there on request, and always for Windows.
    """
    found = {
        vm.stem + suffix: write(vm) for vm in definitions for suffix, write in _WRITERS.items()
    }
    recommended = definitions.recommended
    found[f"{recommended.stem}.json"] = inventory.write(definitions, facts)
    if with_virt_v2v or recommended.windows is not None:
        stem = f"{recommended.stem}.virt-v2v"
        found[f"{stem}.xml"] = virt_v2v.write_xml(recommended)
        found[f"{stem}.sh"] = virt_v2v.write_script(recommended)
        found[f"{stem}-result.xml"] = libvirt.write(virt_v2v.converted(recommended))
    return found
