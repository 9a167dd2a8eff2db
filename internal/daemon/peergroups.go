package daemon

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerGroups are the supplementary groups of the process at a socket's other end; see SO_PEERGROUPS in unix(7). It is
// nil where the kernel does not tell.
func peerGroups(fd int) []int {
	var ids [1024]uint32
	size := uint32(unsafe.Sizeof(ids))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&ids)), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return nil
	}
	groups := make([]int, size/4)
	for i := range groups {
		groups[i] = int(ids[i])
	}
	return groups
}
