package blockdev

import (
	"slices"

	"golang.org/x/sys/unix"
)

// localFileSystems are those that only one host can have mounted: no other host sees their files.
var localFileSystems = []int64{
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC,
	unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC,
	0x2fc12fc1, // ZFS
	0xca451a4e, // bcachefs
}

// Shared says whether other hosts may see the file: a block device, or a file on a network or cluster file system or
// one that is not known here.
func (d *File) Shared() bool {
	if d.block {
		return true
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &fs); err != nil {
		return true
	}
	return !slices.Contains(localFileSystems, int64(uint32(fs.Type)))
}
