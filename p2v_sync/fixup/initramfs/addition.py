"""What is appended to an initramfs: modules, what finds them, and files.

Rules of init/initramfs.c that are kept here: a later file replaces an earlier one; a directory that
is there is not named again (over a link, the link would be gone); an archive starts at a multiple
of four; kernels before 2.6.34 do not shorten a file that is replaced.
"""

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from p2v_sync.fixup.guest import Generator
from p2v_sync.fixup.initramfs import compression, cpio, kmod_index
from p2v_sync.fixup.initramfs.contents import Contents
from p2v_sync.fixup.initramfs.cpio import Entry
from p2v_sync.fixup.initramfs.modules import Modules, module_name, plain, suffix
from p2v_sync.units import MIB

MODULE_MOST = 64 * MIB  # bytes, unpacked
_LIST = "conf/modules"  # what initramfs-tools loads before anything else

Read = Callable[[str], bytes]  # a file of the guest


def with_modules(
    contents: Contents, modules: Modules, names: Sequence[str], read: Read
) -> dict[str, bytes]:
    """The files that make ``names``, and all that they need, loadable inside.

    Raises BadArchive for a module that can't be unpacked, and what ``read`` does.
    """
    home = contents.resolve(f"lib/modules/{modules.version}")
    kept = {suffix(path) for path in contents.modules.values()}
    added: dict[str, bytes] = {}
    for name in modules.closure(names):
        if name not in contents.modules:
            path = modules.files[name]
            data = read(f"{modules.directory}/{path}")
            if suffix(path) not in kept:
                path, data = _unpacked(path, data)
            added[f"{home}/{path}"] = data
    places = {**contents.modules, **{module_name(path): path for path in added}}
    added.update(_indices(contents, modules, places, home))
    if contents.generator is Generator.INITRAMFS_TOOLS:
        added[_LIST] = _with_names(contents.data(_LIST) or b"", names)
    return added


def _unpacked(path: str, data: bytes) -> tuple[str, bytes]:
    """Without its compression, which the initramfs's own modprobe might not know."""
    kind = compression.recognised(memoryview(data), 0)
    if kind is None:
        return path, data
    found, _ = compression.decompress(kind, memoryview(data), 0, MODULE_MOST)
    return path.removesuffix(suffix(path)) + ".ko", bytes(found)


def _with_names(text: bytes, names: Iterable[str]) -> bytes:
    there = {plain(line.split()[0].decode("latin-1")) for line in text.split(b"\n") if line.split()}
    more = "".join(f"{name}\n" for name in names if name not in there).encode()
    return text + (b"\n" if text and not text.endswith(b"\n") else b"") + more


def _indices(
    contents: Contents, modules: Modules, places: Mapping[str, str], home: str
) -> dict[str, bytes]:
    """modules.dep and modules.alias of all that will be inside, for any modprobe and for udev.

    From the installed kernel's own, with the paths inside: some generators unpack modules.
    """
    start = f"/lib/modules/{modules.version}/" if modules.is_absolute else ""
    paths = {name: start + path.removeprefix(f"{home}/") for name, path in places.items()}
    lines = []
    for name in sorted(paths):
        needs = [paths[need] for need in reversed(modules.closure([name])[:-1]) if need in paths]
        lines.append((name, " ".join([f"{paths[name]}:", *needs])))
    own = _lines(contents, f"{home}/modules.alias")
    aliases = [pair for pair in modules.aliases if pair[1] in paths]
    # Of modules that are in the image alone: they were removed from the guest.
    aliases += [pair for pair in own if pair[1] in paths and pair[1] not in modules.files]
    found = {
        "modules.dep": "".join(f"{line}\n" for _, line in lines).encode("latin-1"),
        "modules.dep.bin": kmod_index.index(lines),
        "modules.alias": "".join(f"alias {pattern} {name}\n" for pattern, name in aliases).encode(),
        "modules.alias.bin": kmod_index.index(_normal(aliases)),
    }
    return {f"{home}/{name}": data for name, data in found.items()}


def _lines(contents: Contents, path: str) -> Iterator[tuple[str, str]]:
    for line in (contents.data(path) or b"").split(b"\n"):
        words = line.split()
        if len(words) == 3 and words[0] == b"alias" and line.isascii() and len(line) < 500:
            yield words[1].decode(), plain(words[2].decode())


def _normal(aliases: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """As kmod's alias_normalize: ``-`` is ``_``, but not between brackets."""
    for pattern, name in aliases:
        parts = pattern.split("[")
        rest = [part.partition("]") for part in parts[1:]]
        if "]" in parts[0] or any(not end or "]" in tail for _, end, tail in rest):
            continue
        yield plain(parts[0]) + "".join(f"[{each}]{plain(tail)}" for each, _, tail in rest), name


def archive(contents: Contents, files: Mapping[str, bytes]) -> bytes:
    """What to write behind the image so that these files are in it.

    ``files``: by path, without a slash before it.
    """
    entries: list[Entry] = []
    there = set(contents.files)
    for name, data in sorted(files.items()):
        path = contents.resolve(name)
        entries += [cpio.directory(each) for each in _parents(path) if each not in there]
        there |= {*_parents(path), path}
        old = contents.files.get(path)
        mode = stat.S_IMODE(old.mode) if old is not None and old.is_file else 0o644
        entries.append(cpio.file(path, _not_shorter(contents, path, data), mode))
    packed = cpio.write(entries)
    if contents.ends_in_lz4:
        # It goes on within the stream: what counts is the offset in what was unpacked.
        return compression.as_lz4(bytes(-contents.image.segments[-1].unpacked % 4) + packed)
    return bytes(-contents.image.length % 4) + packed


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _not_shorter(contents: Contents, path: str, data: bytes) -> bytes:
    old = contents.data(path)
    missing = 0 if old is None else max(0, len(old) - len(data))
    return data + (b"\0" if path.endswith(".bin") else b"\n") * missing
