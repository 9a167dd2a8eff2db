package blockdev_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
)

const size = 1 << 20

func open(t *testing.T, path string, o blockdev.FileOptions) *blockdev.File {
	t.Helper()
	f, err := blockdev.OpenFile(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func fresh(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "disk")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// loop puts a loop device with sectors of some bytes over a fresh file.
func loop(t *testing.T, sector int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: loop devices need root")
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", strconv.Itoa(sector), fresh(t, t.TempDir())).CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED: no loop device with sectors of %d: %v: %s", sector, err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// again opens what a closed device was.
func again(o blockdev.FileOptions) blockdevtest.Option {
	return blockdevtest.WithReopen(func(t *testing.T, closed blockdev.Device) blockdev.Device {
		return open(t, closed.Info().Name, o)
	})
}

func TestFileConformance(t *testing.T) {
	for name, o := range map[string]blockdev.FileOptions{"direct": {Direct: true}, "buffered": {}} {
		dirs := map[string]string{"disk": t.TempDir()}
		if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
			shm, err := os.MkdirTemp("/dev/shm", "vcdev")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(shm) })
			dirs["memory"] = shm
		}
		for where, dir := range dirs {
			t.Run(name+"/"+where, func(t *testing.T) {
				t.Parallel()
				blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device { return open(t, fresh(t, dir), o) },
					again(o), blockdevtest.WithFreshZeros())
			})
		}
		for _, sector := range []int{512, 4096} {
			t.Run(name+"/loop"+strconv.Itoa(sector), func(t *testing.T) {
				t.Parallel()
				blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device {
					f := open(t, loop(t, sector), o)
					if got := f.Info(); got.BlockSize != sector || got.Size != size || !f.IsBlockDevice() || f.Direct() != o.Direct {
						t.Fatalf("%+v, block device %v, direct %v", got, f.IsBlockDevice(), f.Direct())
					}
					return f
				}, again(o), blockdevtest.WithFreshZeros())
			})
		}
	}
}

func TestReadOnlyFileConformance(t *testing.T) {
	t.Parallel()
	blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device {
		return open(t, fresh(t, t.TempDir()), blockdev.FileOptions{ReadOnly: true, Direct: true})
	})
}

// section closes what it is a part of: the suite has only the part.
type section struct {
	*blockdev.Section
	whole blockdev.Device
}

func (s section) Close() error { return s.whole.Close() }

func TestSectionConformance(t *testing.T) {
	t.Parallel()
	const base = 64 << 10
	part := func(t *testing.T, whole blockdev.Device) blockdev.Device {
		s, err := blockdev.NewSection(whole, base, size-2*base)
		if err != nil {
			t.Fatal(err)
		}
		return section{s, whole}
	}
	o := blockdev.FileOptions{Direct: true}
	blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device { return part(t, open(t, fresh(t, t.TempDir()), o)) },
		blockdevtest.WithReopen(func(t *testing.T, closed blockdev.Device) blockdev.Device {
			return part(t, open(t, closed.Info().Name, o))
		}), blockdevtest.WithFreshZeros())
}

