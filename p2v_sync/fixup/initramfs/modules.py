"""The modules of an installed kernel: which it has, what is built in, what needs what."""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from p2v_sync.errors import GuestFileError
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Driver, Kernel

# Drivers that decide about the virtual machine, and their switches in a kernel's configuration.
OPTIONS: Mapping[str, str] = {
    "virtio_pci": "VIRTIO_PCI",
    "virtio_blk": "VIRTIO_BLK",
    "virtio_scsi": "SCSI_VIRTIO",
    "virtio_net": "VIRTIO_NET",
    "virtio_console": "VIRTIO_CONSOLE",
    "sd_mod": "BLK_DEV_SD",
    "ahci": "SATA_AHCI",
    "ata_piix": "ATA_PIIX",
    "piix": "BLK_DEV_PIIX",
    "ide_disk": "BLK_DEV_IDEDISK",
    "ide_gd_mod": "IDE_GD",
    "nvme": "BLK_DEV_NVME",
    "mptsas": "FUSION_SAS",
    "mptspi": "FUSION_SPI",
    "megaraid_sas": "MEGARAID_SAS",
    "sym53c8xx": "SCSI_SYM53C8XX_2",
    "vmw_pvscsi": "VMWARE_PVSCSI",
    "xen_blkfront": "XEN_BLKDEV_FRONTEND",
    "xen_netfront": "XEN_NETDEV_FRONTEND",
    "xen_platform_pci": "XEN_PVHVM",
    "xenblk": "",  # these three: of Xen's own kernels
    "xennet": "",
    "xen_vbd": "",
    "e1000": "E1000",
    "e1000e": "E1000E",
    "igb": "IGB",
    "8139too": "8139TOO",
    "8139cp": "8139CP",
    "vmxnet3": "VMXNET3",
}

_MODULE = re.compile(r"([^/]+?)(\.ko(?:\.gz|\.xz|\.zst)?)")
_ALIAS_MOST = 500  # characters; the longest in use have some hundred


def plain(name: str) -> str:
    """The kernel takes virtio-blk and virtio_blk for the same."""
    return name.replace("-", "_")


def module_name(path: str) -> str:
    """``kernel/drivers/block/virtio_blk.ko.xz`` → virtio_blk; '' for what is no module."""
    match = _MODULE.fullmatch(path.rpartition("/")[2])
    return plain(match[1]) if match else ""


def suffix(path: str) -> str:
    """``.ko.xz``"""
    match = _MODULE.fullmatch(path.rpartition("/")[2])
    return match[2] if match else ""


@dataclass(frozen=True)
class Modules:
    """``files``: module → its file, as modules.dep has it: relative to ``directory``.

    ``needs``: module → those it depends on.  ``aliases``: of modalias patterns, with the module.
    ``is_absolute``: modules.dep has whole paths, as before 2008.
    """

    version: str = ""
    directory: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    builtin: frozenset[str] = frozenset()
    aliases: tuple[tuple[str, str], ...] = ()
    is_absolute: bool = False

    def closure(self, names: Iterable[str]) -> list[str]:
        """These and all that they need, what is needed first.  Names that are not there drop."""
        found: dict[str, None] = {}
        entered: set[str] = set()
        # Each name is there twice: to put its needs before it, and then to be taken itself.
        waiting = [(name, False) for name in reversed([*names])]
        while waiting:
            name, is_ready = waiting.pop()
            if is_ready:
                found[name] = None
            elif name in self.files and name not in entered:
                entered.add(name)
                waiting.append((name, True))
                waiting += [(need, False) for need in self.needs.get(name, ())]
        return [*found]

    def state(self, name: str, inside: Container[str] = ()) -> Driver:
        """Where the kernel has a driver; ``inside``: the modules of its initramfs."""
        if name in self.builtin:
            return Driver.BUILTIN
        if name in inside:
            return Driver.INITRAMFS
        return Driver.MODULE if name in self.files else Driver.ABSENT


def installed(draft: Draft, kernel: Kernel) -> Modules:
    """The modules of ``kernel``; none when it has no directory of them, or a broken one."""
    directory = kernel.modules.rstrip("/")
    dependencies = _lines(draft, f"{directory}/modules.dep") if directory else []
    files, needs = dict[str, str](), dict[str, tuple[str, ...]]()
    is_absolute = False
    for line in dependencies:
        path, colon, rest = line.partition(":")
        name = module_name(path)
        if not colon or not name or ".." in path.split("/"):
            continue
        is_absolute = is_absolute or path.startswith("/")
        files[name] = _below(directory, path)
        needs[name] = tuple(filter(None, map(module_name, reversed(rest.split()))))
    return Modules(
        kernel.version,
        directory,
        files,
        needs,
        _builtin(draft, kernel, directory),
        tuple(_aliases(_lines(draft, f"{directory}/modules.alias"))) if directory else (),
        is_absolute,
    )


def _below(directory: str, path: str) -> str:
    """Whole paths may be those of /lib where the directory is known as /usr/lib."""
    for start in (directory, directory.removeprefix("/usr"), f"/usr{directory}"):
        if path.startswith(f"{start}/"):
            return path[len(start) + 1 :]
    return path.lstrip("/")


def _builtin(draft: Draft, kernel: Kernel, directory: str) -> frozenset[str]:
    names = set[str]()
    if directory:
        names |= {module_name(line) for line in _lines(draft, f"{directory}/modules.builtin")}
    if kernel.config:
        chosen = {*_lines(draft, kernel.config)}
        names |= {
            name for name, option in OPTIONS.items() if option and f"CONFIG_{option}=y" in chosen
        }
    return frozenset(names - {""})


def _aliases(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[0] == "alias" and line.isascii() and len(line) < _ALIAS_MOST:
            yield words[1], plain(words[2])


def _lines(draft: Draft, path: str) -> list[str]:
    try:
        return draft.text(path).split("\n")
    except (FileNotFoundError, GuestFileError):
        return []
