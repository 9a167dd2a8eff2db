package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// killed leaves a store and a cache as a killed engine does: chunk 1 written and not flushed.
func killed(t *testing.T) (dev *blockdevtest.Memory, boot uuid.UUID, path string) {
	t.Helper()
	dev, boot, path = memoryStore(t, 64<<10, 4096, sector, false), uuid.New(), filepath.Join(cacheDir(t), "c")
	v := mustOpen(t, dev, nil, boot, path)
	_, err := v.WriteAt(filled(4096, 4096, 1), 4096)
	check(t, err)
	abandon(v)
	return dev, boot, path
}

// TestCacheFileOutlived: only a later epoch proves that nobody goes on with it.
func TestCacheFileOutlived(t *testing.T) {
	dev, _, path := killed(t)
	st, err := store.Open(dev.Open(false))
	check(t, err)
	h := st.Header()
	for _, c := range []struct {
		name   string
		change func(h *cowfmt.Header)
		stays  bool
	}{
		{"its own epoch", func(*cowfmt.Header) {}, true},
		{"an old header", func(h *cowfmt.Header) { h.Epoch-- }, true},
		{"nobody's", func(h *cowfmt.Header) { h.Epoch++; h.Owner = nil }, true},
		{"this host's", func(h *cowfmt.Header) { h.Epoch++; h.Owner.Host = testHost }, true},
		{"another store", func(h *cowfmt.Header) { h.Epoch++; h.UUID = uuid.New() }, true},
		{"a later epoch", func(h *cowfmt.Header) { h.Epoch++ }, false},
		{"none is there", func(h *cowfmt.Header) { h.Epoch++ }, false},
	} {
		other := h.Clone()
		other.Owner.Host = uuid.New()
		c.change(other)
		check(t, RemoveOutlived(path, other, testHost))
		if _, err := os.Stat(path); (err == nil) != c.stays {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestCacheFileSurvivesTheEngine(t *testing.T) {
	dev, boot, path := killed(t)
	v := mustOpen(t, dev, nil, boot, path)
	p := make([]byte, 4096)
	_, err := v.ReadAt(p, 4096)
	check(t, err)
	if string(p) != string(filled(4096, 4096, 1)) {
		t.Error("what was written is gone")
	}
	check(t, v.Close())
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cache is there after a clean close: %v", err)
	}
}

// A cache that is not that of the engine that died is refused: what it knew is lost.
func TestCacheFileRefused(t *testing.T) {
	change := func(off int64, b byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			check(t, err)
			defer f.Close()
			old := make([]byte, 1)
			_, err = f.ReadAt(old, off)
			check(t, err)
			old[0] ^= b
			_, err = f.WriteAt(old, off)
			check(t, err)
		}
	}
	cases := map[string]func(t *testing.T, path string){
		"missing":          func(t *testing.T, path string) { check(t, os.Remove(path)) },
		"empty":            func(t *testing.T, path string) { check(t, os.Truncate(path, 0)) },
		"cut off":          func(t *testing.T, path string) { check(t, os.Truncate(path, 8192)) },
		"longer":           func(t *testing.T, path string) { check(t, os.Truncate(path, 1<<20)) },
		"another magic":    change(0, 1),
		"another store":    change(8, 1),
		"another instance": change(24, 1),
		"another table":    change(40, 1),
		"other chunks":     change(48, 1),
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			dev, boot, path := killed(t)
			damage(t, path)
			_, err := openOn(dev, nil, boot, path)
			if !errors.Is(err, ErrLoss) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "store") {
				t.Fatalf("%v: want ErrLoss that names store and cache", err)
			}
			v := mustOpen(t, dev, nil, boot, path, func(o *Options) { o.AcceptLoss = true })
			_, err = v.WriteAt(filled(0, 4096, 2), 0)
			check(t, err)
			check(t, v.Close())
			check(t, mustOpen(t, dev, nil, boot, path).Close())
		})
	}
}

// After a boot the cache of the boot before means nothing, whatever it says.
func TestCacheFileOfAnotherBoot(t *testing.T) {
	dev, _, path := killed(t)
	v := mustOpen(t, dev, nil, uuid.New(), path)
	p := make([]byte, 4096)
	_, err := v.ReadAt(p, 4096)
	check(t, err)
	if string(p) != string(make([]byte, 4096)) {
		t.Error("a flag that was never committed is set after a boot")
	}
	check(t, v.Close())
}

// A failed flush is remembered past the engine's death, until the loss is accepted.
func TestCacheFileRemembersFailedFlush(t *testing.T) {
	dev, boot, path := killed(t)
	fail := blockdevtest.NewFailure(blockdevtest.Rule{Ops: blockdevtest.Flushes, N: 1})
	v := mustOpen(t, blockdevtest.NewFault(dev, fail), nil, boot, path)
	for range 2 {
		if err := v.Flush(); err == nil {
			t.Fatal("a failed flush did not stay failed")
		}
	}
	if v.FlushError() == nil {
		t.Error("FlushError is nil after a failed flush")
	}
	abandon(v)
	for range 2 {
		_, err := openOn(dev, nil, boot, path)
		if !errors.Is(err, ErrLoss) || !strings.Contains(err.Error(), "flush failed") {
			t.Fatalf("%v: want ErrLoss because of the flush", err)
		}
	}
	v = mustOpen(t, dev, nil, boot, path, func(o *Options) { o.AcceptLoss = true })
	check(t, v.Flush())
	check(t, v.Close())
	check(t, mustOpen(t, dev, nil, boot, path).Close())
}

// Where the cache can't be made, the error says where, and the store is as it was.
func TestCacheFileNoFolder(t *testing.T) {
	dev := memoryStore(t, 64<<10, 4096, sector, false)
	path := filepath.Join(t.TempDir(), "none", "c")
	if _, err := openOn(dev, nil, uuid.New(), path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v: want an error that names %s", err, path)
	}
	st, err := store.Open(dev)
	if check(t, err); st.Header().Owner != nil {
		t.Error("the store has an owner after a failed open")
	}
}

// Who only reads refuses what a dead engine of this boot may know better.
func TestReadOnlyAfterDeath(t *testing.T) {
	dev, boot, path := killed(t)
	readOnly := func(o *Options) { o.ReadOnly = true }
	if _, err := openOn(dev, nil, boot, path, readOnly); err == nil {
		t.Error("opened for reading while the truth is in a dead engine's cache")
	}
	v := mustOpen(t, dev.Open(true), nil, uuid.New(), "", readOnly)
	check(t, v.Close())
}
