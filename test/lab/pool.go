package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Pool is storage that promises more than it has, as arrays' thin pools do: disks in it take room as they are written to, and once
// there is no more a write that needs some fails with ENOSPC, on whatever host.
type Pool struct {
	site *Site
	dir  string // outside: of the disks' files
}

// NewPool makes a pool that has room for so many bytes.
func (s *Site) NewPool(ctx context.Context, name string, size int64) (*Pool, error) {
	inside := filepath.Join(s.Dir, name+".pool")
	image := inside + ".img"
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.Mkdir(inside, 0o755)); err != nil {
		return nil, err
	}
	// No journal, and nothing kept back: what is free is free.
	if out, err := s.Admin.Run(ctx, "mke2fs", "-q", "-t", "ext4", "-m0", "-O", "^has_journal,^resize_inode", image); err != nil {
		return nil, errors.Join(err, errors.New(out))
	}
	l, err := attachLoop(image, 0, false)
	if err != nil {
		return nil, err
	}
	defer l.f.Close() // the mount has it open
	node := fmt.Sprintf("/dev/loop%d", l.number)
	if err := unix.Mknod(s.Admin.Path(node), unix.S_IFBLK|0o660, int(unix.Mkdev(loopMajor, uint32(l.number)))); err != nil {
		return nil, err
	}
	if _, err := s.Admin.Run(ctx, "mount", "-t", "ext4", node, inside); err != nil {
		return nil, err
	}
	return &Pool{s, s.Admin.Path(inside)}, nil
}

// NewDisk makes a disk in the pool.
func (p *Pool) NewDisk(c DiskConfig) (*Disk, error) {
	c.File = filepath.Join(p.dir, c.Name)
	f, err := os.OpenFile(c.File, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(c.Size), f.Close()); err != nil {
		return nil, err
	}
	return p.site.NewDisk(c)
}

// Leave takes all room of the pool away but so many bytes, or gives it back.
func (p *Pool) Leave(bytes int64) error {
	ballast := filepath.Join(p.dir, "ballast")
	if err := os.Remove(ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return err
	}
	taken := int64(st.Bavail)*st.Bsize - bytes
	if taken <= 0 {
		return nil
	}
	f, err := os.OpenFile(ballast, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, taken)
	if errors.Is(err, unix.ENOSPC) { // it has all there was: its extents take room too
		err = nil
	}
	return errors.Join(err, f.Close())
}

// shutdown is FS_IOC_SHUTDOWN: a file system that fails everything from now on.
const shutdown = 0x8004587d

// Fail has all reads and writes of all disks in the pool fail with EIO, for ever.
func (p *Pool) Fail() error {
	f, err := os.Open(p.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const noFlush = 2
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noFlush); err != nil {
		return fmt.Errorf("%s: fail: %w", p.dir, err)
	}
	return nil
}
