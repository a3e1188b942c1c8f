#!/bin/sh
# Runs the virtual machine a'b"c,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =é漢😀: sh FILE [OPTION of qemu-system-x86_64]...
# Made by p2v-sync.
# the interface usb0?touch HURT # (USB, wireless or virtual) is not carried over
# interfaces without a bridge reach the outside through QEMU (-netdev user)
# where /dev/kvm is of no use: -machine accel=tcg; without a screen: -nographic
set -eu
CDPATH= cd -- "$(dirname -- "$0")"
exec qemu-system-x86_64 \
    -name 'guest=a'"'"'b"c,,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =é漢😀' \
    -uuid 4c4c4544-0042-3510-8054-b4c04f4d3832 \
    -machine q35,accel=kvm:tcg \
    -cpu max \
    -smp 2,sockets=1,cores=2,threads=1 \
    -m 768 \
    -rtc base=utc,driftfix=slew \
    -smbios 'type=0,vendor=a'"'"'b"c,,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =bios_vendor,version=a'"'"'b"c,,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =bios_version' \
    -smbios 'type=1,manufacturer=a'"'"'b"c,,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =sys_vendor,product=a'"'"'b"c,,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =product_name,serial=a'"'"'b"c,,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =product_serial,uuid=4c4c4544-0042-3510-8054-b4c04f4d3832' \
    -smbios 'type=2,manufacturer=a'"'"'b"c,,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =board_vendor,product=a'"'"'b"c,,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =board_name' \
    -drive file=./sda.img,format=raw,if=none,id=disk0,discard=unmap \
    -device virtio-blk-pci,drive=disk0,bootindex=1,serial=cdtouchHURTtouchHURT \
    -drive file=./sdb.img,format=raw,if=none,id=disk1,discard=unmap \
    -device virtio-blk-pci,drive=disk1,bootindex=2,serial=cdtouchHURTtouchHURT \
    -netdev user,id=net0 \
    -device virtio-net-pci,netdev=net0,mac=00:26:b9:3a:7c:11 \
    -netdev user,id=net1 \
    -device virtio-net-pci,netdev=net1,mac=00:26:b9:3a:7c:13 \
    -vga std \
    -usb -device usb-tablet \
    -device virtio-rng-pci \
    "$@"
