package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/virt-cow/virt-cow/internal/local"
)

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
	if len(path) > local.MaxPath {
		return fmt.Errorf("socket %s: its path has %d bytes, the kernel allows %d: use a shorter one", path, len(path), local.MaxPath)
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

// listen is local.Listen in place of a stale socket.
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
	return local.Listen(context.Background(), path, mode, gid)
}
