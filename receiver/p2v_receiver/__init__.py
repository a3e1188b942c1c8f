"""The p2v-sync receiver: everything that runs on the target host.

Python >= 3.6 and the standard library only, because it is shipped over ssh to hosts on which
nothing may be installed (RHEL 8's platform Python is 3.6).
"""

__version__ = "0.1.0"
