// Package local makes unix sockets that only the right ones may use, and tells who is at their other end; see unix(7).
package local

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxPath is how long the path of a socket may be, in bytes.
const MaxPath = 107

// Listen makes a socket with these permissions and this group, -1 for the process's. Nobody connects before they are right. The
// umask is the process's: files that are made meanwhile may get fewer permissions than they ask for.
func Listen(ctx context.Context, path string, mode os.FileMode, gid int) (*net.UnixListener, error) {
	mask := syscall.Umask(0o177)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	syscall.Umask(mask)
	if err != nil {
		return nil, err
	}
	if gid != -1 { // the image node may not even call it
		err = os.Chown(path, -1, gid)
	}
	if err = errors.Join(err, os.Chmod(path, mode)); err != nil {
		l.Close()
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// Peer is who made the connection: process, user and group.
func Peer(c *net.UnixConn) (cred *unix.Ucred, err error) {
	cerr := control(c, func(fd int) { cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(cerr, err)
}

// PeerGroups are the groups of who made the connection besides Peer's, nil where the kernel does not tell.
func PeerGroups(c *net.UnixConn) (groups []int) {
	var ids [1024]uint32
	size := uint32(unsafe.Sizeof(ids))
	errno := unix.EBADF
	_ = control(c, func(fd int) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&ids)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if errno != 0 {
		return nil
	}
	for _, id := range ids[:size/4] {
		groups = append(groups, int(id))
	}
	return groups
}

// PeerPIDFD holds the number of the process that made the connection, ENODATA or the like once it has ended, ENOPROTOOPT
// before Linux 6.5. The caller closes it.
func PeerPIDFD(c *net.UnixConn) (fd int, err error) {
	cerr := control(c, func(s int) { fd, err = unix.GetsockoptInt(s, unix.SOL_SOCKET, unix.SO_PEERPIDFD) })
	return fd, errors.Join(cerr, err)
}

func control(c *net.UnixConn, f func(fd int)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}
