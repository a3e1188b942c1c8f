"""F24: the first script of Red Hat's old mkinitrd, which names each module that it loads.

RHEL 4 and 5, Fedora up to 11: ``/init`` is run by nash, modules lie flat in /lib, and there is no
udev and no modprobe inside.
"""

import re
from collections.abc import Iterator, Mapping

from p2v_sync.errors import GuestFileError
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.guest import Driver, Generator
from p2v_sync.fixup.initramfs import addition, buses
from p2v_sync.fixup.initramfs.contents import Contents
from p2v_sync.fixup.initramfs.drivers import Look, append, looks, not_found
from p2v_sync.fixup.initramfs.modules import module_name
from p2v_sync.fixup.plan import Context, Finding

_INSMOD = re.compile(r"^[ \t]*insmod[ \t]+(\S+)", re.MULTILINE)
# What is done once all drivers are there: nodes for the disks, and then the root.
_NEXT = re.compile(
    r"^[ \t]*(?:mkblkdevs|stabilized|mkrootdev|/sbin/udevstart|echo[ \t]+\"?"
    r"(?:Scanning|Waiting|Creating[ \t]+root|Making[ \t]+device))",
    re.MULTILINE,
)


class NashInit:
    """The drivers of the virtual machine's disks, loaded where the old ones are."""

    key = "F24-nash"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        for look in looks(draft, context.guest):
            contents = look.contents
            if contents is not None and contents.generator is Generator.MKINITRD_RH:
                yield from self._kernel(draft, context, look, contents)

    def _kernel(
        self, draft: Draft, context: Context, look: Look, contents: Contents
    ) -> Iterator[Finding]:
        text = _init(contents)
        loaded = {module_name(path) for path in _INSMOD.findall(text)}
        drivers = loaded_drivers(look)
        wanted = buses.ways(context.target)
        if buses.is_ready(drivers, wanted):
            return
        reason = look.reason
        if not buses.is_possible(drivers, wanted):
            reason = f"it has no {buses.named(wanted)}"
        names = [name for name in buses.first_possible(drivers, wanted) if name not in loaded]
        try:
            if not reason:
                _insert(draft, look, contents, [text, *look.installed.closure(names)])
        except (FileNotFoundError, GuestFileError, ValueError) as error:
            reason = str(error)
        if reason:
            yield not_found(self.key, context, look, reason)


def _init(contents: Contents) -> str:
    return (contents.data("init") or b"").decode("latin-1")


def loaded_drivers(look: Look) -> Mapping[str, Driver]:
    """Where a kernel has each driver; one that nash is not told to load is no more than a module.

    Also of an initramfs with udev, which loads all that is inside.
    """
    contents = look.contents
    if contents is None or contents.generator is not Generator.MKINITRD_RH:
        return look.drivers
    loaded = {module_name(path) for path in _INSMOD.findall(_init(contents))}
    return {
        name: Driver.MODULE if state is Driver.INITRAMFS and name not in loaded else state
        for name, state in look.drivers.items()
    }


def _insert(draft: Draft, look: Look, contents: Contents, what: list[str]) -> None:
    text, *names = what
    loaded = {module_name(path) for path in _INSMOD.findall(text)}
    missing = [name for name in names if name not in loaded]
    files: dict[str, bytes] = {}
    lines = ""
    for name in missing:
        path = look.installed.files[name]
        file = path.rpartition("/")[2]
        if f"lib/{file}" not in contents.files:
            files[f"lib/{file}"] = draft.read(
                f"{look.installed.directory}/{path}", addition.MODULE_MOST
            )
        lines += f'echo "Loading {file} module"\ninsmod /lib/{file}\n'
    files["init"] = with_lines(text, lines).encode("latin-1")
    append(draft, look, addition.archive(contents, files))


def with_lines(text: str, lines: str) -> str:
    """Behind the modules that are loaded, before anything is done with the disks.

    Raises ValueError when there is no such place.
    """
    last = max((found.end() for found in _INSMOD.finditer(text)), default=0)
    following = _NEXT.search(text, last)
    if following is None:
        raise ValueError("its init has no place where drivers are loaded")
    return text[: following.start()] + lines + text[following.start() :]
