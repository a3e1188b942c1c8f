"""Used-block maps: what is taken for zero, and what is not believed."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.device import file_systems
from p2v_sync.device.domain_log import parse_unused
from p2v_sync.device.file_systems import Read
from p2v_sync.device.used import UnusedMap, UsedSource, _worth_it
from p2v_sync.device.volumes import overlapping, parse_partitions, parse_probe
from p2v_sync.extent import Extent
from p2v_sync.units import KIB, MIB

# The domain log.

SIZE = 0x4000000
LOG = """\
# Domain logfile created by unset_name v0.3.23
# Source: /dev/loop0
# Offset: 0x00000000
# current_pos  current_status
0x04000000     ?
#      pos        size  status
0x00000000  0x00448400  +
0x00448400  0x003B8000  ?
0x00800400  0x037FFC00  +
"""
LINES = LOG.splitlines(keepends=True)


def format_log(runs: Sequence[tuple[int, bool]]) -> list[str]:
    """As partclone writes it; ``runs``: length, is used."""
    total = sum(length for length, _ in runs)
    lines, position = [f"0x{total:08X}     ?\n"], 0
    for length, is_used in runs:
        lines.append(f"0x{position:08X}  0x{length:08X}  {'+' if is_used else '?'}\n")
        position += length
    return lines


def test_a_domain_log() -> None:
    assert list(parse_unused(LINES, SIZE)) == [Extent(0x448400, 0x3B8000)]
    # What there is beyond the file system is no part of it.
    assert list(parse_unused(LINES, SIZE + 512)) == [Extent(0x448400, 0x3B8000)]


runs = st.lists(st.tuples(st.integers(1, 1 << 40), st.booleans()), min_size=1, max_size=20)


@given(runs)
def test_any_domain_log(runs: list[tuple[int, bool]]) -> None:
    total = sum(length for length, _ in runs)
    found = list(parse_unused(format_log(runs), total))
    assert sum(extent.length for extent in found) == sum(n for n, used in runs if not used)
    with pytest.raises(ValueError, match="bytes, and there are"):
        list(parse_unused(format_log(runs), total - 1))


@given(runs, st.data())
def test_a_domain_log_that_is_cut_short_or_lacks_a_line(
    runs: list[tuple[int, bool]], data: st.DataObject
) -> None:
    lines = format_log(runs)
    total = sum(length for length, _ in runs)
    text = "".join(lines)
    cut = data.draw(st.integers(0, len(text) - 4))
    with pytest.raises(ValueError, match="domain log"):
        list(parse_unused(text[:cut].splitlines(keepends=True), total))
    del lines[data.draw(st.integers(0, len(lines) - 1))]
    with pytest.raises(ValueError, match="domain log"):
        list(parse_unused(lines, total))


@pytest.mark.parametrize(
    "line",
    [
        "0x00448400  0x003B8000  -\n",
        "0x00448400  0x003B8000\n",
        "0x00448400  0x00000000  ?\n",
        "0x00448000  0x003B8400  ?\n",
        "0x00448401  0x003B7FFF  ?\n",
        "0x00448400  0xFFFFFFFFFFFFFFFF  ?\n",
        "00448400  003B8000  ?\n",
        "\n",
        "0x" + "0" * 100_000 + "  0x1  ?\n",
    ],
)
def test_a_domain_log_with_a_wrong_line(line: str) -> None:
    with pytest.raises(ValueError, match="domain log"):
        list(parse_unused([*LINES[:7], line, LINES[8]], SIZE))


@given(st.text(alphabet="0x+?# \n123F", max_size=200))
def test_noise_is_no_domain_log(text: str) -> None:
    try:
        found = list(parse_unused(text.splitlines(keepends=True), 1 << 20))
    except ValueError:
        return
    assert all(extent.end <= 1 << 20 for extent in found)


def test_what_is_left_out_of_a_volume() -> None:
    runs = [(64 * KIB, True), (2 * MIB, False), (KIB, True), (32 * KIB, False), (MIB, True)]
    log = format_log(runs)
    volume = Extent(7 * MIB, sum(length for length, _ in runs) + 512)
    # Neither the first MiB of it nor short gaps.
    wanted = [Extent(8 * MIB, MIB + 64 * KIB)]
    used = 64 * KIB + KIB + MIB + 512
    assert _worth_it(log, volume, used) == wanted
    with pytest.raises(ValueError, match="the file system says"):
        _worth_it(log, volume, used + 1)


# The map and the source that obeys it.

DISK = bytes(1 + at % 251 for at in range(4096))


class MemorySource:
    """A disk of 4096 bytes, with a hole in its image and a record of what was read."""

    size = len(DISK)
    hole = Extent(1000, 500)

    def __init__(self) -> None:
        self.touched: set[int] = set()

    def read_into(self, buffer: memoryview, start: int) -> list[Extent]:
        assert len(buffer)
        self.touched.update(range(start, start + len(buffer)))
        buffer[:] = DISK[start : start + len(buffer)]
        return [Extent(start, 1)] if start <= 2000 < start + len(buffer) else []

    def next_data(self, start: int) -> int:
        return self.hole.end if self.hole.start <= start < self.hole.end else start


extents = st.lists(st.builds(Extent, st.integers(0, 4000), st.integers(0, 90)), max_size=12)
ranges = st.tuples(st.integers(0, 4095), st.integers(1, 4096)).map(
    lambda pair: (pair[0], min(4096, pair[0] + pair[1]))
)


@given(extents, ranges)
def test_reading_what_is_used(unused: list[Extent], wanted: tuple[int, int]) -> None:
    start, end = wanted
    free = {at for extent in unused for at in range(extent.start, extent.end)}
    memory = MemorySource()
    source = UsedSource(memory)  # type: ignore[arg-type]
    source.leave_out(UnusedMap(unused))
    buffer = bytearray(b"\xee" * (end - start))
    bad = source.read_into(memoryview(buffer), start)
    assert buffer == bytes(0 if at in free else DISK[at] for at in range(start, end))
    assert memory.touched == {at for at in range(start, end) if at not in free}
    assert not bad or 2000 not in free
    data = [at for at in range(start, 4096) if at not in free and not 1000 <= at < 1500]
    assert source.next_data(start) == min([*data, 4096])


@given(extents)
def test_equal_maps_have_equal_digests(unused: list[Extent]) -> None:
    one, other = UnusedMap(unused), UnusedMap(reversed(unused))
    assert one.digest == other.digest
    assert one.length == len({at for e in unused for at in range(e.start, e.end)})
    assert UnusedMap([*unused, Extent(5000, 1)]).digest != one.digest


# Which file systems are believed.


def reading(data: bytes) -> Read:
    def read(start: int, length: int) -> bytes:
        assert start >= 0
        if start + length > len(data):
            raise ValueError("it ends beyond its partition")
        return data[start : start + length]

    return read


def ext(state: int = 1, incompatible: int = 0, compatible: int = 0) -> Read:
    block = bytearray(4096)
    struct.pack_into("<II", block, 1028, 100, 0)
    struct.pack_into("<I", block, 1024 + 12, 60)
    struct.pack_into("<I", block, 1024 + 24, 2)
    struct.pack_into("<H", block, 1024 + 58, state)
    struct.pack_into("<II", block, 1024 + 96, incompatible, compatible)
    struct.pack_into("<I", block, 1024 + 0x150, 1)
    return reading(bytes(block))


def test_ext() -> None:
    assert file_systems.judge_ext(ext()) == ("", 40 * 4096)
    assert file_systems.judge_ext(ext(incompatible=0x80)).least_used == (2**32 + 40) * 4096
    assert "unmounted" in file_systems.judge_ext(ext(state=0)).refusal
    assert "unmounted" in file_systems.judge_ext(ext(incompatible=4)).refusal
    assert "errors" in file_systems.judge_ext(ext(state=3)).refusal
    assert "bigalloc" in file_systems.judge_ext(ext(compatible=0x200)).refusal


def test_xfs() -> None:
    block = bytearray(512)
    struct.pack_into(">IQ", block, 4, 4096, 1000)
    struct.pack_into(">H", block, 100, 0xB4A5)
    struct.pack_into(">Q", block, 144, 900)
    assert file_systems.judge_xfs(reading(bytes(block))) == ("", 100 * 4096)
    struct.pack_into(">I", block, 216, 0x10)  # needs repair
    assert "0x10" in file_systems.judge_xfs(reading(bytes(block))).refusal
    assert file_systems.xfs_log_refusal(b"log tail: 2 head: 2 state: <CLEAN>\n") == ""
    assert "unmounted" in file_systems.xfs_log_refusal(b"log tail: 2 head: 8 state: <DIRTY>\n")
    assert file_systems.xfs_log_refusal(b"") != ""


def test_btrfs() -> None:
    block = bytearray(65536 + 4096)
    struct.pack_into("<QQ", block, 65536 + 0x78, 12345, 0)
    struct.pack_into("<Q", block, 65536 + 0x88, 1)
    assert file_systems.judge_btrfs(reading(bytes(block))) == ("", 12345)
    for offset, value, reason in ((0x60, 1, "log tree"), (0x88, 2, "other devices")):
        other = bytearray(block)
        struct.pack_into("<Q", other, 65536 + offset, value)
        assert reason in file_systems.judge_btrfs(reading(bytes(other))).refusal
    struct.pack_into("<Q", block, 65536 + 0x38, 1 << 32)
    assert file_systems.judge_btrfs(reading(bytes(block))).refusal


def test_fat_is_read_to_the_end_of_its_first_table() -> None:
    boot = bytearray(512)
    struct.pack_into("<HBHB", boot, 11, 512, 1, 32, 2)
    struct.pack_into("<I", boot, 36, 100)  # FAT32
    whole = bytes(boot) + bytes(131 * 512)
    assert file_systems.judge_fat(reading(whole)) == ("", 232 * 512)
    with pytest.raises(ValueError, match="beyond"):
        file_systems.judge_fat(reading(whole[:-1]))
    boot[65] = 1
    assert "unmounted" in file_systems.judge_fat(reading(bytes(boot))).refusal


def restart_page(lsn: int, in_use: int, flags: int) -> bytes:
    page = bytearray(4096)
    struct.pack_into("<4s12xI4xH", page, 0, b"RSTR", 4096, 48)
    struct.pack_into("<QHHHH", page, 48, lsn, 1, 0, in_use, flags)
    return bytes(page)


def test_ntfs_the_newer_restart_page_counts() -> None:
    clean, in_use = restart_page(2, 0, 2), restart_page(3, 0, 0)
    refusal = file_systems.ntfs_log_refusal
    assert refusal(b"\xff" * 8192) == ""
    assert refusal(clean + restart_page(1, 0, 0)) == ""
    assert refusal(clean + restart_page(3, 0xFFFF, 0)) == ""
    assert "hibernated" in refusal(clean + in_use)
    assert "hibernated" in refusal(in_use + clean)
    for nonsense in (b"", b"CHKD" + bytes(8188), bytes(8192), clean[:50], b"RSTR" + b"\xee" * 99):
        assert refusal(nonsense) != ""
    assert file_systems.hibernation_refusal(bytes(4096)) == ""
    assert file_systems.hibernation_refusal(b"WAKE" + bytes(92)) == ""
    assert "hibernated" in file_systems.hibernation_refusal(b"hibr" + bytes(92))


@given(st.binary(max_size=9000))
def test_hostile_bytes_are_refused_or_judged(data: bytes) -> None:
    assert isinstance(file_systems.ntfs_log_refusal(b"RSTR" + data), str)
    for judge in (file_systems.judge_ext, file_systems.judge_xfs, file_systems.judge_fat):
        try:
            judge(reading(data))
        except ValueError:
            continue


def test_complaints() -> None:
    fine = "bitmap 8192 bytes, checksum 0 bytes\nSyncing... OK!\nCloned successfully."
    assert file_systems.complaint_in(fine) == ""
    for line in ("failed to read 123 in tree 2", "Error searching csum tree -5", "x: BUG"):
        assert file_systems.complaint_in(f"{fine}\n{line}\n") == line


# Where the file systems are.


def test_probes_and_partitions() -> None:
    text = "DEVNAME=x.img\nLABEL=a=b\nTYPE=ext4\nUSAGE=filesystem\n\n"
    assert parse_probe(text)["TYPE"] == "ext4"
    text = "1 2048 65536 dos 0x83\n2 70000 100000 dos 0x5\n5 72048 20000 dos 0x83\n"
    size = 170_000 * 512
    assert parse_partitions(text, size) == [
        ("1", Extent(MIB, 32 * MIB)),
        ("5", Extent(72048 * 512, 20000 * 512)),
    ]
    for nonsense, bytes_there in ((text, size - 1), ("1 2 3\n", size), ("1 -1 2 gpt x\n", size)):
        with pytest.raises(ValueError, match=r"partx|beyond"):
            parse_partitions(nonsense, bytes_there)


@given(extents)
def test_overlaps(parts: list[Extent]) -> None:
    parts = [extent for extent in parts if extent.length]
    found = overlapping(parts)
    for at, one in enumerate(parts):
        others = parts[:at] + parts[at + 1 :]
        if any(one.start < other.end and other.start < one.end for other in others):
            assert one in found
        else:
            assert one not in found
