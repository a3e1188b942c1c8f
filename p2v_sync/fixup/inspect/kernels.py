"""Which kernels are installed, with what belongs to each, and which one is booted."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from p2v_sync.fixup.guest import BootEntry, Kernel
from p2v_sync.fixup.inspect.reader import Reader, path_of
from p2v_sync.fixup.inspect.unified import image_version, read_unified
from p2v_sync.fixup.inspect.versions import Key, version_key

_MODULES = ("/lib/modules", "/usr/lib/modules")
_NAMED = ("vmlinuz-", "vmlinux-", "kernel-", "Image-", "image-", "bzImage-")
_SPECIAL = re.compile(r"k?dump|rescue|fallback", re.IGNORECASE)
_MOST = 100


@dataclass(frozen=True)
class _Installed:
    """A version, with its directory of modules ('' none)."""

    version: str
    modules: str


def find_kernels(reader: Reader, entry: BootEntry | None) -> tuple[Kernel, ...]:
    """The default one first, then the newest, those for rescue last."""
    boot = _Boot(reader)
    found = {each.version: boot.kernel(each) for each in _installed(reader)}
    found |= {kernel.version: kernel for kernel in boot.rescue_kernels()}
    if entry is not None and entry.kernel:
        default = boot.default_kernel(entry, found)
        found[default.version] = default
    elif found:
        reader.note("which kernel is booted could not be found out; the newest is listed first")
    if not found:
        reader.note("no kernel was found")
    return tuple(sorted(found.values(), key=_order, reverse=True))


def _order(kernel: Kernel) -> tuple[bool, bool, Key]:
    return kernel.is_default, not kernel.is_rescue, version_key(kernel.version)


def _installed(reader: Reader) -> Iterator[_Installed]:
    """A directory that a removed kernel left behind has no modules.dep."""
    seen = set[str]()
    for directory in _MODULES:
        for name in reader.names(directory)[:_MOST]:
            path = f"{directory}/{name}"
            if name not in seen and reader.is_file(f"{path}/modules.dep"):
                seen.add(name)
                yield _Installed(name, path)


class _Boot:
    """What lies in /boot."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._names = [name for name in reader.names("/boot") if reader.is_file(f"/boot/{name}")]

    def kernel(self, installed: _Installed) -> Kernel:
        """A kernel with what is called like it."""
        version, modules = installed.version, installed.modules
        image = self._image(installed)
        return Kernel(
            version,
            image,
            self._initramfs(version, image, modules),
            modules,
            self._reader.first_file(f"/boot/config-{version}", f"{modules}/config"),
            is_rescue=bool(_SPECIAL.search(version)),
            other_initramfs=tuple(self._others(version, image)),
        )

    def rescue_kernels(self) -> Iterator[Kernel]:
        """``vmlinuz-0-rescue-MACHINE``: a copy of some kernel, with drivers for everything."""
        for name in self._names:
            if name.startswith("vmlinuz-0-rescue-"):
                version = name.removeprefix("vmlinuz-")
                image = self._reader.first_file(f"/boot/initramfs-{version}.img")
                yield Kernel(version, f"/boot/{name}", image, is_rescue=True)

    def default_kernel(self, entry: BootEntry, found: dict[str, Kernel]) -> Kernel:
        """The entry says with which image and initramfs its kernel is booted."""
        image = self._reader.resolved(entry.kernel)
        by_image = (each for each in found.values() if self._is_same(each.image, image))
        kernel = next(by_image, None) or self._by_version(entry.kernel, image, found)
        if kernel is None:
            version = self._version(image) or path_of(image).rpartition("/")[2]
            self._reader.note(f"{entry.kernel} is booted, but there are no modules for it")
            kernel = Kernel(version)
        return replace(kernel, image=entry.kernel, initramfs=entry.initramfs, is_default=True)

    def _is_same(self, path: str, resolved: str) -> bool:
        return bool(path) and self._reader.resolved(path) == resolved

    def _by_version(self, path: str, image: str, found: dict[str, Kernel]) -> Kernel | None:
        said = self._version(image)
        if said in found:
            return found[said]
        names = {path.rpartition("/")[2], image.rpartition("/")[2]}
        alike = [version for version in found for name in names if version in name]
        return found[max(alike, key=len)] if alike else None

    def _version(self, image: str) -> str:
        return image_version(self._reader, image) or read_unified(self._reader, image).version

    def _image(self, installed: _Installed) -> str:
        """By its name; then by what Arch notes down; then by the image's own words."""
        version, modules = installed.version, installed.modules
        packaged = next(self._reader.lines(f"{modules}/pkgbase"), "")
        usual = [f"/boot/{start}{version}" for start in _NAMED]
        usual += [f"/boot/vmlinux-{version}.gz"]
        usual += [f"/boot/vmlinuz-{packaged}"] if packaged and "/" not in packaged else []
        return (
            self._reader.first_file(*usual)
            or next(iter(self._reader.files("/boot/*/" + _literal(version) + "/linux")), "")
            or self._by_header(version)
            or self._reader.first_file(f"{modules}/vmlinuz")
        )

    def _by_header(self, version: str) -> str:
        paths = [f"/boot/{name}" for name in self._names if not name.startswith("init")]
        return next((path for path in paths if image_version(self._reader, path) == version), "")

    def _initramfs(self, version: str, image: str, modules: str) -> str:
        """The shortest name that fits, none of those for special purposes."""
        names = [name for name in self._names if not _SPECIAL.search(name.replace(version, ""))]
        for suffix in self._suffixes(version, image):
            pattern = re.compile(
                rf"init(rd|ramfs)(\.img)?-(genkernel-\w+-)?{re.escape(suffix)}(\.img)?(\.\w{{1,4}})?"
            )
            if fitting := [name for name in names if pattern.fullmatch(name)]:
                return f"/boot/{min(fitting, key=len)}"
        beside = f"{image.rpartition('/')[0]}/initrd" if image.endswith("/linux") else ""
        return self._reader.first_file(*filter(None, (beside, f"{modules}/initrd")))

    def _others(self, version: str, image: str) -> Iterator[str]:
        suffixes = self._suffixes(version, image)
        for name in self._names:
            rest = name.replace(version, "")
            is_ours = any(f"-{suffix}" in name for suffix in suffixes)
            if name.startswith("init") and is_ours and _SPECIAL.search(rest):
                yield f"/boot/{name}"

    @staticmethod
    def _suffixes(version: str, image: str) -> Sequence[str]:
        """vmlinuz-lts has initramfs-lts."""
        _, _, name = image.rpartition("/")[2].partition("-")
        return tuple(dict.fromkeys(filter(None, (version, name))))


def _literal(name: str) -> str:
    """Nothing of a version is a pattern."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
