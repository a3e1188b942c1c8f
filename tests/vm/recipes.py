"""What the guests are: texts that make a plain Debian one server or another."""

from dataclasses import dataclass, field
from enum import StrEnum

SUITE = "bookworm"
PACKAGES = (
    *("systemd-sysv", "udev", "kmod", "iproute2", "ifupdown", "zstd"),
    *("linux-image-amd64", "initramfs-tools", "busybox"),
    *("grub-pc-bin", "grub-efi-amd64-bin", "grub-efi-amd64-signed", "shim-signed"),
    *("grub2-common", "efibootmgr", "lvm2", "dosfstools"),
)
# For the guests of e2e-all beside those.
STORAGE_PACKAGES = ("mdadm", "btrfs-progs", "cryptsetup-initramfs", "netplan.io")
# Nothing that a server without a screen and a radio would miss; half of the image.
LEFT_OUT = (
    *(f"/usr/share/{each}/*" for each in ("man", "doc", "locale", "info")),
    *(
        f"/lib/modules/*/kernel/{each}/*"
        for each in (
            *("sound", "drivers/media", "drivers/gpu", "drivers/staging", "drivers/infiniband"),
            *("drivers/net/wireless", "drivers/iio", "drivers/comedi", "net/mac80211"),
        )
    ),
)
MIB = 1 << 20
DATA_FILES, DATA_SIZE = 48, MIB  # random, beside the system's own files
MACHINE_ID = "5d0c43bd0f4a4a0c9f7d1a2b3c4d5e6f"
ARRAYS = ("5a1d0000:5a1d0000:5a1d0000:00000000", "5a1d0000:5a1d0000:5a1d0000:00000001")
LUKS = "5ec4e700-5ec4-4e70-85ec-4e7000000003"
PASSPHRASE = "correct horse"

# What the guest tells, and the commands that say it.  It waits until nothing more is to be started.
_TOLD = {
    "guest": "hostname",
    "kernel": "uname -r",
    # The kernel lists a volume as /dev/dm-N.
    "swap": "swapon --show=NAME --noheadings | xargs -r lsblk -dno PATH | xargs",
    "mounts": "findmnt --real --list --noheadings --output TARGET,SOURCE | xargs",
    # Each array with a letter for each of its members: U is up.
    "arrays": r"sed -n '/^md/{N;s/ .*\n.*\[\(.*\)\]$/ \1/p}' /proc/mdstat 2>&- | sort | xargs",
    "state": "echo $state",
    "failed": "systemctl list-units --failed --plain --no-legend | cut -d ' ' -f 1 | xargs",
    "damaged": "cd / && { sha256sum --check --quiet /etc/manifest 2>&1 || echo bad; } | xargs",
}
_STRINGS = ",".join(f'\\"{name}\\":\\"$({command})\\"' for name, command in _TOLD.items())
REPORT = f"""#!/bin/sh
while state=$(systemctl is-system-running); [ "$state" = starting ]; do sleep 2; done
line="{_STRINGS},\\"links\\":$(ip -json address)"
printf '\\n{{%s}}\\n' "$line" >/dev/ttyS1
systemctl poweroff --force
"""
REPORT_UNIT = """[Unit]
Description=Tell the test how it went

[Service]
Type=exec
ExecStart=/usr/local/sbin/report

[Install]
WantedBy=multi-user.target
"""

# Run instead of init, once: only the running system can be asked by GRUB where it is.  It goes on
# from memory, because an open file that was removed keeps the root writable.
INSTALL = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if [ $0 = /install ]; then
    mount -o remount,rw /
    mount -t tmpfs tmpfs /tmp
    mv /install /tmp/install
    exec /tmp/install
