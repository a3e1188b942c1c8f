"""The rules that inspection goes by, one at a time."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v_sync.device.machine import Machine
from p2v_sync.device.storage import Storage, Volume
from p2v_sync.fixup import names
from p2v_sync.fixup.guest import Family, Firmware, Generator, Init, LoaderKind
from p2v_sync.fixup.inspect import fstab, inspect
from p2v_sync.fixup.inspect.grub import expanded, legacy_entry
from p2v_sync.fixup.inspect.locate import Locator
from p2v_sync.fixup.inspect.reader import Reader, assignments, mac_of, unquoted
from p2v_sync.fixup.inspect.registry import Hive
from p2v_sync.fixup.inspect.versions import version_key
from p2v_sync.fixup.tree import Tree
from tests.guests.build import Built, hive, write

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"


# fstab


def test_fstab_undoes_escapes_and_quotes() -> None:
    text = '\n# x\nUUID="AB-CD"  /a\\040b\text4\trw 0 0\nshort line\n  #y z w\n/dev/a none swap\n'
    first, second = fstab.parse(text)
    assert (first.spec, first.point, first.options) == ("UUID=AB-CD", "/a b", "rw")
    assert (second.point, second.kind, second.options) == ("none", "swap", "defaults")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/dev/sda1 / ext4 defaults", True),
        ("uuid=1 / ext4 defaults", True),
        ("server:/x /x nfs defaults", False),
        ("/dev/sdb1 /x ext4 _netdev,ro", False),
        ("/dev/sr0 /media/cd udf,iso9660 ro", False),
        ("/swap.img none swap sw", False),
        ("tmpfs /tmp tmpfs defaults", False),
    ],
)
def test_what_is_on_a_disk_of_the_guest(line: str, expected: bool) -> None:
    (mount,) = fstab.parse(line)
    assert fstab.is_on_disk(mount) is expected


def test_only_options_that_say_what_is_meant_are_kept() -> None:
    (mount,) = fstab.parse("UUID=1 / btrfs rw,exec,subvol=@\\054suid,uquota,gqnoenforce 0 0")
    assert fstab.mount_options(mount, "btrfs", writable=True) == "subvol=@"
    assert fstab.mount_options(mount, "xfs", writable=True) == "uquota,gqnoenforce"
    assert fstab.mount_options(mount, "xfs", writable=False) == ""
    assert fstab.mount_options(mount, "ext4", writable=True) == ""


# Small readers


def test_assignments_are_a_shells_without_expansion() -> None:
    said = assignments('A=1\nexport B="x \\"y\\" $z"\nC=\'it is\' # no\n D = 5\nA=2 # yes\n#E=1\n')
    assert said == {"A": "2", "B": 'x "y" $z', "C": "it is"}


@given(st.text(max_size=30))
def test_unquoting_takes_anything(text: str) -> None:
    unquoted(text)


def test_addresses_are_told_from_other_words() -> None:
    assert mac_of(" '00-1E-67-0A-0B-0C' ") == "00:1e:67:0a:0b:0c"
    assert mac_of("00:1e:67:0a:0b") == mac_of("") == mac_of("preserve") == ""


def test_versions_are_in_the_order_of_rpm() -> None:
    rising = ["0-rescue-abc", "2.6.9", "2.6.18", "5.14.0-70.el9", "5.14.0-362.el9", "5.14.0-362.8"]
    assert sorted(rising, key=version_key) == rising
    assert version_key("9" * 5000) > version_key("10")


def test_variables_are_expanded_or_vanish() -> None:
    assert expanded("$kernelopts ${a} quiet $no", {"kernelopts": "ro", "a": "b"}) == "ro b quiet"


# Loaders and kernels


def guest(text: str, root: Path, *volumes: Volume, is_uefi: bool = False) -> Built:
    built = write(text, root)
    storage = Storage(volumes, ("sda",)) if volumes else built.storage
    return Built(built.root, storage, Machine(is_uefi=is_uefi))


GRUB = "=== /boot/grub/grub.cfg\nmenuentry 'x' {\n linux /vmlinuz-1 root=/dev/sda1\n}\n"


def test_a_real_configuration_in_the_efi_partition_comes_first(tmp_path: Path) -> None:
    text = (
        f"{GRUB}=== /boot/efi/EFI/centos/grub.cfg\nmenuentry 'y' {{\n linuxefi /vmlinuz-1\n}}\n"
        "configfile $prefix/custom.cfg\n"
    )
    found = guest(text, tmp_path).inspected()
    assert [loader.config for loader in found.boot_loaders] == [
        "/boot/efi/EFI/centos/grub.cfg",
        "/boot/grub/grub.cfg",
    ]
    assert found.default_entry is not None
    assert found.default_entry.title == "y"


def test_one_that_leads_on_is_only_a_wrapper(tmp_path: Path) -> None:
    text = f"{GRUB}=== /boot/efi/EFI/debian/grub.cfg\nconfigfile $prefix/grub.cfg\n"
    (loader,) = guest(text, tmp_path).inspected().boot_loaders
    assert loader.config == "/boot/grub/grub.cfg"
    assert loader.wrappers == ("/boot/efi/EFI/debian/grub.cfg",)


def test_a_lilo_conf_that_was_never_run_is_no_loader(tmp_path: Path) -> None:
    text = f"{GRUB}=== /etc/lilo.conf\nimage=/boot/x\n"
    found = guest(text, tmp_path).inspected()
    assert [loader.kind for loader in found.boot_loaders] == [LoaderKind.GRUB2]


def test_an_index_beyond_the_menu_is_the_first_entry(tmp_path: Path) -> None:
    found = guest(GRUB + 'set default="7"\n', tmp_path).inspected()
    assert found.default_entry is not None
    assert found.default_entry.title == "x"


def test_a_unified_image_says_its_version_and_command_line(tmp_path: Path) -> None:
    text = (
        "=== /efi/EFI/Linux/old.efi uki 6.1.9 root=/dev/sda2\n"
        "=== /efi/EFI/Linux/new.efi uki 6.1.10 root=/dev/sda1 ro\n"
        "=== /usr/lib/modules/6.1.10/modules.dep empty\n"
        "=== /usr/lib/modules/6.1.9/modules.dep empty\n"
    )
    found = guest(text, tmp_path).inspected()
    assert found.default_entry is not None
    assert found.default_entry.options == "root=/dev/sda1 ro"
    default = found.default_kernel
    assert default is not None
    assert (default.version, default.image) == ("6.1.10", "/efi/EFI/Linux/new.efi")


def test_the_entry_says_which_initramfs_its_kernel_is_booted_with(tmp_path: Path) -> None:
    text = (
        "=== /boot/grub/grub.cfg\nmenuentry 'x' {\n linux /vmlinuz-1 ro\n"
        " initrd /intel-ucode.img /initrd-mine\n}\n"
        "=== /boot/vmlinuz-1 empty\n=== /boot/initrd-mine empty\n=== /boot/initrd.img-1 empty\n"
        "=== /boot/initrd.img-1-fallback empty\n=== /lib/modules/1/modules.dep empty\n"
    )
    (kernel,) = guest(text, tmp_path).inspected().kernels
    assert kernel.initramfs == "/boot/initrd-mine"
    assert kernel.other_initramfs == ("/boot/initrd.img-1-fallback",)


def test_a_booted_kernel_without_modules_is_said(tmp_path: Path) -> None:
    text = f"{GRUB}=== /boot/vmlinuz-1 bzimage 1.2.3\n"
    found = guest(text, tmp_path).inspected()
    assert [(kernel.version, kernel.is_default) for kernel in found.kernels] == [("1.2.3", True)]
    assert any("there are no modules" in each for each in found.problems)


# Firmware: what is on the disks, and what started this machine

EFI_FILE = "=== /boot/efi/EFI/x/grubx64.efi pe x86_64\n"
ESP_LINE = "=== /etc/fstab\nUUID=1 /boot/efi vfat defaults 0 0\n"
PC = "=== /boot/grub/i386-pc/core.img empty\n"
EFI_PLATFORM = "=== /boot/grub/x86_64-efi/core.efi empty\n"


@pytest.mark.parametrize(
    ("text", "types", "is_uefi", "expected"),
    [
        (EFI_FILE, [ESP], False, Firmware.UEFI),
        ("", [ESP], False, Firmware.UEFI),  # not mounted, so nothing speaks against it
        ("=== /boot/efi/EFI/x/readme empty\n", [ESP], True, Firmware.BIOS),
        ("", ["0x83"], True, Firmware.BIOS),
        (EFI_FILE + ESP_LINE, [ESP, BIOS_BOOT], True, Firmware.UEFI),
        (EFI_FILE + PC, [ESP, BIOS_BOOT], True, Firmware.BIOS),
        (EFI_FILE + PC + EFI_PLATFORM, [ESP, BIOS_BOOT], True, Firmware.UEFI),
        (EFI_FILE + PC + EFI_PLATFORM, [ESP, BIOS_BOOT], False, Firmware.BIOS),
        (EFI_FILE, [], False, Firmware.UEFI),
        (PC, [], True, Firmware.BIOS),
        ("", [], True, None),
    ],
)
def test_the_firmware(
    text: str, types: list[str], is_uefi: bool, expected: Firmware | None, tmp_path: Path
) -> None:
    volumes = [Volume("/x", "sda", 1, part_type=kind) for kind in types]
    assert guest(text, tmp_path, *volumes, is_uefi=is_uefi).inspected().firmware is expected


# Networks


@pytest.mark.timeout(20)
def test_interfaces_that_source_themselves_end(tmp_path: Path) -> None:
    text = "=== /etc/network/interfaces\nsource interfaces\nsource-directory .\niface a inet dhcp\n"
    (interface,) = guest(text, tmp_path).inspected().interfaces
    assert (interface.name, interface.config) == ("a", "/etc/network/interfaces")


def test_an_address_that_is_given_to_a_card_is_not_its_own(tmp_path: Path) -> None:
    text = (
        "=== /etc/sysconfig/network-scripts/ifcfg-a\nDEVICE=a\nMACADDR=02:00:00:00:00:01\n"
        "=== /etc/netplan/a.yaml\nnetwork:\n  ethernets:\n    b:\n      match:\n"
        "        name: en*\n      macaddress: 02:00:00:00:00:02\n"
        "=== /etc/NetworkManager/system-connections/c\n[connection]\ninterface-name=c\n"
        "[ethernet]\ncloned-mac-address=02:00:00:00:00:03\n"
    )
    found = guest(text, tmp_path).inspected().interfaces
    assert [(each.name, each.mac) for each in found] == [("a", ""), ("c", ""), ("en*", "")]


# What makes the initramfs, and process 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("/sbin/mkinitrd /usr/bin/dracut", Generator.DRACUT),
        ("/sbin/mkinitrd /sbin/nash", Generator.MKINITRD_RH),
        ("/sbin/mkinitrd /lib/mkinitrd/x", Generator.MKINITRD_SUSE),
        ("/sbin/mkinitrd", Generator.OTHER),
        ("/usr/sbin/update-initramfs /usr/bin/dracut", Generator.DRACUT),
        ("/usr/sbin/make-initrd", Generator.MAKE_INITRD),
        ("/etc/mkinitcpio.conf", Generator.MKINITCPIO),
    ],
)
def test_the_generator(files: str, expected: Generator, tmp_path: Path) -> None:
    text = "".join(f"=== {path} empty\n" for path in files.split())
    assert guest(text, tmp_path).inspected().generator is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "=== /sbin/initctl empty\n=== /etc/init/rc.conf empty\n=== /etc/inittab empty",
            Init.UPSTART,
        ),
        ("=== /sbin/runit-init empty\n=== /sbin/init -> runit-init", Init.RUNIT),
        ("=== /lib/systemd/systemd empty\n=== /sbin/init empty\n=== /etc/inittab empty", Init.SYSV),
        ("=== /lib/systemd/systemd empty", Init.SYSTEMD),
    ],
)
def test_process_1(text: str, expected: Init, tmp_path: Path) -> None:
    assert guest(text, tmp_path).inspected().init is expected


# Distributions that call themselves in odd ways


@pytest.mark.parametrize(
    ("text", "family", "version"),
    [
        (
            "/etc/redhat-release\nRed Hat Enterprise Linux AS release 4 (Nahant Update 9)",
            Family.RHEL,
            "4.9",
        ),
        ("/etc/redhat-release\nFedora Core release 4 (Stentz)", Family.FEDORA, "4"),
        ("/etc/redhat-release\nSomething Corporate release 6.8 (x)", Family.RHEL, "6.8"),
        ("/etc/debian_version\ntrixie/sid", Family.DEBIAN, "trixie/sid"),
        ("/etc/lsb-release\nDISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=8.04", Family.DEBIAN, "8.04"),
        ("/etc/SuSE-release\nopenSUSE 13.2 (x86_64)\nVERSION = 13.2", Family.SUSE, "13.2"),
        ("/etc/os-release\nID=new\nID_LIKE='unheard rhel fedora'", Family.RHEL, ""),
        ("/etc/os-release\nID=new", Family.OTHER, ""),
    ],
)
def test_the_distribution(text: str, family: Family, version: str, tmp_path: Path) -> None:
    found = guest(f"=== {text}\n", tmp_path).inspected().distribution
    assert (found.family, found.version) == (family, version)


def test_what_a_guest_calls_itself_can_be_printed(tmp_path: Path) -> None:
    text = '=== /etc/os-release\nID="x\x1b[31m"\nPRETTY_NAME="Schrödinger\x1b]0;owned\x07\u202e"\n'
    found = guest(text, tmp_path).inspected().distribution
    assert (found.id, found.name) == ("x[31m", "Schrödinger]0;owned")


# The registry


def test_the_registry_is_read_without_case(tmp_path: Path) -> None:
    (tmp_path / "hive").write_bytes(hive("A\\B|Name=text\nA\\B|Number=dword:7\nA\\c|x=y\n"))
    with Tree(tmp_path) as tree:
        found = Hive(Reader(tree), "/hive")
        assert found.values(found.key("a\\b")) == {"name": "text", "number": 7}
        assert set(found.keys(found.key("A"))) == {"b", "c"}
        assert found.key("a\\none\\b") == 0
        assert found.values(0) == {}


@given(st.integers(0, 0x1400), st.binary(min_size=1, max_size=8))
def test_a_damaged_registry_is_an_empty_one_at_worst(
    tmp_path_factory: pytest.TempPathFactory, at: int, damage: bytes
) -> None:
    root = tmp_path_factory.mktemp("hive")
    data = bytearray(hive("A\\B|Name=text\nA\\B|Number=dword:7\nA\\C|x=y\nSelect|Current=dword:1"))
    data[at : at + len(damage)] = damage
    for name in ("SOFTWARE", "SYSTEM"):
        path = root / "Windows" / "System32" / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with Tree(root) as tree:
        found = inspect(tree, Storage(), Machine())
        assert found.windows is not None
        one = Hive(Reader(tree), "/Windows/System32/config/SYSTEM")
        one.values(one.key("A\\B"))


def test_a_registry_that_is_its_own_child_ends(tmp_path: Path) -> None:
    data = bytearray(hive("A|x=y\n"))
    at = data.index(b"lf\x01\x00")
    data[at : at + 2] = b"ri"
    data[at + 4 : at + 8] = (at - 0x1000 - 4).to_bytes(4, "little")
    (tmp_path / "hive").write_bytes(data)
    with Tree(tmp_path) as tree:
        found = Hive(Reader(tree), "/hive")
        assert found.keys(found.root) == {}


# Names


def test_a_name_finds_its_volume() -> None:
    root = Volume("/dev/mapper/a", "sda", 1, uuid="AB-12", label="L", part_label="P", part_uuid="U")
    logical = Volume("/dev/mapper/b", "sda", aliases=("vg/root", "mapper/vg-root"))
    storage = Storage((root, logical), ("sda",))
    for spec in ("UUID=ab-12", 'LABEL="L"', "/dev/disk/by-partlabel/P", "PARTUUID=u", "/dev/sda1"):
        assert names.resolve(spec, storage) is root, spec
    assert names.resolve("/dev/vg/root", storage) is logical
    for spec in ("", "/dev/sda", "UUID=", "LABEL=l", "UUID=x", "/dev/sda2"):
        assert names.resolve(spec, storage) is None, spec


def test_a_line_of_menu_lst_that_is_no_command_is_passed_over(tmp_path: Path) -> None:
    menu = "title a\n/dev/sda1 / ext4\nkernel /vmlinuz root=/dev/sda1\ninitrd /i\n"
    built = write(f"=== /boot/grub/menu.lst\n{menu}", tmp_path)
    with Tree(built.root) as tree:
        reader = Reader(tree)
        entry = legacy_entry(reader, "/boot/grub/menu.lst", Locator(reader, ()))
    assert entry is not None
    assert entry.options == "root=/dev/sda1"
