"""What the guests are: texts that make a plain Debian one server or another."""

from dataclasses import dataclass, field

SUITE = "bookworm"
PACKAGES = (
    *("systemd-sysv", "udev", "kmod", "iproute2", "ifupdown", "zstd"),
    *("linux-image-amd64", "initramfs-tools", "busybox"),
    *("grub-pc-bin", "grub-efi-amd64-bin", "grub-efi-amd64-signed", "shim-signed"),
    *("grub2-common", "efibootmgr", "lvm2", "dosfstools"),
)
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
DISK_SIZE = 2560 * MIB
DATA_FILES, DATA_SIZE = 48, MIB  # random, beside the system's own files
MACHINE_ID = "5d0c43bd0f4a4a0c9f7d1a2b3c4d5e6f"

# What the guest tells, and the commands that say it.  It waits until nothing more is to be started.
_TOLD = {
    "guest": "hostname",
    "kernel": "uname -r",
    "root": "findmnt --noheadings --output SOURCE /",
    # The kernel lists a volume as /dev/dm-N.
    "swap": "swapon --show=NAME --noheadings | xargs -r lsblk -dno PATH | xargs",
    "mounts": "findmnt --real --list --noheadings --output TARGET | xargs",
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


@dataclass(frozen=True)
class Recipe:
    """``link``: the network interface that has ``address``.  ``root``, ``swap``: their names on the
    physical machine.  ``modules``: what the initramfs has.  ``mounted``: the mount points of file
    systems on disks.  ``mounts``, ``grub``: the commands that install the boot loader.  ``files``:
    what makes the system this guest, by path.
    """

    name: str
    mac: str
    address: str
    link: str
    root: str
    swap: str
    modules: tuple[str, ...]
    mounted: str
    mounts: str
    grub: str
    files: dict[str, str] = field(hash=False)
    is_uefi: bool = False


# (a) All names are the old hardware's.
NAMES = Recipe(
    name="names",
    mac="00:1b:21:3c:4d:5e",
    address="10.0.2.77",
    link="lan0",
    root="/dev/sda1",
    swap="/dev/sda2",
    modules=("ahci", "ata_piix", "sd_mod", "ext4"),
    mounted="/",
    mounts="",
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
    root="/dev/mapper/vg--old-root--fs",
    swap="/dev/mapper/vg--old-swap",
    modules=("ahci", "ata_piix", "sd_mod", "ext4", "dm_mod"),
    mounted="/ /boot/efi",
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
