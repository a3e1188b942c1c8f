"""Process 1, what makes the initramfs, SELinux, and which kinds of storage are in use."""

from collections.abc import Iterator, Sequence

from p2v_sync.device.storage import Storage
from p2v_sync.fixup.guest import BootEntry, Generator, Init, Mount
from p2v_sync.fixup.inspect.entries import option
from p2v_sync.fixup.inspect.reader import Reader, assignments, shown

_USES = {
    "LVM2_member": "lvm",
    "LVM1_member": "lvm",
    "crypto_LUKS": "luks",
    "btrfs": "btrfs",
    "mpath_member": "multipath",
}
_ORDER = ("lvm", "md", "luks", "btrfs", "multipath")


def find_init(reader: Reader) -> Init:
    """/sbin/init is a link to systemd, or what else lies there tells."""
    program = reader.resolved("/sbin/init")
    if program.endswith("/systemd"):
        return Init.SYSTEMD
    if reader.is_file("/sbin/initctl") and reader.files("/etc/init/*.conf"):
        return Init.UPSTART
    if reader.is_file("/sbin/openrc") or reader.is_file("/sbin/openrc-run"):
        return Init.OPENRC
    if program.endswith("/runit-init") or reader.is_directory("/etc/runit"):
        return Init.RUNIT
    if reader.is_file("/etc/inittab"):
        return Init.SYSV
    is_systemd = reader.first_file("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
    return Init.SYSTEMD if is_systemd else Init.UNKNOWN


def find_generator(reader: Reader) -> Generator:
    """By the tools that are installed; an image may know better."""
    has = reader.is_file
    if has("/usr/sbin/make-initrd"):
        return Generator.MAKE_INITRD
    if has("/usr/bin/mkinitcpio") or has("/etc/mkinitcpio.conf"):
        return Generator.MKINITCPIO
    # Debian's package of dracut takes the place of initramfs-tools, and of update-initramfs.
    if has("/usr/share/initramfs-tools/hook-functions") and has("/usr/sbin/update-initramfs"):
        return Generator.INITRAMFS_TOOLS
    if reader.first_file("/usr/bin/dracut", "/sbin/dracut", "/usr/sbin/dracut"):
        return Generator.DRACUT
    return _mkinitrd(reader) if has("/sbin/mkinitrd") else Generator.OTHER


def _mkinitrd(reader: Reader) -> Generator:
    if reader.is_file("/sbin/nash"):
        return Generator.MKINITRD_RH
    suse = assignments(reader.text("/etc/sysconfig/kernel"))
    if reader.is_directory("/lib/mkinitrd") or "INITRD_MODULES" in suse:
        return Generator.MKINITRD_SUSE
    return Generator.OTHER


def find_selinux(reader: Reader, entry: BootEntry | None) -> str:
    """The kernel's command line has the last word; '' where SELinux is not installed."""
    mode = assignments(reader.text("/etc/selinux/config")).get("SELINUX", "").lower()
    options = entry.options if entry else ""
    if not mode:
        return ""
    if option(options, "selinux") == "0":
        return "disabled"
    if option(options, "enforcing") == "0" and mode == "enforcing":
        return "permissive"
    return shown(mode)


def find_uses(reader: Reader, storage: Storage, mounts: Sequence[Mount]) -> tuple[str, ...]:
    """What the volumes are, and where nobody has listed them, what the configuration says."""
    found = {_USES[volume.kind] for volume in storage if volume.kind in _USES}
    found |= {"md" for volume in storage if volume.kind.endswith("_raid_member")}
    if not storage.is_complete:
        found |= set(_configured(reader, mounts))
    if _has_multipath(reader):
        found.add("multipath")
    return tuple(use for use in _ORDER if use in found)


def _configured(reader: Reader, mounts: Sequence[Mount]) -> Iterator[str]:
    if any(reader.lines("/etc/crypttab")):
        yield "luks"
    if any(mount.kind == "btrfs" for mount in mounts):
        yield "btrfs"
    for path in ("/etc/mdadm.conf", "/etc/mdadm/mdadm.conf"):
        if any(line.upper().startswith("ARRAY") for line in reader.lines(path)):
            yield "md"
    # A group's directory of backups is made when the group is.
    groups = reader.names("/etc/lvm/backup")
    mapped = any(mount.spec.startswith("/dev/mapper/") for mount in mounts)
    if groups or (mapped and reader.is_file("/etc/lvm/lvm.conf")):
        yield "lvm"


def _has_multipath(reader: Reader) -> bool:
    """Disks with several paths were seen by the guest itself."""
    paths = ("/etc/multipath/wwids", "/etc/multipath/bindings", "/var/lib/multipath/bindings")
    return any(True for path in paths for _ in reader.lines(path))
