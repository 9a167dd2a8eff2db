package serve

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// maxSocketPath is what a unix socket's address holds, in bytes; see unix(7).
const maxSocketPath = 107

// checkSockets says early what would keep the engine from listening.
func (c *Config) checkSockets() error {
	if _, err := groupID(c.Group); err != nil {
		return err
	}
	if c.Socket == c.Control {
		return fmt.Errorf("%s: NBD and the control API can't share a socket: give another one with --control", c.Socket)
	}
	for _, path := range []string{c.Socket, c.Control} {
		if err := checkSocket(path); err != nil {
			return err
		}
	}
	return nil
}

func checkSocket(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("socket %s: its path has %d bytes, the kernel allows %d: use a shorter one", path, len(path), maxSocketPath)
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("socket %s: its folder: %w", path, errors.Unwrap(err))
	} else if !st.IsDir() {
		return fmt.Errorf("socket %s: %s is not a folder", path, filepath.Dir(path))
	}
	_, err := stale(path)
	return err
}

// stale says whether a dead engine's socket is at path. A socket that answers, or another kind of file,
// is somebody's.
func stale(path string) (bool, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if st.Mode()&os.ModeSocket == 0 {
		return false, fmt.Errorf("socket %s: there is something at this path that is not a socket: move it away or use another path", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		c.Close()
		return false, fmt.Errorf("socket %s: %w", path, errInUse)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return true, nil
	}
	return false, fmt.Errorf("socket %s: can't tell whether an engine is behind it: %w", path, err)
}

// listen makes a unix socket with these permissions and, if gid is not -1, this group, in place of a stale one.
// The caller holds the volume's lock: so no two engines of a volume remove each other's.
func listen(path string, mode os.FileMode, gid int) (net.Listener, error) {
	old, err := stale(path)
	if err != nil {
		return nil, err
	}
	if old {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	mask := syscall.Umask(0o177) // nobody connects before the permissions are right
	l, err := net.Listen("unix", path)
	syscall.Umask(mask)
	if err != nil {
		return nil, err
	}
	if gid >= 0 {
		err = os.Chown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
