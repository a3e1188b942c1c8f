# P1: live-boot looks for its medium by mounting one device after the other, and so the server's disks.
# This one takes its place: it looks for the label, and mounts nothing else.
find_livefs() {
	device=$(blkid --label P2V-SYNC) || return 1
	check_dev null "$device" skip_uuid_check
}
