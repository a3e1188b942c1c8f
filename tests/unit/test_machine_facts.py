"""What a machine is made of, read from trees as the kernel builds them, and from garbage."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.device.capacity import parse_memory_device, read_cpus, read_memory
from p2v_sync.device.machine import Cpus, Machine, MachineDisk
from p2v_sync.device.machine_facts import is_placeholder, parse_uuid, read_machine, rtc_base
from p2v_sync.device.nics import parse_ethtool, parse_mac, read_nics
from p2v_sync.units import GIB, KIB, MIB

GARBAGE = [b"", b"\x00" * 64, b"\xff" * 5000, b"\x1b[2J\n", "９９\n".encode(), b"-1\n", b"9" * 300]


class Tree:
    """A recorded /sys, /proc and /dev below a directory."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc, self.dev = root / "sys", root / "proc", root / "dev"
        for directory in (self.sys / "block", self.proc / "self", self.dev):
            directory.mkdir(parents=True)

    def set(self, path: str, value: str | bytes) -> None:
        """``path``: below sys or proc."""
        file = self.sys.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(value if isinstance(value, bytes) else value.encode() + b"\n")

    def link(self, path: str, target: str) -> None:
        link, to = self.sys.parent / path, self.sys.parent / target
        link.parent.mkdir(parents=True, exist_ok=True)
        to.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(to, link.parent))

    def cpu(self, number: int, package: int, core: int, die: int = 0) -> None:
        base = f"sys/devices/system/cpu/cpu{number}/topology"
        for name, value in (("physical_package_id", package), ("core_id", core), ("die_id", die)):
            self.set(f"{base}/{name}", str(value))

    def nic(self, name: str, mac: str, device: str, **attributes: str) -> None:
        base = f"sys/devices/{device}/net/{name}"
        found = {"address": mac, "type": "1", "addr_assign_type": "0", "dev_port": "0"}
        for key, value in (found | attributes).items():
            self.set(f"{base}/{key.replace('__', '/')}", value)
        self.link(f"sys/class/net/{name}", base)
        self.link(f"{base}/device", f"sys/devices/{device}")
        self.link(f"sys/devices/{device}/driver", "sys/bus/pci/drivers/igb")

    def read(self, now: float | None = None) -> Machine:
        return read_machine(self.sys, self.proc, dev_root=self.dev, now=now)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_tree_with_nothing_in_it_is_a_machine_without_facts(tree: Tree) -> None:
    assert tree.read() == Machine()


# Processors.


