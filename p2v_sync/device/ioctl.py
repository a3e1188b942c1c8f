"""The few block device ioctls we use, with numbers from include/uapi/linux/fs.h."""

import fcntl
import struct

# _IO(0x12, nr) is 0x12 << 8 | nr on every architecture.
BLKROSET = 0x125D  # _IO(0x12, 93): set read-only, int *
BLKROGET = 0x125E  # _IO(0x12, 94): get read-only, int *
BLKSSZGET = 0x1268  # _IO(0x12, 104): logical sector size, int *
# _IOR(0x12, 114, size_t): device size in bytes, u64 * (the size_t in the number is a historic slip)
BLKGETSIZE64 = 2 << 30 | struct.calcsize("N") << 16 | 0x1272

_INT = struct.Struct("i")
_U64 = struct.Struct("Q")


def _get_int(fd: int, request: int) -> int:
    (value,) = _INT.unpack(fcntl.ioctl(fd, request, bytes(_INT.size)))
    return int(value)


def device_size(fd: int) -> int:
    """Size of an open block device, bytes.  Raises OSError."""
    (size,) = _U64.unpack(fcntl.ioctl(fd, BLKGETSIZE64, bytes(_U64.size)))
    return int(size)


def logical_sector_size(fd: int) -> int:
    """Smallest unit an open block device reads, bytes.  Raises OSError."""
    return _get_int(fd, BLKSSZGET)


def is_read_only(fd: int) -> bool:
    """The read-only flag of an open block device.  Raises OSError."""
    return _get_int(fd, BLKROGET) != 0


def mark_read_only(fd: int, flag: bool) -> None:
    """Set or clear the read-only flag; needs CAP_SYS_ADMIN (EACCES).  Raises OSError."""
    fcntl.ioctl(fd, BLKROSET, _INT.pack(flag))