fi
set -x
{mounts}
{grub} && update-grub && result=0 || result=1
umount --all --types vfat,efivarfs
mountpoint -q /boot && umount /boot
mount -o remount,ro / && printf '\\n{{"installed":%d}}\\n' $result >/dev/ttyS1
sync
echo o >/proc/sysrq-trigger
sleep 60
"""

GRUB_DEFAULTS = """GRUB_DEFAULT=0
GRUB_TIMEOUT=1
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200n8"
"""


class Layout(StrEnum):
    """What is on the disks."""

    PARTITIONS = "partitions"
    VOLUMES = "volumes"  # LVM
    MIRRORS = "mirrors"  # md, of two disks
    SUBVOLUMES = "subvolumes"  # btrfs
    ENCRYPTED = "encrypted"  # LUKS, but for /boot


@dataclass(frozen=True)
class Recipe:
    """``link``: the network interface that has ``address``.  ``root``: what the kernel is told.
    ``swap``, ``mounted`` (mount point → device): as they are called on the physical machine.
    ``modules``: what the initramfs has.  ``mounts``, ``grub``: the commands that install the boot
    loader.  ``files``: what makes the system this guest, by path.  ``arrays``: as the report says.
    """

    name: str
    mac: str
    address: str
    link: str
    layout: Layout
    root: str
    swap: str
    modules: tuple[str, ...]
    mounted: dict[str, str] = field(hash=False)
    grub: str
    files: dict[str, str] = field(hash=False)
    mounts: str = ""
    packages: tuple[str, ...] = ()
    arrays: str = ""
    passphrase: str = ""
    is_uefi: bool = False


# (a) All names are the old hardware's.
NAMES = Recipe(
    name="names",
    mac="00:1b:21:3c:4d:5e",
    address="10.0.2.77",
    link="lan0",
    layout=Layout.PARTITIONS,
    root="/dev/sda1",
    swap="/dev/sda2",
    modules=("ahci", "ata_piix", "sd_mod", "ext4"),
    mounted={"/": "/dev/sda1"},
    grub="grub-install --target=i386-pc /dev/sda",
    files={
        "/etc/fstab": "/dev/sda1 / ext4 errors=remount-ro 0 1\n/dev/sda2 none swap sw 0 0\n",
        "/etc/default/grub": f"{GRUB_DEFAULTS}GRUB_DISABLE_LINUX_UUID=true\n",
        "/etc/initramfs-tools/conf.d/resume": "RESUME=/dev/sda2\n",
        "/etc/udev/rules.d/70-persistent-net.rules": (
            "# PCI device 0x8086:0x10d3 (e1000e)\n"
            'SUBSYSTEM=="net", ACTION=="add", DRIVERS=="e1000e", '
            'ATTR{address}=="00:1b:21:3c:4d:5e", ATTR{type}=="1", NAME="lan0"\n'
        ),
        "/etc/network/interfaces": (
            "auto lo\niface lo inet loopback\n\nauto lan0\niface lan0 inet static\n"
            "\taddress 10.0.2.77/24\n\tgateway 10.0.2.2\n"
        ),
    },
)

# (b) Its boot entry stayed in the old firmware; dashes are doubled in the volumes' names.
VOLUMES = Recipe(
    name="volumes",
    mac="00:1b:21:a1:b2:c3",
    address="10.0.2.15",
    link="enp0s2",
    layout=Layout.VOLUMES,
    root="/dev/mapper/vg--old-root--fs",
    swap="/dev/mapper/vg--old-swap",
    modules=("ahci", "ata_piix", "sd_mod", "ext4", "dm_mod"),
    mounted={"/": "/dev/mapper/vg--old-root--fs", "/boot/efi": "/dev/sda1"},
    mounts=(
        "mount -t efivarfs efivarfs /sys/firmware/efi/efivars\n"
        "mkdir -p /boot/efi\nmount -t vfat /dev/sda1 /boot/efi"
    ),
    grub="grub-install --target=x86_64-efi",
    files={
        "/etc/fstab": (
            "/dev/mapper/vg--old-root--fs / ext4 errors=remount-ro 0 1\n"
            "UUID=0E5D-C0DE /boot/efi vfat umask=0077 0 1\n"
            "/dev/mapper/vg--old-swap none swap sw 0 0\n"
        ),
        "/etc/default/grub": GRUB_DEFAULTS,
        "/etc/initramfs-tools/conf.d/resume": "RESUME=/dev/mapper/vg--old-swap\n",
        "/etc/network/interfaces": "auto lo\niface lo inet loopback\n",
        "/etc/systemd/network/10-lan.network": ("[Match]\nName=enp0s2\n\n[Network]\nDHCP=ipv4\n"),
    },
    is_uefi=True,
)

RECIPES = (NAMES, VOLUMES)

_RESUME = "/etc/initramfs-tools/conf.d/resume"
_DRIVERS = ("ahci", "ata_piix", "sd_mod")


def _static(link: str, address: str) -> str:
    """/etc/network/interfaces."""
    return (
        f"auto lo\niface lo inet loopback\n\nauto {link}\niface {link} inet static\n"
        f"\taddress {address}/24\n\tgateway 10.0.2.2\n"
    )


# (c) Everything is on two disks, also GRUB; the arrays' members are named by their disks.
MIRRORS = Recipe(
    name="mirrors",
    mac="00:1b:21:5a:1d:01",
    address="10.0.2.78",
    link="enp0s2",
    layout=Layout.MIRRORS,
    root="/dev/md0",
    swap="/dev/md1",
    modules=(*_DRIVERS, "ext4", "raid1"),
    mounted={"/": "/dev/md0"},
    grub="grub-install --target=i386-pc /dev/sda && grub-install --target=i386-pc /dev/sdb",
    files={
        "/etc/fstab": "/dev/md0 / ext4 errors=remount-ro 0 1\n/dev/md1 none swap sw 0 0\n",
        "/etc/default/grub": f"{GRUB_DEFAULTS}GRUB_DISABLE_LINUX_UUID=true\n",
        _RESUME: "RESUME=/dev/md1\n",
        "/etc/mdadm/mdadm.conf": "DEVICE /dev/sd[ab]1 /dev/sd[ab]2\nMAILADDR root\n"
        + "".join(
            f"ARRAY /dev/md{number} metadata=1.2 UUID={uuid} "
            f"devices=/dev/sda{number + 1},/dev/sdb{number + 1}\n"
            for number, uuid in enumerate(ARRAYS)
        ),
        "/etc/network/interfaces": _static("enp0s2", "10.0.2.78"),
    },
    packages=STORAGE_PACKAGES,
    arrays="md0 UU md1 UU",
)

# (d), (f) Subvolumes, and a netplan for the name that the interface has by its slot.
SUBVOLUMES = Recipe(
    name="subvolumes",
    mac="00:1b:21:b7:2f:05",
    address="10.0.2.79",
    link="enp0s2",
    layout=Layout.SUBVOLUMES,
    root="/dev/sda1 rootflags=subvol=@",
    swap="/dev/sda2",
    modules=(*_DRIVERS, "btrfs"),
    mounted={"/": "/dev/sda1[/@]", "/home": "/dev/sda1[/@home]"},
    grub="grub-install --target=i386-pc /dev/sda",
    files={
        "/etc/fstab": (
            "/dev/sda1 / btrfs defaults,subvol=@ 0 0\n"
            "/dev/sda1 /home btrfs defaults,subvol=@home 0 0\n"
            "/dev/sda2 none swap sw 0 0\n"
        ),
        "/etc/default/grub": f"{GRUB_DEFAULTS}GRUB_DISABLE_LINUX_UUID=true\n",
        _RESUME: "RESUME=/dev/sda2\n",
        "/etc/network/interfaces": "auto lo\niface lo inet loopback\n",
        "/etc/netplan/00-installer-config.yaml": (
            "network:\n  version: 2\n  renderer: networkd\n  ethernets:\n    enp0s2:\n"
            "      addresses: [10.0.2.79/24]\n"
            "      routes:\n        - to: default\n          via: 10.0.2.2\n"
        ),
        "/home/notes": "not on the root's subvolume\n",
    },
    packages=STORAGE_PACKAGES,
)

# (e) The passphrase is typed at boot; crypttab says which partition by its disk's name.
ENCRYPTED = Recipe(
    name="encrypted",
    mac="00:1b:21:5e:c4:e7",
    address="10.0.2.80",
    link="enp0s2",
    layout=Layout.ENCRYPTED,
    root="/dev/mapper/sda3_crypt",
    swap="/dev/sda2",
    modules=(*_DRIVERS, "ext4", "dm_crypt"),
    mounted={"/": "/dev/mapper/sda3_crypt", "/boot": "/dev/sda1"},
    mounts="mount -t ext4 /dev/sda1 /boot",
    grub="grub-install --target=i386-pc /dev/sda",
    files={
        "/etc/fstab": (
            "/dev/mapper/sda3_crypt / ext4 errors=remount-ro 0 1\n"
            "/dev/sda1 /boot ext4 defaults 0 2\n/dev/sda2 none swap sw 0 0\n"
        ),
        "/etc/crypttab": "sda3_crypt /dev/sda3 none luks,initramfs\n",
        "/etc/default/grub": f"{GRUB_DEFAULTS}GRUB_DISABLE_LINUX_UUID=true\n",
        _RESUME: "RESUME=/dev/sda2\n",
        "/etc/network/interfaces": _static("enp0s2", "10.0.2.80"),
    },
    packages=STORAGE_PACKAGES,
    passphrase=PASSPHRASE,
)

MORE_RECIPES = (MIRRORS, SUBVOLUMES, ENCRYPTED)
