"""F13, F14 and the leftover scan: what still names old hardware.  Reports only, and last."""

import re
from collections.abc import Iterator

from p2v_sync.errors import FixupError
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.lines import is_comment, split_lines
from p2v_sync.fixup.names import depends_on_bus, lasting_spec, resolve
from p2v_sync.fixup.plan import Context, Finding, Fixup, Severity
from p2v_sync.units import KIB

_MOST = 100  # lines
_MOST_FILES = 20_000
_MOST_DEPTH = 12
_LONGEST = 256 * KIB
_OLD_NAME = re.compile(
    r"(?<![\w-])/dev/(?:[hs]d[a-z]{1,2}\d*\b|cciss/\w+|nvme\d\w*|disk/by-(?:id|path)/[^\s\"',]+)"
)
_BESIDES = ("/boot/grub/*.lst", "/boot/grub/*.conf", "/boot/grub*/*.cfg", "/boot/loader/entries/*")
# Backups, logs of what was, texts of programs, and what several others have dealt with.
_PASSED = re.compile(
    r"/etc/(?:lvm/(?:archive|backup|cache)|alternatives|ssl|pki|selinux|bash_completion\.d|mtab"
    r"|udev/hwdb\.(?:bin|d)|services|init\.d|rc\d?\.d)(?:/|$)"
    r"|[~-]$|\.(?:pre-p2v|p2v|bak|old|orig|dpkg-\w+|rpm(?:save|new|orig))$"
)
_USERS_OF_IDS = {
    "/etc/sysconfig/oracleasm*": "Oracle ASM finds its disks by name or id",
    "/etc/vdoconf.yml": "VDO finds its disks by id",
    "/etc/drbd.d/*.res": "DRBD finds its disks by name",
    "/etc/zfs/zpool.cache": "ZFS finds its disks by id: zpool import -d /dev/disk/by-partuuid",
    "/etc/target/saveconfig.json": "LIO finds the disks that it exports by id or name",
}
_RAW_BINDINGS = ("/etc/sysconfig/rawdevices", "/etc/raw")
_RAW = re.compile(r"(?P<raw>(?:/dev/raw/)?raw\d+)(?:\s+|:)(?P<name>[\w/-]+)", re.ASCII)
_SERIAL_RULE = re.compile(r"^[^#\n]*\b(?:ID_SERIAL|ID_WWN|scsi_id)\b", re.MULTILINE)


class RawDevices:
    """F13: raw(8) binds by name, and knows no others."""

    key = "F13-raw-devices"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        for path in _RAW_BINDINGS:
            for line in split_lines(_text(draft, path)):
                found = None if is_comment(line) else _RAW.match(line.strip())
                if found is None:
                    continue
                name = f"/dev/{found['name'].removeprefix('/dev/')}"
                if depends_on_bus(name):
                    volume = resolve(name, context.storage)
                    spec = lasting_spec(volume, context.storage) if volume is not None else None
                    text = f"{path}: {found['raw']} is bound to {name}, which gets another name"
                    yield Finding(
                        self.key,
                        Severity.WARNING,
                        text,
                        f"bind it to what has {spec}" if spec else "bind it anew after the start",
                    )


class UsersOfIds:
    """F14: programs that look for disks by what their maker called them."""

    key = "F14-ids"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context
        hint = "the disks' serial numbers can be kept in the virtual machine's definition"
        for pattern, text in _USERS_OF_IDS.items():
            for path in draft.glob(pattern):
                yield Finding(self.key, Severity.WARNING, f"{path}: {text}", hint)
        for path in draft.glob("/etc/udev/rules.d/*.rules"):
            if _SERIAL_RULE.search(_text(draft, path)):
                text = f"{path}: a rule goes by the serial numbers of disks"
                yield Finding(self.key, Severity.WARNING, text, hint)


class Leftovers:
    """Lines in the guest's configuration that still have names of old disks."""

    key = "F99-leftovers"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context
        left = _MOST
        for path in _files(draft):
            for number, line in enumerate(split_lines(_text(draft, path)), start=1):
                if is_comment(line) or not (found := _OLD_NAME.search(line)):
                    continue
                if not left:
                    yield Finding(self.key, Severity.NOTE, f"more than {_MOST} such lines")
                    return
                left -= 1
                text = f"{path}:{number} still has {found[0]}"
                yield Finding(self.key, Severity.NOTE, text)


def _files(draft: Draft) -> Iterator[str]:
    for pattern in _BESIDES:
        yield from draft.glob(pattern)
    yield from _below(draft, "/etc")


def _below(draft: Draft, top: str) -> Iterator[str]:
    """Regular files, each once: links are not followed."""
    waiting, left = [top], _MOST_FILES
    while waiting and left:
        directory = waiting.pop()
        for name in draft.names(directory):
            path = f"{directory}/{name}"
            if _PASSED.search(path):
                continue
            left -= 1
            if not left:
                return
            status = draft.status(path, follow=False)
            if status.is_directory and path.count("/") <= _MOST_DEPTH:
                waiting.append(path)
            elif status.is_file and status.size <= _LONGEST:
                yield path


def _text(draft: Draft, path: str) -> str:
    """'' for what is none."""
    try:
        text = draft.text(path)
    except (FileNotFoundError, FixupError):
        return ""
    return "" if "\0" in text else text


FIXUPS: tuple[Fixup, ...] = (RawDevices(), UsersOfIds(), Leftovers())
