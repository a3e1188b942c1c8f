#!/bin/sh
# Runs the virtual machine win: sh FILE [OPTION of qemu-system-x86_64]...
# Made by p2v-sync.
# the interface usb0 (USB, wireless or virtual) is not carried over
# Windows gets hardware that it knows; virt-v2v-in-place installs virtio drivers
# interfaces without a bridge reach the outside through QEMU (-netdev user)
# where /dev/kvm is of no use: -machine accel=tcg; without a screen: -nographic
set -eu
CDPATH= cd -- "$(dirname -- "$0")"
exec qemu-system-x86_64 \
    -name guest=win \
    -uuid 4c4c4544-0042-3510-8054-b4c04f4d3832 \
    -machine q35,accel=kvm:tcg \
    -cpu max \
    -smp 16,sockets=2,cores=4,threads=2 \
    -m 24576 \
    -rtc base=utc,driftfix=slew \
    -smbios 'type=0,vendor=Dell Inc.,version=6.4.0' \
    -smbios 'type=1,manufacturer=Dell Inc.,product=PowerEdge R710,serial=7QJ5M4J,uuid=4c4c4544-0042-3510-8054-b4c04f4d3832' \
    -smbios 'type=2,manufacturer=Dell Inc.,product=0M233H' \
    -drive file=./sda.img,format=raw,if=none,id=disk0,discard=unmap \
    -device ide-hd,bus=ide.0,drive=disk0,bootindex=1,serial=b2001c2f3e4d5a6b7c8d \
    -drive file=./sdb.img,format=raw,if=none,id=disk1,discard=unmap \
    -device ide-hd,bus=ide.1,drive=disk1,bootindex=2,serial=9QM2A1XY,wwn=0x5000c50012345678 \
    -netdev user,id=net0 \
    -device e1000e,netdev=net0,mac=00:26:b9:3a:7c:11 \
    -netdev user,id=net1 \
    -device e1000e,netdev=net1,mac=00:26:b9:3a:7c:13 \
    -vga std \
    -usb -device usb-tablet \
    "$@"
