"""The guest's disks with changes kept apart: snapshots in RAM above disks nobody writes to (P1)."""
