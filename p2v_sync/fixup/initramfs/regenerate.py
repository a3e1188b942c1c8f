"""F21: a new initramfs by the guest's own tool, for one that nothing can be appended to.

The only fix-up that runs programs of the guest, and writes without a plan: so only on an overlay,
whose disks are read-only, and after all others.  The tool runs in namespaces of its own, without a
network: its /dev has no disks, its /sys can't be written, what it keeps in /tmp is kept in memory,
and all its processes end with it.
"""

import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from p2v_sync import run
from p2v_sync.errors import CommandError, FixupError
from p2v_sync.fixup.apply import own, set_label
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Driver, Generator, Guest, Kernel, LoaderKind
from p2v_sync.fixup.initramfs import buses
from p2v_sync.fixup.initramfs.drivers import IMAGE_MOST, InitramfsDrivers, Look, look_at, looks
from p2v_sync.fixup.initramfs.nash import NashInit, loaded_drivers
from p2v_sync.fixup.plan import Context, Finding, Plan, Severity, Target
from p2v_sync.fixup.tree import Tree, split
from p2v_sync.units import GIB

KEY = "F21-regenerate"

_KERNELS_MOST = 2  # the default one first
_PATIENCE_S = 300.0
_HINT = "the virtual machine is given hardware that the guest finds its disks on as it is"
_VERSION = re.compile(r"[A-Za-z0-9][\w.+~-]*", re.ASCII)
_MOUNTED = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp")
_ROOM = 1.3  # times the old image, in /boot
_LEAST, _MOST = 0.5, 6  # times the old image: an image for any machine is some times as large

# Before chroot(8): mounts are made by the live system's programs, and are seen by nobody else.
_SCRIPT = """
set -e
root=$1; most=$2; shift 2
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o nosuid,mode=755,size=1m dev "$root/dev"
mount -t tmpfs -o nosuid,nodev,mode=755 run "$root/run"
mount -t tmpfs -o nosuid,nodev,mode=1777,size=1g tmp "$root/tmp"
mount -t tmpfs -o nosuid,nodev,mode=1777,size=1g tmp "$root/var/tmp"
cd "$root/dev"
mknod -m 666 null c 1 3; mknod -m 666 zero c 1 5; mknod -m 666 full c 1 7
mknod -m 666 random c 1 8; mknod -m 666 urandom c 1 9; mknod -m 666 tty c 5 0
ln -s /proc/self/fd fd; ln -s fd/0 stdin; ln -s fd/1 stdout; ln -s fd/2 stderr
mkdir pts shm
cd /
ulimit -f "$most"
exec setpriv --bounding-set=-sys_module,-sys_rawio,-sys_boot,-sys_time,-syslog -- \
  chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C HOME=/root \
  TMPDIR=/var/tmp DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 SYSTEMD_IGNORE_CHROOT=1 "$@"
"""

# Its configuration may say that only the drivers of the machine it runs on are taken.
_INITRAMFS_TOOLS = (
    "cp -a /etc/initramfs-tools /tmp/p2v && mkdir -p /tmp/p2v/conf.d && "
    "echo MODULES=most >/tmp/p2v/conf.d/zz-p2v && "
    'printf "%s\\n" $3 >>/tmp/p2v/modules && mkinitramfs -d /tmp/p2v -o "$1" "$2"'
)


_PROGRAMS = {
    Generator.DRACUT: "dracut",
    Generator.INITRAMFS_TOOLS: "mkinitramfs",
    Generator.MKINITCPIO: "mkinitcpio",
    Generator.MKINITRD_RH: "mkinitrd",
    Generator.MKINITRD_SUSE: "mkinitrd",
    Generator.MAKE_INITRD: "make-initrd",
}
_APPENDING = (InitramfsDrivers.key, NashInit.key)


def candidates(draft: Draft, context: Context) -> Iterator[Look]:
    """Kernels that would not find their disks, as the guest is, and for which it has a tool."""
    wanted, guest = buses.ways(context.target), context.guest
    if not _has_tool(draft, guest):
        return
    for look in looks(draft, guest):
        drivers = loaded_drivers(look)
        is_lacking = not buses.is_ready(drivers, wanted) and buses.is_possible(drivers, wanted)
        if is_lacking and _is_replaceable(draft, look.kernel):
            yield look


