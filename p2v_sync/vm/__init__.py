"""The virtual machine that a physical one becomes: what it is made of, written for each host."""
