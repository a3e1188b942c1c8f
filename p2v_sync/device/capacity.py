"""How many processors and how much memory a machine has."""

import re
from pathlib import Path

from p2v_sync.device.attributes import LIST_CAP, names_in, read_bytes, read_int, read_text
from p2v_sync.device.machine import Cpus
from p2v_sync.units import KIB, MIB

# More than any machine has (CONFIG_MAXSMP of x86: 8192); a longer list is no list of processors.
_CPUS_MOST = 8192
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


def _parse_cpu_list(text: str) -> list[int]:
    """``0-3,8`` → the numbers; none of them when it is anything else."""
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            return []
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        if len(found) > _CPUS_MOST:
            return []
    return sorted(found)


def _cpu_info(proc_root: Path, key: str) -> list[str]:
    """All values of a key of /proc/cpuinfo, a processor each."""
    text = read_bytes(proc_root / "cpuinfo", LIST_CAP).decode("utf-8", errors="replace")
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def read_cpus(sys_root: Path, proc_root: Path) -> Cpus:
    """Sockets, cores and threads of what is online.

    What is no full grid (offline or unlike cores) becomes that many cores of one socket, so that
    the product is always the number of processors.  At least one.
    """
    model = next(iter(_cpu_info(proc_root, "model name")), "")[:255]
    base = sys_root / "devices" / "system" / "cpu"
    online = _parse_cpu_list(read_text(base / "online"))
    count = len(online) or min(len(_cpu_info(proc_root, "processor")), _CPUS_MOST) or 1
    packages, cores = set(), set()
    for number in online:
        topology = base / f"cpu{number}" / "topology"
        # Core numbers are unique in a die only.
        names = ("physical_package_id", "die_id", "core_id")
        package, die, core = (read_text(topology / name) for name in names)
        packages.add(package)
        cores.add((package, die, core))
    whole = Cpus(1, count, 1, model)
    if not packages or "" in packages:
        return whole
    per_socket, threads = len(cores) // len(packages), count // len(cores)
    grid = Cpus(len(packages), per_socket, threads, model)
    return grid if grid.count == count else whole


# SMBIOS 3.6, 7.18: type 17, memory device.
_SIZE_AT, _TYPE_AT, _EXTENDED_AT, _TECHNOLOGY_AT = 0x0C, 0x12, 0x1C, 0x28
_UNKNOWN, _EXTENDED, _IN_KIB = 0xFFFF, 0x7FFF, 0x8000
_NO_RAM_TYPES = (0x06, 0x07, 0x08, 0x09)  # ROM, FLASH, EEPROM, FEPROM: the firmware's chips
_PERSISTENT = (0x04, 0x05, 0x06, 0x07)  # NVDIMMs of all kinds


def parse_memory_device(raw: bytes) -> int | None:
    """An SMBIOS structure of type 17 → its size, 0 for an empty slot; None when it is not known."""
    if len(raw) < _TYPE_AT + 1 or raw[0] != 17:
        return None
    length = raw[1]
    if raw[_TYPE_AT] in _NO_RAM_TYPES:
        return 0
    if min(length, len(raw)) > _TECHNOLOGY_AT and raw[_TECHNOLOGY_AT] in _PERSISTENT:
        return 0
    size = int.from_bytes(raw[_SIZE_AT : _SIZE_AT + 2], "little")
    if size == _UNKNOWN:
        return None
    if size == _EXTENDED:
        if min(length, len(raw)) < _EXTENDED_AT + 4:
            return None
        mib = int.from_bytes(raw[_EXTENDED_AT : _EXTENDED_AT + 4], "little")
        return (mib & 0x7FFFFFFF) * MIB
    return (size & ~_IN_KIB) * KIB if size & _IN_KIB else size * MIB


def _modules(sys_root: Path) -> int:
    """The sum of all memory modules by DMI, 0 when one is not known; bytes."""
    entries = sys_root / "firmware" / "dmi" / "entries"
    names = [name for name in names_in(entries) if name.startswith("17-")]
    sizes = [parse_memory_device(read_bytes(entries / name / "raw")) for name in names]
    return 0 if None in sizes else sum(size or 0 for size in sizes)


def _blocks(sys_root: Path) -> int:
    """The memory blocks that are online; bytes."""
    base = sys_root / "devices" / "system" / "memory"
    text = read_text(base / "block_size_bytes")  # hexadecimal without 0x
    size = int(text, 16) if re.fullmatch(r"[0-9a-f]{1,12}", text) else 0
    names = (name for name in names_in(base) if re.fullmatch(r"memory\d+", name))
    return sum(size for name in names if read_int(base / name / "online") == 1)


def _total(proc_root: Path) -> int:
    """MemTotal, bytes: what is left after the kernel and the firmware took theirs."""
    text = read_bytes(proc_root / "meminfo").decode("ascii", errors="replace")
    match = re.search(r"^MemTotal:\s+(\d{1,15}) kB$", text, re.MULTILINE)
    return int(match[1]) * KIB if match else 0


def read_memory(sys_root: Path, proc_root: Path) -> int:
    """How much memory is built in, bytes; 0 when nothing can be found out.

    What the modules add up to counts only when the kernel sees most of it: with mirrored or spare
    memory the machine never had more than the kernel says.
    """
    total = _total(proc_root)
    step = 128 * MIB
    for found in (_modules(sys_root), _blocks(sys_root)):
        if total <= found <= total + total // 3 + 512 * MIB and found:
            return found
    return -(-total // step) * step
