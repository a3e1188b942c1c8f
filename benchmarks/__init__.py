"""Measurements: us and the peers on the same work, in one run.  ``python -m benchmarks --help``.

scenarios     what is measured, and by whom        targets   what has to come out
ours  peers   the contestants                      contest   rounds, stages, samples
image  sshd  link  processes  undurable            what they need
report  chart                                      what a reader gets
"""
