package lab

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// TestPool: a disk of a pool is written to until there is no more room, then again once there is some, and then it fails.
func TestPool(t *testing.T) {
	t.Parallel()
	s := SiteFor(t, SiteConfig{Host: Config{Log: t.Output()}})
	p, err := s.NewPool(t.Context(), "thin", 8<<20)
	must(t, err)
	d, err := p.NewDisk(DiskConfig{Name: "d", Size: 64 << 20})
	must(t, err)
	must(t, p.Leave(1<<20))
	f, err := os.OpenFile(s.Hosts[0].Path(d.Path), os.O_RDWR|unix.O_DIRECT|os.O_SYNC, 0)
	must(t, err)
	defer f.Close()
	block := blockdev.Alloc(1 << 20)
	defer blockdev.Free(block)
	write := func(mib int64) error { _, err := f.WriteAt(block, mib<<20); return err }
	for err = error(nil); err == nil; {
		err = errors.Join(write(0), write(20), write(40))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("full: %v", err)
	}
	must(t, p.Leave(4<<20))
	must(t, write(60))
	must(t, p.Fail())
	if err := write(0); !errors.Is(err, unix.EIO) {
		t.Errorf("failed, written: %v", err)
	}
	if _, err := f.ReadAt(block, 60<<20); !errors.Is(err, unix.EIO) {
		t.Errorf("failed, read: %v", err)
	}
}
