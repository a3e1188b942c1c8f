"""Which partition table a disk has, from its first bytes.  Pure: hostile bytes never raise.

MBR, in the first 512 bytes         GPT header, in the second logical sector (UEFI 2.10, 5.3.2)
  440  disk signature, LE, 32 bit     0   "EFI PART"
  446  four entries of 16 bytes:     12   header size, LE, 32 bit
       0 boot flag (0x00 or 0x80)    16   CRC32 of the header with this field zero
       4 type (0: unused)            56   disk GUID, mixed endian
       8 start, 12 count (sectors)
  510  0x55 0xAA
"""

import struct
import uuid
import zlib
from dataclasses import dataclass

# Enough for both structures at every sector size in use.
TABLE_BYTES = 8192

_MBR_SIZE = 512
_MBR_ENTRIES = range(446, 510, 16)
_MBR_MAGIC = b"\x55\xaa"
_TYPE_PROTECTIVE = 0xEE
_GPT_MAGIC = b"EFI PART"
_GPT_HEADER_MIN = 92
# The boot sectors of these also end in 55 AA.
_FILE_SYSTEMS = ((3, b"NTFS    "), (3, b"EXFAT   "), (54, b"FAT1"), (82, b"FAT32"))


@dataclass(frozen=True)
class Table:
    """``kind`` is ``gpt`` or ``dos``; ``id`` the GUID or signature as blkid's PTUUID, or ''."""

    kind: str
    id: str


def _gpt_header(first_bytes: bytes, offset: int) -> bytes:
    """The header at ``offset`` if magic and checksum are right, else nothing."""
    fixed = first_bytes[offset : offset + _GPT_HEADER_MIN]
    if len(fixed) < _GPT_HEADER_MIN or not fixed.startswith(_GPT_MAGIC):
        return b""
    size, checksum = struct.unpack_from("<II", fixed, 12)
    header = first_bytes[offset : offset + size] if _GPT_HEADER_MIN <= size <= 4096 else b""
    if not header or zlib.crc32(header[:16] + bytes(4) + header[20:]) != checksum:
        return b""
    return header


def _gpt_id(first_bytes: bytes, sector_size: int) -> str:
    # The image of a 4Kn disk is a file with 512-byte sectors to us, so the other size is tried too.
    for offset in dict.fromkeys((sector_size, 512, 4096)):
        header = _gpt_header(first_bytes, offset)
        if any(header[56:72]):
            return str(uuid.UUID(bytes_le=header[56:72]))
    return ""


def _is_mbr(mbr: bytes) -> bool:
    """True for a partition table, False for a file system's boot sector or anything else."""
    if len(mbr) < _MBR_SIZE or not mbr.endswith(_MBR_MAGIC):
        return False
    if any(mbr[entry] not in (0x00, 0x80) for entry in _MBR_ENTRIES):
        return False
    if any(mbr[446:510]):
        return True
    looks_formatted = any(mbr.startswith(magic, offset) for offset, magic in _FILE_SYSTEMS)
    return any(mbr[440:444]) and not looks_formatted


def parse_table(first_bytes: bytes, sector_size: int) -> Table | None:
    """The partition table in the first :data:`TABLE_BYTES` of a disk, or None.

    As in the kernel (block/partitions/efi.c) a GPT counts only below an MBR with a protective
    entry: otherwise it is a leftover of an earlier table.  A protective MBR whose GPT header is
    damaged is still ``gpt``, without an id.
    """
    mbr = first_bytes[:_MBR_SIZE]
    if not _is_mbr(mbr):
        return None
    if any(mbr[entry + 4] == _TYPE_PROTECTIVE for entry in _MBR_ENTRIES):
        return Table("gpt", _gpt_id(first_bytes, sector_size))
    (signature,) = struct.unpack_from("<I", mbr, 440)
    return Table("dos", f"{signature:08x}" if signature else "")


# Where the UUID of a file system without a partition table around it stands: offset and content
# of its magic, offset of the UUID (Documentation/filesystems/ext4/super.rst; xfs_format.h;
# btrfs_tree.h, whose super block is at 64 KiB).
_UUIDS = (
    ("ext", 1024 + 56, b"\x53\xef", 1024 + 104),
    ("xfs", 0, b"XFSB", 32),
    ("btrfs", 65536 + 64, b"_BHRfS_M", 65536 + 32),
)
FILE_SYSTEM_BYTES = 65536 + 4096


def file_system_id(first_bytes: bytes) -> str:
    """``ext:UUID`` and the like for a disk that is one file system, or ''."""
    for kind, magic_at, magic, uuid_at in _UUIDS:
        raw = first_bytes[uuid_at : uuid_at + 16]
        if first_bytes.startswith(magic, magic_at) and len(raw) == 16 and any(raw):
            return f"{kind}:{uuid.UUID(bytes=raw)}"
    return ""
