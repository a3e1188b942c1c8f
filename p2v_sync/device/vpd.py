"""SCSI vital product data pages as sysfs hands them out raw.  Pure; garbage gives ''.

Page 0x80, unit serial number       Page 0x83, device identification (SPC-4 7.8)
  0  peripheral                       0  peripheral
  1  0x80                             1  0x83
  2  length, big endian, 16 bit       2  length, big endian, 16 bit
  4  serial, ASCII                    4  descriptors: 0 protocol/code set, 1 piv/association/type,
                                                      3 length, 4 identifier
"""

import struct
from collections.abc import Iterator

from p2v_sync.device.attributes import clean

_HEADER = struct.Struct("!BBH")
_DESCRIPTOR = struct.Struct("!BBxB")

_SERIAL_PAGE = 0x80
_IDENTIFICATION_PAGE = 0x83
_TYPE_T10, _TYPE_EUI64, _TYPE_NAA, _TYPE_NAME = 1, 2, 3, 8
# The kernel prefers the same kinds for device/wwid (scsi_vpd_lun_id): unique in the world first.
_PREFERENCE = (_TYPE_NAA, _TYPE_EUI64, _TYPE_NAME, _TYPE_T10)


def _payload(page: bytes, code: int) -> bytes:
    if len(page) < _HEADER.size:
        return b""
    _, found, length = _HEADER.unpack_from(page)
    return page[_HEADER.size : _HEADER.size + length] if found == code else b""


def parse_serial_page(page: bytes) -> str:
    """VPD page 0x80 → the serial number."""
    return clean(_payload(page, _SERIAL_PAGE).replace(b"\0", b" "))


def _unit_identifiers(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """``(type, identifier)`` of the descriptors that name the logical unit, not a port."""
    position = 0
    while position + _DESCRIPTOR.size <= len(payload):
        _, flags, length = _DESCRIPTOR.unpack_from(payload, position)
        position += _DESCRIPTOR.size
        is_unit = flags & 0x30 == 0
        if is_unit and length and position + length <= len(payload):
            yield flags & 0x0F, payload[position : position + length]
        position += length


def _format(kind: int, identifier: bytes) -> str:
    match kind:
        case 3:
            return f"naa.{identifier.hex()}"
        case 2:
            return f"eui.{identifier.hex()}"
        case 1:
            return f"t10.{clean(identifier)}"
        case _:
            return clean(identifier.replace(b"\0", b""))


def parse_identification_page(page: bytes) -> str:
    """VPD page 0x83 → the unit's world wide name, written as the kernel writes ``device/wwid``."""
    found: dict[int, bytes] = {}
    for kind, identifier in _unit_identifiers(_payload(page, _IDENTIFICATION_PAGE)):
        found.setdefault(kind, identifier)
    for kind in _PREFERENCE:
        if kind in found:
            return _format(kind, found[kind])
    return ""
