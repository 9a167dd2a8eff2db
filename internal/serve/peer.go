package serve

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/local"
)

// errForeign says that a process may not have the volume.
var errForeign = errors.New("this process may not have the volume")

// gatekeeper decides who may connect to the NBD socket. All guests of a host share one uid, so the permissions of
// the socket keep other users out, and the gatekeeper keeps the QEMUs of other guests out: a process may connect
// if its id is the one in the domain's pid file.
//
// Three things could make that number lie, and each has its answer. The process may be gone and its number
// another's: the process that connected is held by a pidfd while it is looked at, and must still live afterwards.
// The file may be left over from a QEMU that is gone, and its number be that of another guest's QEMU now: the
// process's command line must have the domain's UUID (`-uuid`), which libvirt always gives. A process in another
// PID namespace has no number here and is refused.
//
// Root may always connect: it could take the disk in many other ways, and is who repairs things.
type gatekeeper struct {
	client  atomic.Pointer[api.Peer] // nil: whoever may open the socket
	refused atomic.Uint64
}

// checkPeer refuses a client that no process could be.
func checkPeer(p *api.Peer) error {
	if p == nil {
		return nil
	}
	if p.Domain == "" {
		return errors.New("client: no domain")
	}
	if id, err := uuid.Parse(p.UUID); err != nil || id == uuid.Nil {
		return fmt.Errorf("client: domain %q: UUID %q is none", p.Domain, p.UUID)
	}
	if !filepath.IsAbs(p.PIDFile) {
		return fmt.Errorf("client: domain %q: pidFile %q: not an absolute path", p.Domain, p.PIDFile)
	}
	return nil
}

// accept is nbd.Server's.
func (g *gatekeeper) accept(c *net.UnixConn) error {
	client := g.client.Load()
	if client == nil {
		return nil
	}
	err := admit(c, client)
	if err != nil {
		g.refused.Add(1)
	}
	return err
}

func admit(c *net.UnixConn, client *api.Peer) error {
	cred, process, err := peerOf(c)
	if err != nil {
		return fmt.Errorf("%w: who connects: %w", errForeign, err)
	}
	if process != nil {
		defer process.Close()
	}
	if cred.Uid == 0 {
		return nil
	}
	refuse := func(err error) error {
		return fmt.Errorf("%w: pid %d, uid %d; it belongs to domain %q (pid file %s): %w",
			errForeign, cred.Pid, cred.Uid, client.Domain, client.PIDFile, err)
	}
	if cred.Pid == 0 || process == nil {
		return refuse(errors.New("a process of another PID namespace, or one that has ended"))
	}
	want, err := readPID(client.PIDFile)
	if err != nil {
		return refuse(err)
	}
	if want != int(cred.Pid) {
		return refuse(fmt.Errorf("the domain's process is %d", want))
	}
	if err := runsDomain(want, client.UUID); err != nil {
		return refuse(err)
	}
	if ended(process) {
		return refuse(errors.New("it has ended"))
	}
	return nil
}

// peerOf tells who made a connection, and holds that process's number: nil where there is none any more.
func peerOf(c *net.UnixConn) (cred *unix.Ucred, process *os.File, err error) {
	if cred, err = local.Peer(c); err != nil {
		return nil, nil, err
	}
	fd, noFd := local.PeerPIDFD(c)
	if errors.Is(noFd, unix.ENOPROTOOPT) && cred.Pid != 0 {
		// Before Linux 6.5. The number can only have become another's if its process ended since it connected,
		// which was a moment ago.
		fd, noFd = unix.PidfdOpen(int(cred.Pid), 0)
	}
	if noFd != nil || fd < 0 {
		return cred, nil, nil
	}
	return cred, os.NewFile(uintptr(fd), "pidfd"), nil
}

// ended says whether the process of a pidfd has ended: then its number may be another's.
func ended(pidfd *os.File) bool {
	p := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n > 0
		}
	}
}

// readPID reads a file with a process id in it.
func readPID(path string) (int, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, errors.New("there is no such file: the domain does not run")
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("it holds %q, no process id", b)
	}
	return pid, nil
}

// maxCommandLine bounds what is read of a process's arguments: the kernel's limit is larger, libvirt's UUID is
// among the first ones.
const maxCommandLine = 2 << 20

// runsDomain says whether a process is a QEMU that runs the domain with this UUID.
func runsDomain(pid int, id string) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return fmt.Errorf("can't tell what it runs: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCommandLine))
	if err != nil {
		return fmt.Errorf("can't tell what it runs: %w", err)
	}
	want := uuid.MustParse(id) // checkPeer did
	args := bytes.Split(b, []byte{0})
	for i := range len(args) - 1 {
		if string(args[i]) == "-uuid" {
			got, err := uuid.ParseBytes(args[i+1])
			if err == nil && got == want {
				return nil
			}
			return fmt.Errorf("the pid file is stale: process %d runs domain %s, not %s", pid, args[i+1], want)
		}
	}
	return fmt.Errorf("the pid file is stale: process %d has no -uuid %s on its command line", pid, want)
}

// groupID looks up who besides root gets the NBD socket: the name or number of a group, -1 for "".
func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if g, err := user.LookupGroup(group); err == nil {
		return strconv.Atoi(g.Gid)
	}
	gid, err := strconv.ParseUint(group, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("group %q of the NBD socket: there is none: give QEMU's, by name or number (see `group` in /etc/libvirt/qemu.conf)", group)
	}
	return int(gid), nil
}
