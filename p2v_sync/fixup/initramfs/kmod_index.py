"""The binary indices of kmod (modules.dep.bin, modules.alias.bin), written without depmod.

udev and modprobe look into nothing else.  Format: libkmod-index.h of kmod: a trie, a node of which
is its prefix, the offsets of its children from the first to the last character used, and its values
with their priorities; the flags in an offset say which of these a node has.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_MAGIC, _VERSION = 0xB007F457, 0x00020001
_PREFIX, _VALUES, _CHILDREN = 0x80000000, 0x40000000, 0x20000000
_FURTHEST = 0x0FFFFFFF

Values = list[tuple[int, bytes]]  # with their priorities: the lowest is used first


@dataclass
class _Node:
    prefix: bytes
    children: dict[int, "_Node"] = field(default_factory=dict)
    values: Values = field(default_factory=list)


def index(pairs: Iterable[tuple[str, str]]) -> bytes:
    """An index of these keys and values; an earlier value goes before a later one.

    Raises ValueError for a key that is not ASCII, or too much of all.
    """
    found: dict[bytes, Values] = {}
    for priority, (key, value) in enumerate(pairs):
        name = key.encode("ascii")
        if b"\0" in name:
            raise ValueError("a key with a zero in it")
        found.setdefault(name, []).append((priority, value.encode("ascii")))
    output = bytearray(struct.pack(">III", _MAGIC, _VERSION, 0))
    root = _written(_trie(found, 0), output)
    if len(output) > _FURTHEST:
        raise ValueError("too much for one index")
    struct.pack_into(">I", output, 8, root)
    return bytes(output)


def _trie(found: Mapping[bytes, Values], depth: int) -> _Node:
    """Of keys that are the same up to ``depth``."""
    prefix = _shared(min(found)[depth:], max(found)[depth:]) if found else b""
    node = _Node(prefix)
    depth += len(prefix)
    below: dict[int, dict[bytes, Values]] = {}
    for key in sorted(found):
        if len(key) == depth:
            node.values = found[key]
        else:
            below.setdefault(key[depth], {})[key] = found[key]
    node.children = {first: _trie(keys, depth + 1) for first, keys in below.items()}
    return node


def _shared(first: bytes, last: bytes) -> bytes:
    """The longest start of both, and of all that sorts between them."""
    differs = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(differs, min(len(first), len(last)))]


def _written(node: _Node, output: bytearray) -> int:
    """Append a node, behind all that is below it; its offset with its flags."""
    offsets = {first: _written(child, output) for first, child in node.children.items()}
    start, flags = len(output), 0
    if node.prefix:
        flags |= _PREFIX
        output += node.prefix + b"\0"
    if offsets:
        flags |= _CHILDREN
        first, last = min(offsets), max(offsets)
        output += bytes((first, last))
        for each in range(first, last + 1):
            output += struct.pack(">I", offsets.get(each, 0))
    if node.values:
        flags |= _VALUES
        output += struct.pack(">I", len(node.values))
        for priority, value in node.values:
            output += struct.pack(">I", priority) + value + b"\0"
    return start | flags
