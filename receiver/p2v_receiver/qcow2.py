"""A qcow2 overlay that holds a delta above the raw replica, written without any program.

The format: docs/interop/qcow2.rst of QEMU.  Version 3 with clusters of 64 KiB, reference counts of
16 bits that are all 1, in this order: header, reference counts, L1 table, L2 tables, data.
"""

import contextlib
import os
import struct
from typing import Dict, List, Tuple

from .delta import Delta
from .place import Draft
from .target import Image

_CLUSTER_BITS = 16
CLUSTER = 1 << _CLUSTER_BITS
_TABLE = CLUSTER // 8  # entries of an L1, an L2 or a reference count table
_COUNTS = CLUSTER // 2  # in a block of reference counts
_USED_ONCE = 1 << 63
_HEADER = struct.Struct("!4sIQIIQIIQQIIQQQQII")
_EXTENSION = struct.Struct("!II")
_RAW_BACKING = _EXTENSION.pack(0xE2792ACA, 3) + b"raw".ljust(8, b"\0") + _EXTENSION.pack(0, 0)


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)


def _counts(others: int) -> Tuple[int, int]:
    """Clusters of the reference count table and blocks, for themselves and ``others``."""
    table, blocks = 1, 1
    while True:
        wanted = _ceil(others + table + blocks, _COUNTS)
        if (_ceil(wanted, _TABLE), wanted) == (table, blocks):
            return table, blocks
        table, blocks = _ceil(wanted, _TABLE), wanted


def _packed(entries: List[int], clusters: int) -> bytes:
    return struct.pack("!{}Q".format(len(entries)), *entries).ljust(clusters * CLUSTER, b"\0")


def _clusters_of(delta: Delta) -> List[int]:
    """The clusters of the disk in which something differs, in order."""
    found: List[int] = []
    for run in delta.runs():
        first = run.start // CLUSTER
        if found and found[-1] == first:
            first += 1
        found.extend(range(first, (run.end - 1) // CLUSTER + 1))
    return found


def _head(size: int, clusters: List[int], backing: bytes) -> bytes:
    """All in front of the data; the data clusters follow in the order of ``clusters``."""
    tables = sorted({cluster // _TABLE for cluster in clusters})
    l1_length = _ceil(size, CLUSTER * _TABLE)
    l1_clusters = _ceil(l1_length, _TABLE)
    count_table, count_blocks = _counts(1 + l1_clusters + len(tables) + len(clusters))
    l1_at = 1 + count_table + count_blocks
    l2_at = l1_at + l1_clusters
    data_at = l2_at + len(tables)
    extensions = _HEADER.size + len(_RAW_BACKING)
    head = _HEADER.pack(
        b"QFI\xfb",
        3,
        extensions,
        len(backing),
        _CLUSTER_BITS,
        _ceil(size, 512) * 512,  # QEMU knows no half sectors
        0,  # no encryption
        l1_length,
        l1_at * CLUSTER,
        CLUSTER,
        count_table,
        0,  # no snapshots
        0,
        0,  # no features
        0,
        0,
        4,  # 1 << 4 bits a reference count
        _HEADER.size,
    )
    total = data_at + len(clusters)
    l1 = [0] * l1_length
    l2: Dict[int, List[int]] = {}
    for number, table in enumerate(tables):
        l1[table] = (l2_at + number) * CLUSTER | _USED_ONCE
        l2[table] = [0] * _TABLE
    for number, cluster in enumerate(clusters):
        l2[cluster // _TABLE][cluster % _TABLE] = (data_at + number) * CLUSTER | _USED_ONCE
    first_block = 1 + count_table
    return b"".join(
        [
            (head + _RAW_BACKING + backing).ljust(CLUSTER, b"\0"),
            _packed([(first_block + at) * CLUSTER for at in range(count_blocks)], count_table),
            (b"\0\1" * total).ljust(count_blocks * CLUSTER, b"\0"),
            _packed(l1, l1_clusters),
            *[_packed(l2[table], 1) for table in tables],
        ]
    )


def write_qcow2(path: str, image: Image, delta: Delta) -> None:
    """The overlay at ``path`` with ``image``, of the same directory, below it."""
    size = delta.base.size
    clusters = _clusters_of(delta)
    with contextlib.closing(Draft(path)) as draft:
        draft.write(_head(size, clusters, os.path.basename(image.path).encode()))
        pieces = delta.pieces()
        run, content = next(pieces, (None, memoryview(b"")))
        for cluster in clusters:
            start = cluster * CLUSTER
            data = memoryview(bytearray(CLUSTER))
            image.read_into(data[: min(CLUSTER, size - start)], start)
            while run is not None and run.start < start + CLUSTER:
                first, last = max(run.start, start), min(run.end, start + CLUSTER)
                data[first - start : last - start] = content[first - run.start : last - run.start]
                if last < run.end:
                    break
                run, content = next(pieces, (None, memoryview(b"")))
            draft.write(data)
        draft.keep()
