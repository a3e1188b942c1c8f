"""p2v-sync: turn a physical server into a virtual machine without writing to its disks.

This package is the sender; what runs on the target host is ``receiver/p2v_receiver``.
"""

from p2v_receiver import __version__

__all__ = ["__version__"]
