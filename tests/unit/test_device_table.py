"""Partition tables: what tools write, what they leave behind, and garbage."""

import struct
import uuid
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.device.table import (
    FILE_SYSTEM_BYTES,
    TABLE_BYTES,
    Table,
    file_system_id,
    parse_table,
)

GUID = uuid.UUID("5f3c1e0a-9d8b-4c7a-a1b2-c3d4e5f60718")


def mbr(*types: int, signature: int = 0, boot_flag: int = 0) -> bytes:
    sector = bytearray(512)
    struct.pack_into("<I", sector, 440, signature)
    for number, kind in enumerate(types):
        struct.pack_into("<BxxxBxxxII", sector, 446 + 16 * number, boot_flag, kind, 2048, 4096)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def gpt(offset: int, guid: uuid.UUID = GUID, *, size: int = 92, is_damaged: bool = False) -> bytes:
    header = bytearray(size)
    struct.pack_into("<8sII", header, 0, b"EFI PART", 0x10000, size)
    header[56:72] = guid.bytes_le
    struct.pack_into("<I", header, 16, zlib.crc32(header) ^ is_damaged)
    return (mbr(0xEE).ljust(offset, b"\0") + header).ljust(TABLE_BYTES, b"\0")


def test_dos() -> None:
    assert parse_table(mbr(0x83, signature=0x1234ABCD), 512) == Table("dos", "1234abcd")
    assert parse_table(mbr(0x07, boot_flag=0x80), 512) == Table("dos", "")
    assert parse_table(mbr(signature=0x1F), 512) == Table("dos", "0000001f")


@pytest.mark.parametrize(("offset", "sector_size"), [(512, 512), (4096, 4096), (4096, 512)])
def test_gpt_also_in_the_image_of_a_4kn_disk(offset: int, sector_size: int) -> None:
    assert parse_table(gpt(offset), sector_size) == Table("gpt", str(GUID))


def test_hybrid_mbr_is_gpt() -> None:
    hybrid = mbr(0xEE, 0x83) + gpt(512)[512:]
    assert parse_table(hybrid, 512) == Table("gpt", str(GUID))


def test_protective_mbr_without_a_good_header_is_gpt_without_id() -> None:
    assert parse_table(gpt(512, is_damaged=True), 512) == Table("gpt", "")
    assert parse_table(mbr(0xEE), 512) == Table("gpt", "")
    assert parse_table(gpt(512, uuid.UUID(int=0)), 512) == Table("gpt", "")


@pytest.mark.parametrize("size", [0, 91, 4097, 0xFFFFFFFF])
def test_header_size_is_bounded(size: int) -> None:
    raw = bytearray(gpt(512))
    struct.pack_into("<I", raw, 512 + 12, size)
    assert parse_table(bytes(raw), 512) == Table("gpt", "")


def test_stale_gpt_under_a_dos_table_does_not_count() -> None:
    assert parse_table(mbr(0x83) + gpt(512)[512:], 512) == Table("dos", "")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(511),
        bytes(TABLE_BYTES),
        bytes(512) + gpt(512)[512:],  # a leftover without any MBR
        mbr(),
        mbr(0x83, boot_flag=0x4E),
        mbr(0x83)[:-1] + b"\0",
        b"\xeb\x52\x90NTFS    " + mbr(signature=7)[11:],
        (b"\xeb\x58\x90".ljust(82, b"\0") + b"FAT32   ") + mbr(signature=7)[90:],
    ],
)
def test_not_a_table(raw: bytes) -> None:
    assert parse_table(raw, 512) is None


@given(st.binary(max_size=1200), st.integers(-1, 70_000))
def test_hostile_bytes_never_raise(raw: bytes, sector_size: int) -> None:
    parse_table(raw, sector_size)


@given(st.binary(min_size=1, max_size=700), st.integers(0, 1000), st.sampled_from([512, 4096]))
def test_hostile_bytes_in_a_real_table_never_raise(raw: bytes, at: int, sector_size: int) -> None:
    table = bytearray(gpt(512))
    table[at : at + len(raw)] = raw
    found = parse_table(bytes(table), sector_size)
    assert found is None or found.kind in ("gpt", "dos")


@pytest.mark.parametrize(
    ("kind", "magic_at", "magic", "uuid_at"),
    [
        ("ext", 1080, b"\x53\xef", 1128),
        ("xfs", 0, b"XFSB", 32),
        ("btrfs", 65600, b"_BHRfS_M", 65568),
    ],
)
def test_p10_a_disk_that_is_one_file_system_has_its_id(
    kind: str, magic_at: int, magic: bytes, uuid_at: int
) -> None:
    name = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
    head = bytearray(FILE_SYSTEM_BYTES)
    head[magic_at : magic_at + len(magic)] = magic
    assert file_system_id(bytes(head)) == ""
    head[uuid_at : uuid_at + 16] = name.bytes
    assert file_system_id(bytes(head)) == f"{kind}:{name}"


@given(head=st.binary(max_size=2000))
def test_no_bytes_make_the_file_system_id_raise(head: bytes) -> None:
    file_system_id(head)
