#!/bin/sh
# Runs the virtual machine db: sh FILE [OPTION of qemu-system-x86_64]...
# Made by p2v-sync.
# the machine has a TPM, and keys sealed by it stay there
# Secure Boot is on but in the compat twin; of the keys only Microsoft's are carried
# nvme0n1 has 4 KiB sectors, which only virtio disks can have
# interfaces without a bridge reach the outside through QEMU (-netdev user)
# where /dev/kvm is of no use: -machine accel=tcg; without a screen: -nographic
set -eu
CDPATH= cd -- "$(dirname -- "$0")"
# UEFI: the variables are the machine's own, and are kept beside its disks.
code= empty=
while read -r one two; do
    if [ -r "$one" ] && [ -r "$two" ]; then code=$one empty=$two; break; fi
done <<'END'
/usr/share/OVMF/OVMF_CODE_4M.fd /usr/share/OVMF/OVMF_VARS_4M.fd
/usr/share/OVMF/OVMF_CODE.fd /usr/share/OVMF/OVMF_VARS.fd
/usr/share/edk2/ovmf/OVMF_CODE.fd /usr/share/edk2/ovmf/OVMF_VARS.fd
/usr/share/qemu/ovmf-x86_64-4m-code.bin /usr/share/qemu/ovmf-x86_64-4m-vars.bin
/usr/share/edk2/x64/OVMF_CODE.4m.fd /usr/share/edk2/x64/OVMF_VARS.4m.fd
END
if [ -z "$code" ]; then
    echo "$0: no OVMF here; install the package ovmf (or edk2-ovmf)" >&2
    exit 1
fi
vars=db.compat_${empty##*/}
[ -e "$vars" ] || cp -- "$empty" "$vars"
exec qemu-system-x86_64 \
    -drive "if=pflash,unit=0,format=raw,readonly=on,file=$code" \
    -drive "if=pflash,unit=1,format=raw,file=$vars" \
    -name guest=db \
    -uuid b3a1c2d4-0011-4a5b-8c6d-7e8f90a1b2c3 \
    -machine q35,accel=kvm:tcg \
    -cpu max \
    -smp 8,sockets=1,cores=8,threads=1 \
    -m 16384 \
    -rtc base=utc,driftfix=slew \
    -smbios 'type=1,manufacturer=HPE,product=ProLiant DL380 Gen10,serial=CZ3,uuid=b3a1c2d4-0011-4a5b-8c6d-7e8f90a1b2c3' \
    -device virtio-scsi-pci,id=scsi \
    -drive file=./nvme0n1.img,format=raw,if=none,id=disk0,discard=unmap \
    -device scsi-hd,bus=scsi.0,scsi-id=0,drive=disk0,bootindex=1,serial=S4YV,logical_block_size=4096,physical_block_size=4096 \
    -netdev user,id=net0 \
    -device e1000,netdev=net0,mac=9c:dc:71:aa:bb:cc \
    -vga std \
    -usb -device usb-tablet \
    -device virtio-rng-pci \
    "$@"
