package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// DiskConfig says what a Disk is to be.
type DiskConfig struct {
	Name     string
	Size     int64  // bytes, a multiple of Sector
	Sector   int    // logical sectors, 512 or 4096; 0 for 512
	ReadOnly bool   // as a master's LUN may be
	File     string // what is on it, on this machine, used as it is and left behind; "" for an empty one
}

// Disk is a disk that all hosts of a site see, as a LUN: a file, and for each host a loop device of its own over it. So
// each host has its own page cache of it, as on two machines: what one wrote another sees only past its page cache
// (O_DIRECT), or if it hasn't read it before. The loop devices themselves keep nothing back from the file: they do direct I/O where its
// file system can, and share its page cache where not.
type Disk struct {
	Path string // the same on all hosts, below /dev/disk/by-id
	File string // what it is made of, outside

	name  string
	mu    sync.Mutex
	loops map[*Host]*loop
}

// NewDisk makes a disk and attaches it to all hosts.
func (s *Site) NewDisk(c DiskConfig) (d *Disk, err error) {
	d = &Disk{Path: filepath.Join(byID, c.Name), File: c.File, name: c.Name, loops: map[*Host]*loop{}}
	if d.File == "" {
		d.File = filepath.Join(s.Dir, c.Name+".disk")
		f, err := os.OpenFile(d.File, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(f.Truncate(c.Size), f.Close()); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
			d = nil
		}
	}()
	for _, h := range s.Hosts {
		if d.loops[h], err = attachLoop(d.File, c.Sector, c.ReadOnly); err != nil {
			return d, err
		}
		if h.pid() == 0 { // it gets the disk when it comes up
			continue
		}
		if err := d.Attach(h); err != nil {
			return d, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks = append(s.disks, d)
	return d, nil
}

// Attach has a host find the disk again after Detach.
func (d *Disk) Attach(h *Host) error { return d.AttachAs(h, d.name) }

// AttachAs has a host find the disk under a name, also that of another disk, which it then does not find there: the
// wrong LUN.
func (d *Disk) AttachAs(h *Host, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.loops[h]
	node := fmt.Sprintf("loop%d", l.number)
	err := unix.Mknod(h.Path(filepath.Join("/dev", node)), unix.S_IFBLK|0o660, int(unix.Mkdev(loopMajor, uint32(l.number))))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("disk %s on %s: %w", d.name, h.Name, err)
	}
	link := h.Path(filepath.Join(byID, name))
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink("../../"+node, link)
}

// Detach has a host no longer find the disk. Who has it open there keeps it.
func (d *Disk) Detach(h *Host) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(os.Remove(h.Path(d.Path)), os.Remove(h.Path(fmt.Sprintf("/dev/loop%d", d.loops[h].number))))
}

func (d *Disk) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for h, l := range d.loops {
		if l != nil {
			errs = append(errs, l.f.Close())
		}
		delete(d.loops, h)
	}
	return errors.Join(errs...)
}
