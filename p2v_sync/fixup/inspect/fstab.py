"""/etc/fstab, and which volumes it means (man 5 fstab)."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from p2v_sync.device.storage import Storage
from p2v_sync.fixup import names
from p2v_sync.fixup.guest import Mount
from p2v_sync.fixup.inspect.reader import Reader, shown

_QUOTA = re.compile(r"(usr|grp|prj|[ugp])?quota|[ugp]?qnoenforce")
_OCTAL = re.compile(r"\\([0-3][0-7]{2})")
_TAGS = ("UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=")
# Kinds that have no block device of ours below them.
_NOT_OURS = (
    "proc sysfs tmpfs devtmpfs devpts usbfs debugfs securityfs cgroup cgroup2 hugetlbfs none bind "
    "nfs nfs4 cifs smbfs smb3 sshfs fuse.sshfs ceph glusterfs 9p overlay autofs udf iso9660 auto "
    "swapfile efivarfs configfs selinuxfs subfs ramfs"
)
_ELSEWHERE = frozenset(_NOT_OURS.split())
_REMOVABLE = re.compile(r"/dev/(fd\d|cdrom|cdrw|dvd|scd\d|sr\d|floppy|cdroms/)")


def parse(text: str) -> Iterator[Mount]:
    """The lines with at least three fields, whose octal escapes and quotes are undone."""
    for line in text.splitlines():
        fields = [_unescape(field) for field in line.split()]
        if len(fields) >= 3 and not fields[0].startswith("#"):
            yield Mount(fields[0].replace('"', ""), *fields[1:4])


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def point_of(mount: Mount) -> str:
    """``/boot/`` → ``/boot``; '' for swap space."""
    return mount.point.rstrip("/") or "/" if mount.point.startswith("/") else ""


def is_on_disk(mount: Mount) -> bool:
    """Whether a volume of the guest's own disks is meant."""
    if set(mount.kind.split(",")) <= _ELSEWHERE or "_netdev" in mount.options.split(","):
        return False
    spec = mount.spec.upper() if "=" in mount.spec else mount.spec
    return spec.startswith(("/dev/", *_TAGS)) and not _REMOVABLE.match(spec)


def quota_options(options: Iterable[str]) -> str:
    """Those of XFS: mounted writable without them, it forgets that its quotas were checked."""
    return ",".join(option for option in options if _QUOTA.fullmatch(option))


def mount_options(mount: Mount, kind: str, *, writable: bool) -> str:
    """Of the guest's own options those that say which files it means, or protect its state."""
    options = mount.options.split(",")
    if kind == "btrfs":
        return ",".join(each for each in options if each.startswith(("subvol=", "subvolid=")))
    return quota_options(options) if kind == "xfs" and writable else ""


def read(reader: Reader, storage: Storage) -> tuple[Mount, ...]:
    """All of fstab, with the devices that were found."""
    mounts = []
    for mount in parse(reader.text("/etc/fstab")):
        volume = names.resolve(mount.spec, storage) if is_on_disk(mount) else None
        is_missed = volume is None and is_on_disk(mount) and not mount.point.startswith("/media/")
        if is_missed and storage.is_complete:
            reader.note(f"fstab: {shown(mount.spec)} ({shown(mount.point)}) is on no disk here")
        mounts.append(replace(mount, device=volume.device if volume else ""))
    return tuple(mounts)