@pytest.mark.parametrize(
    ("online", "grid", "cpus"),
    [
        ("0-7", [(n // 4, n // 2 % 2) for n in range(8)], Cpus(2, 2, 2)),
        ("0-3", [(0, n) for n in range(4)], Cpus(1, 4, 1)),
        # Core numbers with holes, as on most Xeons.
        ("0-3", [(0, n) for n in (0, 1, 8, 9)], Cpus(1, 4, 1)),
        # One thread is off: no grid any more.
        ("0-2", [(0, 0), (0, 0), (0, 1)], Cpus(1, 3, 1)),
        # Two fast cores with two threads, four without.
        ("0-7", [(0, n) for n in (0, 0, 1, 1, 2, 3, 4, 5)], Cpus(1, 8, 1)),
    ],
)
def test_the_topology_multiplies_to_what_is_online(
    tree: Tree, online: str, grid: list[tuple[int, int]], cpus: Cpus
) -> None:
    tree.set("sys/devices/system/cpu/online", online)
    for number, (package, core) in enumerate(grid):
        tree.cpu(number, package, core)
    assert read_cpus(tree.sys, tree.proc) == cpus


def test_dies_number_their_cores_alike(tree: Tree) -> None:
    tree.set("sys/devices/system/cpu/online", "0-3")
    for number in range(4):
        tree.cpu(number, 0, number % 2, die=number // 2)
    assert read_cpus(tree.sys, tree.proc) == Cpus(1, 4, 1)


def test_without_topology_processors_are_cores(tree: Tree) -> None:
    tree.set("proc/cpuinfo", "processor\t: 0\nmodel name\t: Pentium\nprocessor\t: 1\n")
    assert read_cpus(tree.sys, tree.proc) == Cpus(1, 2, 1, "Pentium")


@pytest.mark.parametrize("online", ["0-99999", "3-1", "0,,1", "x", "0-99999999999999999999"])
def test_lists_that_make_no_sense_cost_nothing(tree: Tree, online: str) -> None:
    tree.set("sys/devices/system/cpu/online", online)
    assert read_cpus(tree.sys, tree.proc) == Cpus()


# Memory.


def module(size: int, *, kind: int = 0x18, extended_mib: int = 0, technology: int = 3) -> bytes:
    """An SMBIOS structure of type 17; ``size`` as it stands there."""
    raw = bytearray(0x54)
    struct.pack_into("<BBH", raw, 0, 17, len(raw), 0x1100)
    struct.pack_into("<H", raw, 0x0C, size)
    raw[0x12], raw[0x28] = kind, technology
    struct.pack_into("<I", raw, 0x1C, extended_mib)
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        (module(8192), 8 * GIB),
        (module(0), 0),
        (module(0xFFFF), None),
        (module(0x8000 | 512), 512 * KIB),
        (module(0x7FFF, extended_mib=65536), 64 * GIB),
        (module(0x7FFF, extended_mib=65536)[:0x1C], None),
        (module(4096, kind=0x09), 0),  # the firmware's flash chip
        (module(8192, technology=7), 0),  # persistent memory
        (module(8192)[:0x15], 8 * GIB),  # SMBIOS 2.1 ended there
        (b"\x11\x54", None),
        (b"\x10" * 80, None),
        (b"", None),
    ],
)
def test_memory_modules(raw: bytes, size: int | None) -> None:
    assert parse_memory_device(raw) == size


@given(st.binary(max_size=100))
def test_any_bytes_are_some_module_or_none(raw: bytes) -> None:
    size = parse_memory_device(b"\x11" + raw)
    assert size is None or 0 <= size < 2**51


def memory(tree: Tree, *, total: int, modules: list[bytes], blocks: int = 0) -> int:
    tree.set("proc/meminfo", f"MemTotal:       {total // KIB} kB\nMemFree: 1 kB")
    for at, raw in enumerate(modules):
        tree.set(f"sys/firmware/dmi/entries/17-{at}/raw", raw)
    tree.set("sys/devices/system/memory/block_size_bytes", "8000000")
    for at in range(blocks):
        tree.set(f"sys/devices/system/memory/memory{at}/online", "1")
    return read_memory(tree.sys, tree.proc)


def test_what_the_modules_add_up_to_is_the_memory(tree: Tree) -> None:
    modules = [module(8192)] * 3 + [module(0)]
    assert memory(tree, total=23 * GIB + 400 * MIB, modules=modules) == 24 * GIB


def test_mirrored_memory_counts_once(tree: Tree) -> None:
    """The modules have twice of what the machine ever had."""
    found = memory(tree, total=15 * GIB + GIB // 2, modules=[module(16384)] * 2, blocks=128)
    assert found == 16 * GIB


def test_one_module_of_unknown_size_spoils_the_sum(tree: Tree) -> None:
    modules = [module(8192), module(0xFFFF)]
    assert memory(tree, total=15 * GIB + GIB // 2, modules=modules, blocks=128) == 16 * GIB


def test_memory_is_rounded_up_to_128_mib_when_nothing_else_is_known(tree: Tree) -> None:
    assert memory(tree, total=1000 * MIB, modules=[]) == 1024 * MIB
    assert memory(tree, total=3 * GIB - KIB, modules=[]) == 3 * GIB


# Interfaces.

PCI = "pci0000:00/0000:00:1c.0"


def test_interfaces_come_in_the_order_of_the_bus(tree: Tree) -> None:
    tree.nic("zeta", "00:26:B9:3A:7C:11", f"{PCI}/0000:01:00.0", dev_port="0")
    tree.nic("alpha", "00:26:b9:3a:7c:13", f"{PCI}/0000:01:00.1")
    tree.nic("mid", "00:26:b9:3a:7c:12", f"{PCI}/0000:01:00.0", dev_port="1")
    found = read_nics(tree.sys)
    assert [nic.name for nic in found] == ["zeta", "mid", "alpha"]
    assert (found[0].mac, found[0].driver) == ("00:26:b9:3a:7c:11", "igb")
    assert found[0].path == "0000:01:00.0"
    assert all(nic.is_carried for nic in found)


def test_virtual_interfaces_are_none(tree: Tree) -> None:
    tree.set("sys/class/net/bond0/type", "1")
    tree.set("sys/class/net/lo/type", "772")
    assert read_nics(tree.sys) == ()


@pytest.mark.parametrize(
    ("device", "attributes"),
    [
        ("pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0", {}),
        (f"{PCI}/0000:02:00.0", {"wireless__status": "0"}),
        (f"{PCI}/0000:02:00.0", {"phy80211__index": "0"}),
        (f"{PCI}/0000:03:10.0", {"device__physfn__x": ""}),
        (f"{PCI}/0000:03:10.0", {"address": "00:00:00:00:00:00"}),
        (f"{PCI}/0000:03:10.0", {"address": "01:00:5e:00:00:01"}),
    ],
)
def test_what_a_virtual_machine_will_not_have(
    tree: Tree, device: str, attributes: dict[str, str]
) -> None:
    tree.nic("eth0", "00:26:b9:3a:7c:11", device)
    for key, value in attributes.items():
        tree.set(f"sys/class/net/eth0/{key.replace('__', '/')}", value)
    (nic,) = read_nics(tree.sys)
    assert not nic.is_carried


def test_a_member_of_a_bond_has_its_own_address(tree: Tree) -> None:
    tree.nic(
        "eth1",
        "00:26:b9:3a:7c:11",
        f"{PCI}/0000:01:00.1",
        addr_assign_type="3",
        bonding_slave__perm_hwaddr="00:26:b9:3a:7c:13",
    )
    assert read_nics(tree.sys)[0].mac == "00:26:b9:3a:7c:13"


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ("Permanent address: 52:54:00:AB:12:34\n", "52:54:00:ab:12:34"),
        ("Permanent address: not set\n", ""),
        ("Permanent address: 00:00:00:00:00:00\n", ""),
        ("", ""),
    ],
)
def test_what_ethtool_says(text: str, mac: str) -> None:
    assert parse_ethtool(text) == mac


def test_addresses() -> None:
    assert parse_mac("AA:BB:CC:DD:EE:0F\n") == "aa:bb:cc:dd:ee:0f"
    for text in ("ff:ff:ff:ff:ff:ff", "a:b:c:d:e:f", "aa:bb:cc:dd:ee:ff:00", "٠٠:00:00:00:00:01"):
        assert parse_mac(text) == ""


# Names and firmware.


@pytest.mark.parametrize(
    "text",
    [
        *("To Be Filled By O.E.M.", "to be filled by O.E.M. ", "Default string", "None", "N/A"),
        *("0123456789", "123456789", "System Serial Number", "System Product Name", "SKU"),
        *("Not Specified", "Chassis Serial Number", "Base Board Asset Tag", "00000000", "", "..."),
        *("xxxxxxxx", "FFFFFFFF", "OEM", "Unknown", "System manufacturer", "No Asset Tag"),
    ],
)
def test_what_nobody_filled_in_is_left_out(text: str) -> None:
    assert is_placeholder(text)


@pytest.mark.parametrize(
    "text", ["Dell Inc.", "HP", "PowerEdge R740", "CZ3241ABCD", "1.0", "A00", "Serial 7", "OEMCorp"]
)
def test_what_somebody_filled_in_is_kept(text: str) -> None:
    assert not is_placeholder(text)


@pytest.mark.parametrize(
    ("text", "uuid"),
    [
        ("4C4C4544-0042-3510-8054-B4C04F4D3832\n", "4c4c4544-0042-3510-8054-b4c04f4d3832"),
        ("03000200-0400-0500-0006-000700080009", ""),
        ("00000000-0000-0000-0000-000000000000", ""),
        ("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", ""),
        ("Not Settable", ""),
        ("", ""),
    ],
)
def test_uuids(text: str, uuid: str) -> None:
    assert parse_uuid(text) == uuid


@given(st.text())
def test_any_text_is_a_uuid_or_none(text: str) -> None:
    assert parse_uuid(text) == "" or len(parse_uuid(text)) == 36


def test_strings_of_the_firmware(tree: Tree) -> None:
    base = "sys/class/dmi/id"
    tree.set(f"{base}/sys_vendor", "Dell Inc.")
    tree.set(f"{base}/product_name", "PowerEdge\x1b[2J R710 ")
    tree.set(f"{base}/product_serial", "To be filled by O.E.M.")
    tree.set(f"{base}/board_serial", b"\xff\xfe\x00" + b"A" * 5000)
    tree.set(f"{base}/product_uuid", "4C4C4544-0042-3510-8054-B4C04F4D3832")
    machine = tree.read()
    assert machine.uuid == "4c4c4544-0042-3510-8054-b4c04f4d3832"
    assert {*machine.dmi} == {"sys_vendor", "product_name", "board_serial"}
    assert machine.dmi["product_name"] == "PowerEdge[2J R710"
    assert len(machine.dmi["board_serial"]) == 255


@pytest.mark.parametrize(
    ("raw", "has"),
    [
        (b"\x06\x00\x00\x00\x01", True),
        (b"\x06\x00\x00\x00\x00", False),
        (b"\x01", False),
        (b"\x06\x00\x00\x00\x01\x01", False),
    ],
)
def test_secure_boot(tree: Tree, raw: bytes, has: bool) -> None:
    name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    tree.set(f"sys/firmware/efi/efivars/{name}", raw)
    machine = tree.read()
    assert machine.is_uefi
    assert machine.has_secure_boot is has


@pytest.mark.parametrize(
    ("off_s", "rtc"),
    [
        (0, "utc"),
        (-200, "utc"),
        (7200, "localtime"),
        (-12600, "localtime"),  # Newfoundland
        (20700, "localtime"),  # Nepal
        (7200 + 290, "localtime"),
        (7200 + 400, ""),
        (86400, ""),
        (-(10**9), ""),
    ],
)
def test_the_hardware_clock(tree: Tree, off_s: int, rtc: str) -> None:
    now = 1_700_000_000
    assert rtc_base(now + off_s, now) == rtc
    tree.set("sys/class/rtc/rtc0/since_epoch", str(now + off_s))
    assert tree.read(now).rtc == rtc
    assert tree.read().rtc == ""  # nobody knows when the tree was recorded


def test_a_tpm(tree: Tree) -> None:
    tree.set("sys/class/tpm/tpm0/tpm_version_major", "2")
    assert tree.read().has_tpm


# Disks.


def disk(tree: Tree, name: str, sectors: str = "2048") -> None:
    base = f"sys/devices/pci0000:00/ata1/host0/block/{name}"
    for key, value in (("dev", "8:0"), ("size", sectors), ("queue/logical_block_size", "4096")):
        tree.set(f"{base}/{key}", value)
    tree.link(f"sys/block/{name}", base)


def by(tree: Tree, kind: str, name: str, target: str) -> None:
    link = tree.dev / "disk" / kind / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


def test_disks_with_all_their_names(tree: Tree) -> None:
    disk(tree, "sda")
    disk(tree, "loop0")
    by(tree, "by-id", "wwn-0x5000", "../../sda")
    by(tree, "by-id", "wwn-0x5000-part1", "../../sda1")
    by(tree, "by-path", "pci-0000:00:1f.2-ata-1", "../../sda")
    by(tree, "by-id", "evil\n", "../../sda")
    (found,) = tree.read().disks
    ids = ("by-id/wwn-0x5000", "by-path/pci-0000:00:1f.2-ata-1")
    assert found == MachineDisk("sda", 1 << 20, bus="ata", logical_sector_size=4096,
                                physical_sector_size=4096, ids=ids)  # fmt: skip


def test_only_the_wanted_disks(tree: Tree) -> None:
    for name in ("sda", "sdb", "sdc"):
        disk(tree, name)
    machine = read_machine(tree.sys, tree.proc, disks={"sdc", "sda"}, dev_root=tree.dev)
    assert [each.name for each in machine.disks] == ["sda", "sdc"]


# Garbage, everywhere.

ATTRIBUTES = [
    "sys/class/dmi/id/product_uuid",
    "sys/class/dmi/id/product_serial",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/cpu0/topology/core_id",
    "sys/devices/system/memory/block_size_bytes",
    "sys/firmware/dmi/entries/17-0/raw",
    "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "sys/class/rtc/rtc0/since_epoch",
    "sys/class/net/eth0/address",
    "sys/class/net/eth0/dev_port",
    "sys/block/sda/queue/logical_block_size",
    "proc/meminfo",
    "proc/cpuinfo",
    "proc/sys/kernel/hostname",
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_garbage_never_raises_and_is_safe_to_print(
    tree: Tree, attribute: str, garbage: bytes
) -> None:
    disk(tree, "sda")
    tree.nic("eth0", "00:26:b9:3a:7c:11", f"{PCI}/0000:01:00.0")
    tree.set("sys/devices/system/cpu/online", "0-1")
    tree.set(attribute, garbage)
    machine = tree.read(1_700_000_000)
    assert machine.cpus.count >= 1
    assert machine.memory >= 0
    for text in (machine.hostname, machine.uuid, machine.cpus.model, *machine.dmi.values()):
        assert text.isprintable()
        assert len(text) <= 255
