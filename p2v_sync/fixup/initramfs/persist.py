"""F22: the drivers for the initramfs of later kernels, made by the guest itself."""

import re
from collections.abc import Iterator, Sequence

from p2v_sync.errors import GuestFileError
from p2v_sync.fixup import lines, shell_file
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Generator
from p2v_sync.fixup.initramfs import buses, modules
from p2v_sync.fixup.initramfs.modules import plain
from p2v_sync.fixup.plan import Context, Finding, Severity

_DRACUT = "/etc/dracut.conf.d/90-p2v-sync.conf"
_INITRAMFS_TOOLS = "/etc/initramfs-tools/modules"
_MKINITCPIO, _MKINITCPIO_MORE = "/etc/mkinitcpio.conf", "/etc/mkinitcpio.conf.d/p2v-sync.conf"
_SUSE = "/etc/sysconfig/kernel"
_ARRAY = re.compile(r"^(MODULES=\()([^)]*)\)|^(MODULES=\")([^\"]*)\"", re.MULTILINE)
_PROGRAM_MOST = 1 << 20


class LaterKernels:
    """A generator that only looks at the machine it runs on would do without this; not all do."""

    key = "F22-later-kernels"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        kernel = context.guest.default_kernel
        if kernel is None:
            return
        there = modules.installed(draft, kernel).files
        names = [name for name in buses.WORTH_ADDING if name in there]
        if not names:
            return
        match context.guest.generator:
            case Generator.DRACUT:
                _dracut(draft, names)
            case Generator.INITRAMFS_TOOLS:
                _initramfs_tools(draft, names)
            case Generator.MKINITCPIO:
                _mkinitcpio(draft, names)
            case Generator.MKINITRD_SUSE:
                _suse(draft, names)
            case Generator.MKINITRD_RH:
                return  # F23: it looks at the aliases of modprobe
            case _:
                yield Finding(
                    self.key,
                    Severity.WARNING,
                    "what makes this guest's initramfs is not known to us",
                    f"see to it that later kernels have {', '.join(names)} in it",
                )


def _dracut(draft: Draft, names: Sequence[str]) -> None:
    # The blanks within the quotes have to be there (dracut.conf(5)).
    draft.write(_DRACUT, f'# p2v-sync\nadd_drivers+=" {" ".join(names)} "\n')


def _initramfs_tools(draft: Draft, names: Sequence[str]) -> None:
    text = draft.text(_INITRAMFS_TOOLS) if draft.exists(_INITRAMFS_TOOLS) else ""
    others = lines.with_block(text, "F22", [])
    listed = {
        plain(lines.fields(line)[0])
        for line in lines.split_lines(others)
        if not lines.is_comment(line)
    }
    missing = [name for name in names if name not in listed]
    draft.write(_INITRAMFS_TOOLS, lines.with_block(text, "F22", missing))


def _mkinitcpio(draft: Draft, names: Sequence[str]) -> None:
    if _reads_more(draft):
        draft.write(_MKINITCPIO_MORE, f"# p2v-sync\nMODULES+=({' '.join(names)})\n")
        return
    text = draft.text(_MKINITCPIO)
    found = _ARRAY.search(text)
    if found is None:
        raise GuestFileError(f"{_MKINITCPIO} has no MODULES")
    kind = 1 if found[1] else 3
    start, end = found.span(kind + 1)
    draft.write(_MKINITCPIO, text[:start] + _with(found[kind + 1], names) + text[end:])


def _reads_more(draft: Draft) -> bool:
    """Since version 36."""
    try:
        return b"mkinitcpio.conf.d" in draft.read("/usr/bin/mkinitcpio", _PROGRAM_MOST)
    except (FileNotFoundError, GuestFileError):
        return False


def _suse(draft: Draft, names: Sequence[str]) -> None:
    text = draft.text(_SUSE)
    value = shell_file.value_of(text, "INITRD_MODULES") or ""
    draft.write(_SUSE, shell_file.with_value(text, "INITRD_MODULES", _with(value, names)))


def _with(value: str, names: Sequence[str]) -> str:
    """``value`` with those of ``names`` behind it that it lacks."""
    listed = {plain(word) for word in value.split()}
    return " ".join([*filter(None, [value]), *(name for name in names if name not in listed)])
