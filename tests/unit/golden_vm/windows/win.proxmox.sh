#!/bin/sh
# Makes the virtual machine win on a Proxmox VE host, of copies of the images
# beside this script: sh FILE VMID STORAGE
# Made by p2v-sync.  Needs Proxmox VE 7.2 (import-from).  Not tried by its authors on a
# Proxmox host: read it before you run it.
# the interface usb0 (USB, wireless or virtual) is not carried over
# Windows gets hardware that it knows; virt-v2v-in-place installs virtio drivers
# qm knows no threads: they are counted as cores
# LVM and ZFS round a disk's size up: a GPT then wants sgdisk -e on the copy
set -eu
if [ $# -ne 2 ]; then echo "usage: sh $0 VMID STORAGE" >&2; exit 2; fi
vmid=$1 storage=$2
CDPATH= cd -- "$(dirname -- "$0")"
case $PWD/sda.imgsdb.img in *,*)
    echo "$0: qm can't import files with a comma in their path: $PWD" >&2; exit 1;;
esac
qm create "$vmid" \
    --name win \
    --ostype win7 \
    --machine q35 \
    --bios seabios \
    --memory 24576 \
    --sockets 2 --cores 8 \
    --cpu host --numa 0 \
    --scsihw virtio-scsi-single \
    --localtime 0 \
    --agent 0 --onboot 0 \
    --smbios1 uuid=4c4c4544-0042-3510-8054-b4c04f4d3832,base64=1,manufacturer=RGVsbCBJbmMu,product=UG93ZXJFZGdlIFI3MTA=,serial=N1FKNU00Sg== \
    --net0 e1000e=00:26:b9:3a:7c:11,bridge=vmbr0,firewall=0 \
    --net1 e1000e=00:26:b9:3a:7c:13,bridge=vmbr0,firewall=0 \
    --serial0 socket --vga std
qm set "$vmid" --sata0 "$storage:0,import-from=$PWD/"sda.img,discard=on,serial=b2001c2f3e4d5a6b7c8d
qm set "$vmid" --sata1 "$storage:0,import-from=$PWD/"sdb.img,discard=on,serial=9QM2A1XY,wwn=0x5000c50012345678
qm set "$vmid" --boot order=sata0