def _has_tool(draft: Draft, guest: Guest) -> bool:
    """LILO would not find what is made anew: it knows blocks, not files."""
    program = _PROGRAMS.get(guest.generator)
    if program is None or any(loader.kind is LoaderKind.LILO for loader in guest.boot_loaders):
        return False
    places = (f"{each}/{program}" for each in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"))
    return _runs_here(guest) and any(map(draft.exists, places))


def _is_replaceable(draft: Draft, kernel: Kernel) -> bool:
    """A file with an initramfs and nothing else; a unified kernel image has the kernel, too."""
    if not kernel.initramfs or not _VERSION.fullmatch(kernel.version):
        return False
    try:
        return draft.tree.read_part(kernel.initramfs, 0, 2) != b"MZ"
    except (FileNotFoundError, FixupError):
        return False


def announced(draft: Draft, context: Context, plan: Plan) -> Plan:
    """A plan for an overlay, whose downgrade is not the last word: the guest's tool is tried."""
    first = next(candidates(draft, context), None)
    if first is None or first.kernel is not context.guest.default_kernel:
        return plan
    program = _PROGRAMS[context.guest.generator]
    findings = [
        finding._replace(hint=f"the guest's own {program} is tried; if it fails: {finding.hint}")
        if finding.fixup in _APPENDING and finding.severity is Severity.DOWNGRADE
        else finding
        for finding in plan.findings
    ]
    return replace(plan, findings=findings)


def regenerate_all(tree: Tree, context: Context, room: Callable[[], int]) -> list[Finding]:
    """On an overlay that all else was applied to: a NOTE for each initramfs that was made anew.

    The first that fails ends it, with a WARNING.  ``room``: how many bytes the next may have.
    """
    found = list[Finding]()
    for look in [*candidates(Draft(tree), context)][:_KERNELS_MOST]:
        kernel, program = look.kernel, _PROGRAMS[context.guest.generator]
        try:
            regenerate(tree.root, context.guest, kernel, context.target, most=room())
        except FixupError as error:
            return [*found, Finding(KEY, Severity.WARNING, error.message, error.hint or "")]
        text = f"{kernel.initramfs} was made anew by the guest's own {program}"
        found.append(Finding(KEY, Severity.NOTE, text))
    return found


def replanned(plan: Plan, again: Plan, findings: Sequence[Finding]) -> Plan:
    """``plan`` with what was to be said of an initramfs before it was made anew taken back.

    ``again``: made after that.
    """
    kept = [finding for finding in plan.findings if finding.fixup not in _APPENDING]
    new = [finding for finding in again.findings if finding.fixup in _APPENDING]
    return Plan((*plan.edits, *again.edits), (*kept, *new, *findings))


def regenerate(
    root: Path,
    guest: Guest,
    kernel: Kernel,
    target: Target,
    *,
    most: int = GIB,
    patience_s: float = _PATIENCE_S,
) -> None:
    """Have ``kernel`` a new initramfs with the drivers of ``target``, of ``most`` bytes.

    Raises FixupError when that was not possible; the old one is there then.
    """
    _check(guest, kernel)
    with Tree(root) as tree:
        draft = Draft(tree)
        image = tree.resolve(kernel.initramfs)
        old = _Old(tree, image)
        look = look_at(draft, kernel, guest)
        _check_room(tree, image, len(old.data), most)
        argv = command(draft, look, guest, image)
        try:
            _chrooted(tree, argv, most, patience_s)
            new = tree.status(image).size
            _check_new(look_at(draft, kernel, guest), target, new, len(old.data))
        except (CommandError, FixupError, FileNotFoundError) as error:
            old.put_back()
            raise FixupError(
                f"{argv[0]} made no usable initramfs for kernel {kernel.version}: {error}",
                hint=_HINT,
            ) from error
        old.pass_on()


class _Old:
    """An initramfs that is about to be made anew."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree, self._path = tree, path
        self.data = tree.read(path, IMAGE_MOST)
        self._status, self._label = tree.status(path), tree.label(path)

    def put_back(self) -> None:
        """Whatever is there now."""
        parent, name = split(self._path)
        with self._tree.directory(parent) as directory:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
                file.write(self.data)
                file.flush()
                os.fsync(file.fileno())
        self.pass_on()

    def pass_on(self) -> None:
        """Its owner, permissions and label to what is in its place."""
        with self._tree.writable(self._path) as fd:
            own(fd, self._status.permissions, self._status.uid, self._status.gid)
            set_label(fd, self._label)
            os.fsync(fd)


def _runs_here(guest: Guest) -> bool:
    here = platform.machine()
    runs = {here, "i386", "i486", "i586", "i686"} if here == "x86_64" else {here}
    return guest.architecture in runs


def _check(guest: Guest, kernel: Kernel) -> None:
    if not _runs_here(guest):
        text = f"programs for {guest.architecture} do not run on {platform.machine()}"
        raise FixupError(text, hint=_HINT)
    if not _VERSION.fullmatch(kernel.version) or not kernel.initramfs.startswith("/"):
        raise FixupError(f"kernel {kernel.version!r} has no initramfs to be made", hint=_HINT)


def _check_room(tree: Tree, image: str, old: int, most: int) -> None:
    if most < _ROOM * old:
        raise FixupError("the overlay has too little room for a new initramfs", hint=_HINT)
    with tree.directory(split(image)[0]) as fd:
        found = os.fstatvfs(fd)
    if found.f_bavail * found.f_frsize < _ROOM * old:
        raise FixupError(f"{split(image)[0]} in the guest is too full", hint=_HINT)


def command(draft: Draft, look: Look, guest: Guest, image: str) -> list[str]:
    """What makes an initramfs for any machine.  Raises FixupError when that is not known."""
    version = look.kernel.version
    installed = (Driver.MODULE, Driver.INITRAMFS)
    names = [name for name in buses.WORTH_ADDING if look.drivers[name] in installed]
    drivers = " ".join(names)
    match guest.generator:
        case Generator.DRACUT:
            # Version 004 is in /usr/share, and makes images for any machine anyway.
            is_new = draft.is_directory("/usr/lib/dracut")
            any_machine = ["--no-hostonly", "--tmpdir", "/var/tmp"] if is_new else []
            return ["dracut", "--force", *any_machine, "--add-drivers", drivers, image, version]
        case Generator.INITRAMFS_TOOLS:
            return ["sh", "-c", _INITRAMFS_TOOLS, "mkinitramfs", image, version, drivers]
        case Generator.MKINITCPIO:
            return ["mkinitcpio", "-k", version, "-g", image, "-S", "autodetect"]
        case Generator.MKINITRD_RH:
            return ["mkinitrd", "-f", *(f"--with={name}" for name in names), image, version]
        case Generator.MKINITRD_SUSE:
            return ["mkinitrd", "-m", drivers, "-k", look.kernel.image, "-i", image]
        case Generator.MAKE_INITRD:
            return ["make-initrd", "-k", version]
    raise FixupError("what makes this guest's initramfs is not known to us", hint=_HINT)


def _chrooted(tree: Tree, argv: Sequence[str], most: int, patience_s: float) -> None:
    for path in _MOUNTED:
        # A link here would have us mount somewhere else.
        if tree.resolve(path) != path or not tree.status(path).is_directory:
            raise FixupError(f"{path} in the guest is no directory", hint=_HINT)
    alone = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    alone += ["--uts", "--ipc", "--net"]
    script = ["sh", "-c", _SCRIPT, "sh", str(tree.root), str(most // 512)]
    run.capture(["unshare", *alone, *script, *argv], timeout_s=patience_s)


def _check_new(look: Look, target: Target, new: int, old: int) -> None:
    if look.contents is None or look.contents.image.reason:
        reason = look.contents.image.reason if look.contents is not None else look.reason
        raise FixupError(f"it can't be read: {reason}")
    if not buses.is_ready(loaded_drivers(look), buses.ways(target)):
        raise FixupError(f"it has no {buses.named(buses.ways(target))}")
    if not _LEAST * old <= new <= _MOST * old:
        raise FixupError(f"it has {new} bytes, the old one has {old}")
