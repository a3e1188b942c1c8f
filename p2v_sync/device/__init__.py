"""The source side of the kernel: /sys/block, sizes, identity, aligned reads."""
