"""Where the kernel is that a boot loader names: each has its own idea of where / is."""

import re
from collections.abc import Iterator, Sequence

from p2v_sync.fixup.inspect.reader import Reader, joined, path_of

_DEVICE = re.compile(r"^\([^)]*\)|^\$root(?=/)")
_DEEP = 8  # subvolumes that may stand before a path


class Locator:
    """``esps``: where EFI system partitions are mounted."""

    def __init__(self, reader: Reader, esps: Sequence[str]) -> None:
        self._reader = reader
        self._esps = esps

    def find(self, written: str, config: str = "") -> str:
        """The guest's path of a file that ``config`` calls ``written``; '' when it is not there."""
        path = path_of(_DEVICE.sub("", written).replace("\\", "/"))
        if not path.strip("/"):
            return ""
        tried = self._places(path, config)
        return next((place for place in tried if self._reader.is_file(place)), "")

    def _places(self, path: str, config: str) -> Iterator[str]:
        if not path.startswith("/"):
            yield joined(config.rpartition("/")[0], path)
        for rest in self._without_subvolumes("/" + path.lstrip("/")):
            # /boot is a file system of its own, or not; /vmlinuz may be a link for people.
            yield from (rest,) if rest.startswith("/boot/") else (f"/boot{rest}", rest)
            for esp in self._esps:
                yield joined(esp, rest)

    @staticmethod
    def _without_subvolumes(path: str) -> Iterator[str]:
        """``/@/boot/vmlinuz``, then ``/boot/vmlinuz``, then ``/vmlinuz``."""
        for _ in range(_DEEP):
            yield path
            _, _, rest = path[1:].partition("/")
            if not rest:
                return
            path = f"/{rest}"
