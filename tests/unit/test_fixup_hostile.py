"""Whatever bytes a guest's files have: nothing is raised, and what is done is not done again."""

import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2v_sync.device.machine import Machine, Nic
from p2v_sync.device.storage import Storage, Volume
from p2v_sync.fixup import (
    cloud_init,
    console,
    default_kernel,
    graphics,
    identity,
    kernel_parameters,
    lvm,
    md,
    multipath,
    network_configs,
    network_names,
    services,
    uefi_fallback,
)
from p2v_sync.fixup.guest import (
    BootLoader,
    Firmware,
    Generator,
    Guest,
    Interface,
    LoaderKind,
    NetworkStack,
)
from p2v_sync.fixup.lines import split_lines
from p2v_sync.fixup.plan import Context
from tests.contract.guests import PlainGuest

MAC = "00:25:90:00:00:01"
FIXUPS = [
    fixup
    for module in (
        lvm, multipath, md, uefi_fallback, default_kernel, console, kernel_parameters,
        network_names, network_configs, services, graphics, cloud_init, identity,
    )
    for fixup in module.FIXUPS
]  # fmt: skip
GRUB_CFG = "/boot/grub/grub.cfg"
INTERFACES = {
    "/etc/network/interfaces": NetworkStack.IFUPDOWN,
    "/etc/netplan/a.yaml": NetworkStack.NETPLAN,
    "/etc/sysconfig/network-scripts/ifcfg-eth0": NetworkStack.IFCFG_RH,
    "/etc/sysconfig/network/ifcfg-usb0": NetworkStack.IFCFG_SUSE,
    "/etc/systemd/network/a.network": NetworkStack.NETWORKD,
}
PATHS = (
    *INTERFACES,
    GRUB_CFG,
    "/etc/default/grub",
    "/etc/udev/rules.d/70-persistent-net.rules",
    "/etc/systemd/network/a.link",
    "/usr/lib/systemd/network/99-default.link",
    "/etc/NetworkManager/system-connections/a",
    "/var/log/dmesg",
    "/boot/efi/EFI/debian/grubx64.efi",
    "/boot/efi/EFI/BOOT/readme",
    "/etc/inittab",
    "/etc/securetty",
    "/etc/init/mcelog.conf",
    "/etc/init/mcelog.override",
    "/etc/init/ttyS1.conf",
    "/etc/modules",
    "/etc/modprobe.d/a.conf",
    "/etc/lvm/lvm.conf",
    "/etc/lvm/devices/system.devices",
    "/etc/mdadm/mdadm.conf",
    "/etc/X11/xorg.conf",
    "/etc/cloud/cloud.cfg",
    "/etc/adjtime",
    "/etc/sysconfig/clock",
    "/etc/ntp.conf",
)
SNIPPETS = (
    "\n", "\r\n", "\\\n", "\\", '"', "'", "[", "]", "{", "}", "#", " ", "\t", "=", "\x85", "\x0c",
    "# BEGIN p2v F40-nic-names\n", "# END p2v F40-nic-names\n", "# BEGIN p2v F41-persistent-rules",
    f'SUBSYSTEM=="net", ATTR{{address}}=="{MAC}", DRIVERS=="tg3", NAME="eth0"\n',
    'SUBSYSTEM=="net", KERNELS=="0000:02:00.0", NAME="eth1"\n', "SYSFS{",
    "[Match]\n", "Driver=igb\n", "Path=pci-0000:02:00.0\n", "[match]\n", "driver=igb;\n",
    "[Link]\n", "Name=eth0\n", f"MACAddress={MAC}\n", "      driver: igb\n",
    "    usb0:\n      dhcp4: true\n",
    "auto usb0\n", "auto eth0 usb0\n", "STARTMODE=auto\n", "ONBOOT=yes\n", "DEVICE=eth0\n",
    f"eth0: {MAC}\n", "S1:2:respawn:/sbin/getty ttyS1\n", "tty1\n", "manual", "coretemp\n",
    'filter = [ "r|.*|" ]\n', 'filter = "r|(a*)*|"', "global_filter = [",
    'devicesfile = "x"\n', "ARRAY /dev/md0 UUID=1 devices=/dev/sda\n",
    "ARRAY metadata=imsm UUID=2\n", "DEVICE /dev/sda\n",
    'Section "Device"\n', 'Driver "nvidia"\n', "EndSection\n", "blacklist cirrus\n",
    "menuentry 'a' {\n", "submenu 'b' {\n", 'set default="0"\n', "multiboot /xen.gz\n",
    "\tlinux /vmlinuz console=ttyS1 idle=poll\n", "}\n", "LOCAL\n",
    'GRUB_CMDLINE_LINUX="console=ttyS2 clocksource=tsc', "UEFI SHIM", "802.3ad mtu 9000\n",
)  # fmt: skip
texts = st.one_of(
    st.lists(st.sampled_from(SNIPPETS), max_size=8).map(lambda p: "".join(p).encode("latin-1")),
    st.binary(max_size=80),
)
CONTEXT = Context(
    Guest(
        architecture="x86_64",
        firmware=Firmware.UEFI,
        generator=Generator.DRACUT,
        boot_loaders=(BootLoader(LoaderKind.GRUB2, GRUB_CFG),),
        interfaces=tuple(
            Interface(name, stack=stack, config=path)
            for path, stack in INTERFACES.items()
            for name in ("eth0", "usb0", "a b\n", "x" * 40)
        ),
    ),
    Storage((Volume("", "sda", 2, "LVM2_member"),), ("sda",)),
    Machine(nics=(Nic("eno1", MAC, "igb", "0000:02:00.0"), Nic("usb0", "", is_carried=False))),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(PATHS), texts, max_size=8))
def test_no_bytes_in_any_file_raise_or_are_edited_twice(files: dict[str, str | bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        PlainGuest(Path(root), files).fix(CONTEXT, *FIXUPS)


@given(st.sampled_from(PATHS), st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=12))
def test_lines_that_are_not_edited_stay_to_the_byte(path: str, parts: list[str]) -> None:
    """A line is there, or commented out, or one token of it is another; in the same order."""
    with tempfile.TemporaryDirectory() as root:
        guest = PlainGuest(Path(root), {path: "".join(parts)})
        before = split_lines(guest.text(path))
        guest.fix(CONTEXT, *FIXUPS)
        if not guest.has(path):
            return
        after = iter(split_lines(guest.text(path)))
        kept = [line for line in before if line in ("\n", "tty1\n", "}\n", "LOCAL\n", "[Link]\n")]
        for line in kept:
            assert line in after


@pytest.mark.parametrize(
    "piece",
    [
        "A",
        " ",
        "\n",
        "eth0 ",
        "mode ",
        "auto ",
        "default ",
        "# BEGIN p2v F40-nic-names\n",
        '= "',
        "{",
    ],
)
def test_files_of_one_thing_over_and_over_take_no_time(tmp_path: Path, piece: str) -> None:
    data = (piece * (50_000 // len(piece))).encode()
    starts = {"/etc/mdadm/mdadm.conf": b"ARRAY UUID=1 ", GRUB_CFG: b"", "/etc/inittab": b"a:b:c:"}
    files = {path: starts.get(path, b"") + data for path in PATHS if path != "/etc/modules"}
    guest = PlainGuest(tmp_path, files)
    start = time.process_time()
    guest.plan(FIXUPS, CONTEXT)
    assert time.process_time() - start < 10