// What is written to a section stays inside it.
func TestSectionLeavesItsNeighboursAlone(t *testing.T) {
	t.Parallel()
	path := fresh(t, t.TempDir())
	around := bytes.Repeat([]byte{7}, size)
	if err := os.WriteFile(path, around, 0o600); err != nil {
		t.Fatal(err)
	}
	whole := open(t, path, blockdev.FileOptions{Direct: true})
	defer whole.Close()
	outer, err := blockdev.NewSection(whole, 4096, size-8192)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := blockdev.NewSection(outer, 4096, 8192)
	if err != nil {
		t.Fatal(err)
	}
	if f, base, ok := blockdev.FileOf(inner); !ok || f != whole || base != 8192 {
		t.Errorf("FileOf: %v, %d, %v", f, base, ok)
	}
	if _, err := inner.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := inner.WriteZeroes(4096, 4096, true); err != nil {
		t.Fatal(err)
	}
	if err := inner.WriteZeroes(4096, 8192, true); !errors.Is(err, blockdev.ErrRange) {
		t.Errorf("over the end: %v", err)
	}
	if err := inner.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(around[8192:16384])
	if !bytes.Equal(got, around) {
		t.Error("something else was changed, or not all of it")
	}
	for _, bad := range [][2]int64{{-512, 512}, {0, size + 512}, {size, 512}, {512, -512}, {100, 512}, {512, 100}} {
		if _, err := blockdev.NewSection(whole, bad[0], bad[1]); err == nil {
			t.Errorf("section at %d, %d bytes: made", bad[0], bad[1])
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo, odd := filepath.Join(dir, "fifo"), filepath.Join(dir, "odd")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.WriteFile(odd, make([]byte, 513), 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		fifo: "neither a regular file nor a block device", "/dev/null": "neither a regular file", odd: "not a multiple of 512",
		filepath.Join(dir, "none"): "no such file",
	} {
		if _, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", path, err, says)
		}
	}
	if _, err := blockdev.OpenFile(t.Context(), dir, blockdev.FileOptions{ReadOnly: true}); err == nil {
		t.Error("a folder was opened")
	}
}

func TestLocks(t *testing.T) {
	t.Parallel()
	path := fresh(t, t.TempDir())
	once, cancel := context.WithCancel(t.Context())
	cancel()
	lock := func(mode blockdev.LockMode) (*blockdev.File, error) {
		return blockdev.OpenFile(once, path, blockdev.FileOptions{ReadOnly: true, Lock: mode})
	}
	a, err := lock(blockdev.LockShared)
	if err != nil {
		t.Fatal(err)
	}
	b, err := lock(blockdev.LockShared)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID() != b.ID() {
		t.Errorf("one file, two names: %v, %v", a.ID(), b.ID())
	}
	if _, err := lock(blockdev.LockExclusive); !errors.Is(err, blockdev.ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("exclusive beside shared: %v", err)
	}
	// A waiter gets it when the last holder is gone.
	got := make(chan error, 1)
	go func() {
		f, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{Lock: blockdev.LockExclusive})
		if err == nil {
			err = f.Close()
		}
		got <- err
	}()
	if err := errors.Join(a.Close(), b.Close(), <-got); err != nil {
		t.Fatal(err)
	}
}

// A file that becomes shorter while it is open: EIO for what is gone, never zeros.
func TestFileThatShrinks(t *testing.T) {
	t.Parallel()
	for _, direct := range []bool{true, false} {
		path := fresh(t, t.TempDir())
		f := open(t, path, blockdev.FileOptions{Direct: direct})
		if err := os.Truncate(path, size/2); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 8192)
		for _, off := range []int64{size/2 - 4096, size / 2, size - 8192} {
			if _, err := f.ReadAt(buf, off); !errors.Is(err, unix.EIO) {
				t.Errorf("direct %v: read at %d: %v, want EIO", direct, off, err)
			}
			if f.ReadCached(buf, off) {
				t.Errorf("direct %v: what is gone was read from the cache at %d", direct, off)
			}
		}
		if _, err := f.ReadAt(buf, 0); err != nil {
			t.Error(err)
		}
		extents, err := f.Extents(0, size)
		if err != nil {
			t.Error(err)
		}
		for _, e := range extents {
			if end := e.Offset + e.Length; end > size/2 && e.Zero {
				t.Errorf("direct %v: %+v: what is gone is said to be zeros", direct, e)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestReadCached(t *testing.T) {
	t.Parallel()
	path := fresh(t, t.TempDir())
	want := bytes.Repeat([]byte("cached! "), size/8)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, path, blockdev.FileOptions{ReadOnly: true})
	defer f.Close()
	buf := make([]byte, 4096)
	for end, cached := time.Now().Add(time.Minute), false; !cached; { // a machine short of memory drops it at any moment
		if time.Now().After(end) {
			t.Fatal("what was just read is not in the page cache")
		}
		if _, err := f.ReadAt(buf, 8192); err != nil {
			t.Fatal(err)
		}
		clear(buf)
		cached = f.ReadCached(buf, 8192)
	}
	if !bytes.Equal(buf, want[8192:8192+4096]) {
		t.Error("the page cache has something else")
	}
	for _, bad := range [][2]int{{size, 512}, {-512, 512}, {100, 512}, {0, 100}} {
		if f.ReadCached(buf[:bad[1]], int64(bad[0])) {
			t.Errorf("read at %d length %d was served", bad[0], bad[1])
		}
	}
	if f.ReadCached(nil, 0) {
		t.Error("nothing was read")
	}
	direct := open(t, path, blockdev.FileOptions{ReadOnly: true, Direct: true})
	defer direct.Close()
	if direct.Direct() && direct.ReadCached(buf, 8192) {
		t.Error("a direct file was read from the page cache")
	}
}
