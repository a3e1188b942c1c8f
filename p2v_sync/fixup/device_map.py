"""F05, F11, F12: files in which the guest remembers what its old disks were called."""

from collections.abc import Iterator

from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.lines import is_comment, split_lines
from p2v_sync.fixup.plan import Context, Finding, Fixup

_DEVICE_MAPS = ("/boot/grub/device.map", "/boot/grub2/device.map")
_CACHES = ("/etc/blkid.tab*", "/etc/blkid/blkid.tab*")
_CD_RULES = "/etc/udev/rules.d/70-persistent-cd.rules"


class DeviceMap:
    """F05: GRUB asks the firmware when it has no map; a wrong one breaks grub-install."""

    key = "F05-device-map"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context
        for path in _DEVICE_MAPS:
            if draft.is_file(path) and not all(map(is_comment, split_lines(draft.text(path)))):
                _move_aside(draft, path, f"{path}.pre-p2v")
        yield from ()


class BlkidCaches:
    """F11: a list of devices by UUID that blkid believes, after others have made use of it."""

    key = "F11-blkid-caches"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context
        for pattern in _CACHES:
            for path in draft.glob(pattern):
                if not draft.is_link(path):  # to /dev: gone with every boot
                    draft.remove(path)
        yield from ()


class CdRules:
    """F12: names of optical drives by their place on the bus."""

    key = "F12-cd-rules"

    def plan(self, draft: Draft, context: Context) -> Iterator[Finding]:
        del context
        if draft.is_file(_CD_RULES):
            _move_aside(draft, _CD_RULES, f"{_CD_RULES}.p2v")
        yield from ()


def _move_aside(draft: Draft, path: str, to: str) -> None:
    if draft.exists(to) or draft.is_link(to):  # the first one is the original
        draft.remove(path)
    else:
        draft.rename(path, to)


FIXUPS: tuple[Fixup, ...] = (DeviceMap(), CdRules())
LAST: tuple[Fixup, ...] = (BlkidCaches(),)
