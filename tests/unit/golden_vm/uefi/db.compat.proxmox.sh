#!/bin/sh
# Makes the virtual machine db on a Proxmox VE host, of copies of the images
# beside this script: sh FILE VMID STORAGE
# Made by p2v-sync.  Needs Proxmox VE 7.2 (import-from).  Not tried by its authors on a
# Proxmox host: read it before you run it.
# the machine has a TPM, and keys sealed by it stay there
# Secure Boot is on but in the compat twin; of the keys only Microsoft's are carried
# nvme0n1 has 4 KiB sectors, which only virtio disks can have
# the variables of UEFI start empty; the guest must have EFI/BOOT/BOOTX64.EFI
# LVM and ZFS round a disk's size up: a GPT then wants sgdisk -e on the copy
# A DISK HAS 4 KIB SECTORS, which qm can not say: add logical_block_size by args:
set -eu
if [ $# -ne 2 ]; then echo "usage: sh $0 VMID STORAGE" >&2; exit 2; fi
vmid=$1 storage=$2
CDPATH= cd -- "$(dirname -- "$0")"
case $PWD/nvme0n1.img in *,*)
    echo "$0: qm can't import files with a comma in their path: $PWD" >&2; exit 1;;
esac
qm create "$vmid" \
    --name db \
    --ostype l26 \
    --machine q35 \
    --bios ovmf \
    --memory 16384 \
    --sockets 1 --cores 8 \
    --cpu host --numa 0 \
    --scsihw virtio-scsi-single \
    --localtime 0 \
    --agent 1 --onboot 0 \
    --smbios1 uuid=b3a1c2d4-0011-4a5b-8c6d-7e8f90a1b2c3,base64=1,manufacturer=SFBF,product=UHJvTGlhbnQgREwzODAgR2VuMTA=,serial=Q1oz \
    --net0 e1000=9c:dc:71:aa:bb:cc,bridge=vmbr0,firewall=0 \
    --serial0 socket --vga std
qm set "$vmid" --efidisk0 "$storage:1,efitype=4m,pre-enrolled-keys=0"
qm set "$vmid" --scsi0 "$storage:0,import-from=$PWD/"nvme0n1.img,discard=on,serial=S4YV
qm set "$vmid" --boot order=scsi0
