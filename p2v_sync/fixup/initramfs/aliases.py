"""F23: which driver is meant by scsi_hostadapter and eth0, in systems before udev chose them.

Red Hat's mkinitrd, up to RHEL 5, puts into the initramfs what these aliases name.
"""

import re
from collections.abc import Iterator, Mapping

from p2v_sync.fixup import lines
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Driver
from p2v_sync.fixup.initramfs import buses, modules
from p2v_sync.fixup.initramfs.modules import Modules, plain
from p2v_sync.fixup.plan import Bus, Context, Finding, Hypervisor, Severity

_FILES = (
    "/etc/modprobe.conf",
    "/etc/modprobe.conf.local",
    "/etc/modules.conf",
    "/etc/conf.modules",
)
_DIRECTORY = "/etc/modprobe.d/*"

# Names by preference: Xen's own kernels call theirs otherwise.
_DISKS: Mapping[Bus, tuple[str, ...]] = {
    Bus.VIRTIO: ("virtio_blk",),
    Bus.SCSI: ("virtio_scsi",),
    Bus.SATA: ("ahci",),
    Bus.IDE: ("ata_piix",),
}
_XEN_DISKS = ("xen_blkfront", "xenblk", "xen_vbd")
_NICS, _XEN_NICS = ("virtio_net", "e1000e", "e1000"), ("xen_netfront", "xennet", "e1000")
_HOST_ADAPTER = re.compile(r"scsi_hostadapter\d*")
_NIC = re.compile(r"eth\d+")


class Aliases:
    """Aliases that name the old machine's drivers, and bans on the new ones'."""

    key = "F23-aliases"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        kernel = context.guest.default_kernel
        if kernel is None:
            return
        editor = _Editor(modules.installed(draft, kernel), context)
        for path in [*_FILES, *draft.glob(_DIRECTORY)]:
            if not draft.is_file(path):
                continue
            text = draft.text(path)
            changed = lines.map_lines(text, editor.line)
            if changed != text:
                draft.write(path, changed)
                if editor.lifted:  # the same file may be inside, and forbid the driver there
                    draft.want_in_initramfs(path, changed.encode("latin-1"))
        for name in editor.lifted:
            yield Finding(
                self.key,
                Severity.WARNING,
                f"{name} was forbidden in the guest, and is not any more",
            )


class _Editor:
    """Goes through all the lines of all the files: only the first adapter's alias is kept."""

    def __init__(self, installed: Modules, context: Context) -> None:
        is_xen = context.target.hypervisor is Hypervisor.XEN
        wanted = _XEN_DISKS if is_xen else _DISKS[buses.wanted_bus(context.target)]
        self._disk = _first(installed, wanted)
        self._nic = _first(installed, _XEN_NICS if is_xen else _NICS)
        self._needed = {each for way in buses.ways(context.target) for each in way}
        self._has_adapter = False
        self.lifted: list[str] = []

    def line(self, line: str) -> str | None:
        words = lines.fields(line)
        match words[:2]:
            case ["alias", name] if len(words) == 3:
                return self._alias(line, name)
            case ["blacklist" | "install", name] if plain(name) in {*self._needed, "virtio_net"}:
                if words[0] == "blacklist" or words[-1].endswith(("/true", "/false")):
                    self.lifted.append(plain(name))
                    return None
        return line

    def _alias(self, line: str, name: str) -> str | None:
        if _NIC.fullmatch(name) and self._nic:
            return lines.replace_field(line, 2, self._nic)
        if not _HOST_ADAPTER.fullmatch(name) or not self._disk:
            return line
        if self._has_adapter:
            return None
        self._has_adapter = True
        return lines.replace_field(line, 2, self._disk)


def _first(installed: Modules, names: tuple[str, ...]) -> str:
    return next((name for name in names if installed.state(name) is Driver.MODULE), "")
