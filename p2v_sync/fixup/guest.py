"""What inspection found out about a guest.  Pure data; golden-tested as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Family(StrEnum):
    """Distributions that do things alike."""

    RHEL = "rhel"  # and CentOS, Rocky, Alma, Oracle, Amazon
    FEDORA = "fedora"
    SUSE = "suse"
    DEBIAN = "debian"  # and Ubuntu
    ARCH = "arch"
    GENTOO = "gentoo"
    ALPINE = "alpine"
    SLACKWARE = "slackware"
    ALT = "alt"
    OTHER = "other"


class Firmware(StrEnum):
    """How the guest is started."""

    BIOS = "bios"
    UEFI = "uefi"


class Driver(StrEnum):
    """Where a kernel has a driver."""

    BUILTIN = "builtin"
    INITRAMFS = "initramfs"
    MODULE = "module"
    ABSENT = "absent"


class Generator(StrEnum):
    """What makes the initramfs."""

    DRACUT = "dracut"
    INITRAMFS_TOOLS = "initramfs-tools"
    MKINITCPIO = "mkinitcpio"
    MKINITRD_RH = "mkinitrd-rh"  # with nash
    MKINITRD_SUSE = "mkinitrd-suse"
    MAKE_INITRD = "make-initrd"
    OTHER = "other"


class LoaderKind(StrEnum):
    """Boot loaders."""

    GRUB2 = "grub2"
    GRUB2_BLS = "grub2-bls"
    GRUB_LEGACY = "grub-legacy"
    SYSTEMD_BOOT = "systemd-boot"
    UKI = "uki"
    LILO = "lilo"
    ELILO = "elilo"
    EXTLINUX = "extlinux"


class Init(StrEnum):
    """What process 1 is."""

    SYSTEMD = "systemd"
    UPSTART = "upstart"
    SYSV = "sysv"
    OPENRC = "openrc"
    RUNIT = "runit"
    UNKNOWN = "unknown"


class NetworkStack(StrEnum):
    """What configures the network; a guest may have several."""

    IFCFG_RH = "ifcfg-rh"
    NM_KEYFILE = "nm-keyfile"
    NETPLAN = "netplan"
    IFUPDOWN = "ifupdown"
    NETWORKD = "networkd"
    IFCFG_SUSE = "ifcfg-suse"  # wicked, or ifup of old
    CLOUD_INIT = "cloud-init"
    OTHER = "other"


@dataclass(frozen=True)
class Distribution:
    """Which system it is.  Fix-ups look at files rather than at versions."""

    family: Family = Family.OTHER
    id: str = ""
    version: str = ""  # 12, 5.11
    name: str = ""  # as the guest calls itself
    source: str = ""  # the file that said so

    @property
    def major(self) -> int:
        """0 when it is no number."""
        start = self.version.partition(".")[0]
        return int(start) if start.isdecimal() else 0


@dataclass(frozen=True)
class BootLoader:
    """``config``: the file that lists what can be booted; entries: those of BLS, if it has any.

    ``wrappers``: files that do nothing but lead to ``config`` (EFI/debian/grub.cfg).
    """

    kind: LoaderKind
    config: str = ""
    entries: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()


@dataclass(frozen=True)
class BootEntry:
    """One thing that can be booted.  Kernel and initramfs are the guest's paths, '' unknown.

    ``id``: what the boot loader calls it (a label, a BLS file's name), ``hypervisor``: Xen's path
    when it is that which is started, with the kernel as its first module.
    """

    id: str = ""
    title: str = ""
    kernel: str = ""
    initramfs: str = ""
    options: str = ""  # the kernel's command line
    hypervisor: str = ""


@dataclass(frozen=True)
class Kernel:
    """An installed kernel.  Paths are the guest's; '' what is not there.

    ``other_initramfs``: those of the same kernel that are for rescue, fall-back or kdump.
    ``drivers``: module names with underscores (virtio_blk) → where this kernel has it.
    """

    version: str
    image: str = ""
    initramfs: str = ""
    modules: str = ""  # /lib/modules/VERSION
    config: str = ""
    is_default: bool = False
    is_rescue: bool = False
    drivers: Mapping[str, Driver] = field(default_factory=dict)
    other_initramfs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mount:
    """A line of fstab that was understood.  ``device``: the volume's, '' when not found."""

    spec: str
    point: str
    kind: str
    options: str = "defaults"
    device: str = ""


@dataclass(frozen=True)
class Interface:
    """A network interface that the guest configures.

    ``mac``: lower case, of the card the name belongs to by this file, a .link file or a udev rule;
    '' when nothing ties them together.  An address that the guest gives to a card is none of these.
    """

    name: str
    mac: str = ""
    stack: NetworkStack = NetworkStack.OTHER
    config: str = ""  # the file


@dataclass(frozen=True)
class Windows:
    """What was found of a Windows system.

    ``version``: NT's, with the build (10.0.17763).  ``root``: the directory (/Windows).
    ``is_dynamic``: its disks are dynamic, or a storage pool.  ``storage_drivers``: those it starts
    at boot whatever it finds, lower case (storahci); ``clock``: utc or localtime, '' unknown.
    """

    name: str = ""
    version: str = ""
    root: str = ""
    is_hibernated: bool = False
    has_bitlocker: bool = False
    is_dynamic: bool = False
    edition: str = ""
    storage_drivers: tuple[str, ...] = ()
    clock: str = ""


@dataclass(frozen=True)
class Guest:
    """A system on the disks.  ``problems``: what inspection could not find out, a line each."""

    distribution: Distribution = field(default_factory=Distribution)
    architecture: str = ""  # x86_64, i686, aarch64
    hostname: str = ""
    firmware: Firmware | None = None
    init: Init = Init.UNKNOWN
    boot_loaders: tuple[BootLoader, ...] = ()
    kernels: tuple[Kernel, ...] = ()  # the default one first
    generator: Generator = Generator.OTHER
    mounts: tuple[Mount, ...] = ()
    networks: tuple[NetworkStack, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    selinux: str = ""  # enforcing, permissive, disabled; '' has none
    is_hibernated: bool = False
    rtc: str = ""  # what it takes the hardware clock for: utc, localtime; '' when it does not say
    uses: tuple[str, ...] = ()  # lvm, md, luks, btrfs, multipath
    windows: Windows | None = None
    problems: tuple[str, ...] = ()
    default_entry: BootEntry | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def default_kernel(self) -> Kernel | None:
        return self.kernels[0] if self.kernels else None
