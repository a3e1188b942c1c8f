"""F20: the drivers of the virtual machine's disks, appended to each initramfs that lacks them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2v_sync.errors import GuestFileError
from p2v_sync.fixup.crypttab import BAKED, CRYPTTAB, with_lasting_sources
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Driver, Generator, Guest, Kernel, LoaderKind
from p2v_sync.fixup.initramfs import addition, buses, modules
from p2v_sync.fixup.initramfs.contents import Contents, examine
from p2v_sync.fixup.initramfs.modules import OPTIONS, Modules
from p2v_sync.fixup.plan import Context, Finding, Severity
from p2v_sync.units import MIB, format_size

IMAGE_MOST = 512 * MIB
_KERNELS_MOST = 5  # the default one first


@dataclass(frozen=True)
class Look:
    """A kernel and its initramfs.  ``reason``: why nothing can be added to it."""

    kernel: Kernel
    installed: Modules
    contents: Contents | None
    reason: str

    @property
    def drivers(self) -> Mapping[str, Driver]:
        inside = self.contents.modules if self.contents is not None else {}
        return {name: self.installed.state(name, inside) for name in OPTIONS}


def states(draft: Draft, kernel: Kernel, guest: Guest) -> tuple[Mapping[str, Driver], str]:
    """Where an installed kernel has each driver, and why nothing can be added to its initramfs.

    For inspection: of ``guest`` only the generator and the boot loaders are looked at.  What can't
    be read has no drivers.
    """
    look = look_at(draft, kernel, guest)
    return look.drivers, look.reason


def look_at(draft: Draft, kernel: Kernel, guest: Guest) -> Look:
    installed = modules.installed(draft, kernel)
    if not kernel.initramfs:
        return Look(kernel, installed, None, "it has no initramfs that could be added to")
    try:
        data = draft.read(kernel.initramfs, IMAGE_MOST)
    except (FileNotFoundError, GuestFileError) as error:
        return Look(kernel, installed, None, f"{kernel.initramfs} can't be read: {error}")
    contents = examine(data, kernel.version, guest.generator)
    reason = contents.reason
    if any(loader.kind is LoaderKind.LILO for loader in guest.boot_loaders):
        reason = reason or "LILO finds it by its blocks, and would not see what is added"
    reason = f"nothing can be added to {kernel.initramfs}: {reason}" if reason else ""
    return Look(kernel, installed, contents, reason)


def looks(draft: Draft, guest: Guest) -> Iterator[Look]:
    """At the kernels that may be booted, each initramfs once."""
    done = set[str]()
    for kernel in guest.kernels[:_KERNELS_MOST]:
        if not kernel.modules or kernel.initramfs in done:
            continue  # a rescue kernel's modules are in its initramfs alone
        if kernel.initramfs:
            done.add(kernel.initramfs)
        yield look_at(draft, kernel, guest)


def append(draft: Draft, look: Look, data: bytes) -> None:
    """Let its initramfs have ``data`` behind it.  Raises ValueError when there is no room."""
    room = draft.room(look.kernel.initramfs)
    if len(data) > room:
        raise ValueError(
            f"the file system of {look.kernel.initramfs} is too full: {format_size(len(data))} more"
            f" are needed, and {format_size(max(room, 0))} can be used"
        )
    draft.append(look.kernel.initramfs, data)


def not_found(key: str, context: Context, look: Look, reason: str) -> Finding:
    """What it means that a kernel can't have the drivers it needs."""
    wanted = buses.described(context.target)
    text = f"kernel {look.kernel.version} would not find its disks on {wanted}: {reason}"
    if look.kernel is not context.guest.default_kernel:
        severity = Severity.NOTE if look.kernel.is_rescue else Severity.WARNING
        return Finding(key, severity, text)
    return Finding(key, Severity.DOWNGRADE, text, buses.advice(look.drivers))


class InitramfsDrivers:
    """Without the driver of its disk the guest stops in the initramfs, so this is the heart."""

    key = "F20-initramfs"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        for look in looks(draft, context.guest):
            if look.contents is None or look.contents.generator is not Generator.MKINITRD_RH:
                yield from self._kernel(draft, context, look)

    def _kernel(self, draft: Draft, context: Context, look: Look) -> Iterator[Finding]:
        wanted, drivers = buses.ways(context.target), look.drivers
        names: list[str] = []
        if not buses.is_ready(drivers, wanted):
            if not buses.is_possible(drivers, wanted):
                yield not_found(self.key, context, look, f"it has no {buses.named(wanted)}")
            elif look.contents is None:
                yield not_found(self.key, context, look, look.reason)
            else:
                names = [n for n in buses.WORTH_ADDING if drivers[n] is Driver.MODULE]
        yield from self._add(draft, context, look, names)

    def _add(
        self, draft: Draft, context: Context, look: Look, names: list[str]
    ) -> Iterator[Finding]:
        contents = look.contents
        if contents is None:
            return
        files = _wanted_by_others(draft, contents)
        if not (names or files):
            return
        reason = look.reason
        try:
            if not reason:
                append(draft, look, _addition(draft, contents, look.installed, names, files))
        except (FileNotFoundError, GuestFileError, ValueError) as error:
            reason = str(error)
        if reason and names:
            yield not_found(self.key, context, look, reason)
        elif reason:
            yield Finding(
                self.key,
                Severity.WARNING,
                f"{look.kernel.initramfs} goes without {', '.join(sorted(files))}: {reason}",
                "run the guest's own tool for it once the virtual machine is up",
            )


def _addition(
    draft: Draft,
    contents: Contents,
    installed: Modules,
    names: Sequence[str],
    files: Mapping[str, bytes],
) -> bytes:
    added = dict(files)
    if names:
        added |= addition.with_modules(
            contents, installed, names, lambda path: draft.read(path, addition.MODULE_MOST)
        )
    return addition.archive(contents, added)


def _wanted_by_others(draft: Draft, contents: Contents) -> dict[str, bytes]:
    """What other fix-ups want inside, and is not yet."""
    wanted = dict(draft.for_initramfs)
    if baked := contents.data(BAKED):
        text = with_lasting_sources(baked.decode("latin-1"), draft.text_or_empty(CRYPTTAB))
        wanted[BAKED] = text.encode("latin-1")
    return {
        path.lstrip("/"): data
        for path, data in wanted.items()
        # What replaced a longer file may have been filled up.
        if (contents.data(path) or b"").rstrip(b"\n") != data.rstrip(b"\n")
    }
