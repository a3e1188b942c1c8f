"""What the kernel unpacks before it mounts the root: read, judged, and appended to."""
