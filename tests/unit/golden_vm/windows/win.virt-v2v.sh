#!/bin/sh
# Converts win with virt-v2v, in images above the replica, which stays as it is.
# Then define win.virt-v2v-result.xml.  Run again, it begins anew.
# usage: sh FILE [OPTION of virt-v2v-in-place]...   (--key all:key:PASSWORD, ...)
# Made by p2v-sync.
set -eu
CDPATH= cd -- "$(dirname -- "$0")"
if command -v virt-v2v-in-place >/dev/null; then
    program=virt-v2v-in-place
elif [ -x /usr/libexec/virt-v2v-in-place ]; then
    program=/usr/libexec/virt-v2v-in-place
else
    echo "$0: virt-v2v-in-place is not installed here (package virt-v2v, 2.0 or later)" >&2
    exit 1
fi
VIRTIO_WIN=${VIRTIO_WIN:-/usr/share/virtio-win}
export VIRTIO_WIN
if [ ! -e "$VIRTIO_WIN" ]; then
    echo "$0: no drivers for Windows in $VIRTIO_WIN: name virtio-win.iso in VIRTIO_WIN" >&2
    exit 1
fi
if [ -e ./sda.qcow2 ]; then qemu-img info ./sda.qcow2 >/dev/null; fi
if [ -e ./sdb.qcow2 ]; then qemu-img info ./sdb.qcow2 >/dev/null; fi
now=$(date -u +%Y%m%dT%H%M%SZ)
if [ -e ./sda.qcow2 ]; then mv ./sda.qcow2 ./sda.qcow2.aside-"$now"; fi
qemu-img create -q -f qcow2 -b ./sda.img -F raw ./sda.qcow2
if [ -e ./sdb.qcow2 ]; then mv ./sdb.qcow2 ./sdb.qcow2.aside-"$now"; fi
qemu-img create -q -f qcow2 -b ./sdb.img -F raw ./sdb.qcow2
if "$program" --help | grep -q -e --block-driver; then
    set -- --block-driver virtio-blk "$@"
fi
LIBGUESTFS_BACKEND=${LIBGUESTFS_BACKEND:-direct}
export LIBGUESTFS_BACKEND
"$program" -v -x -i libvirtxml --root first "$@" ./win.virt-v2v.xml >./win.virt-v2v.log 2>&1 || { echo "$(grep -a 'error: ' ./win.virt-v2v.log | tail -n 1); the log is $PWD/"win.virt-v2v.log >&2; exit 1; }
