#!/bin/sh
# Makes the virtual machine a'b"c,d $(touch HURT) `touch HURT` ;&|<>#{}[]!%\ =é漢😀 on a Proxmox VE host, of copies of the images
# beside this script: sh FILE VMID STORAGE
# Made by p2v-sync.  Needs Proxmox VE 7.2 (import-from).  Not tried by its authors on a
# Proxmox host: read it before you run it.
# the interface usb0?touch HURT # (USB, wireless or virtual) is not carried over
# LVM and ZFS round a disk's size up: a GPT then wants sgdisk -e on the copy
set -eu
if [ $# -ne 2 ]; then echo "usage: sh $0 VMID STORAGE" >&2; exit 2; fi
vmid=$1 storage=$2
CDPATH= cd -- "$(dirname -- "$0")"
case $PWD/sda.imgsdb.img in *,*)
    echo "$0: qm can't import files with a comma in their path: $PWD" >&2; exit 1;;
esac
qm create "$vmid" \
    --name a-b-c-d-touch-hurt-touch-hurt \
    --ostype l26 \
    --machine q35 \
    --bios seabios \
    --memory 768 \
    --sockets 1 --cores 2 \
    --cpu host --numa 0 \
    --scsihw virtio-scsi-single \
    --localtime 0 \
    --agent 1 --onboot 0 \
    --smbios1 uuid=4c4c4544-0042-3510-8054-b4c04f4d3832,base64=1,manufacturer=YSdiImMsZCAkKHRvdWNoIEhVUlQpIGB0b3VjaCBIVVJUYCA7Jnw8PiN7fVtdISVcID1zeXNfdmVuZG9y,product=YSdiImMsZCAkKHRvdWNoIEhVUlQpIGB0b3VjaCBIVVJUYCA7Jnw8PiN7fVtdISVcID1wcm9kdWN0X25hbWU=,serial=YSdiImMsZCAkKHRvdWNoIEhVUlQpIGB0b3VjaCBIVVJUYCA7Jnw8PiN7fVtdISVcID1wcm9kdWN0X3NlcmlhbA== \
    --net0 virtio=00:26:b9:3a:7c:11,bridge=vmbr0,firewall=0 \
    --net1 virtio=00:26:b9:3a:7c:13,bridge=vmbr0,firewall=0 \
    --serial0 socket --vga std
qm set "$vmid" --virtio0 "$storage:0,import-from=$PWD/"sda.img,discard=on,serial=cdtouchHURTtouchHURT
qm set "$vmid" --virtio1 "$storage:0,import-from=$PWD/"sdb.img,discard=on,serial=cdtouchHURTtouchHURT
qm set "$vmid" --boot order=virtio0
