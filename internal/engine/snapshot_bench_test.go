package engine

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// directFile is a file of so many bytes past the page cache, all of it allocated, as a LUN is.
func directFile(b *testing.B, name string, size int64) *blockdev.File {
	b.Helper()
	path := filepath.Join(b.TempDir(), name)
	check(b, os.WriteFile(path, nil, 0o600))
	check(b, os.Truncate(path, size))
	f, err := blockdev.OpenFile(context.Background(), path, blockdev.FileOptions{Direct: true})
	check(b, err)
	b.Cleanup(func() { _ = f.Close() })
	if !f.Direct() {
		b.Skipf("SKIP: no O_DIRECT on the file system of %s", path)
	}
	buf := blockdev.Alloc(int(mib))
	defer blockdev.Free(buf)
	for off := int64(0); off < size; off += mib {
		_, err := f.WriteAt(buf[:min(mib, size-off)], off)
		check(b, err)
	}
	check(b, f.Flush())
	return f
}

// BenchmarkOrigin is random writes of 4 KiB to a raw disk, 16 at a time: without a snapshot, with a fresh one, where nearly
// each write saves a chunk first, and with one that has all chunks already.
func BenchmarkOrigin(b *testing.B) {
	const size = 64 * mib
	for _, c := range []struct {
		name          string
		snap, already bool
	}{{"none", false, false}, {"fresh", true, false}, {"steady", true, true}} {
		b.Run(c.name, func(b *testing.B) {
			state, err := stateStore(size, 4096)
			check(b, err)
			disk, on := directFile(b, "raw", size), shelf{}
			v := mustOpen(b, state, nil, uuid.New(), "", on.option, func(o *Options) { o.Origin = NewLatch(disk) })
			if c.snap {
				h, err := store.NewSnapshotHeader(store.SnapshotParams{Volume: v.Header(), VolumeAddress: "/v", Cut: uuid.New()})
				check(b, err)
				dev := directFile(b, "snapshot", h.DataEnd())
				check(b, store.CreateSnapshot(dev, h))
				on[h.UUID] = func() (blockdev.Device, error) { return dev, nil }
				check(b, v.AddSnapshot(b.Context(), cowfmt.StackEntry{UUID: h.UUID, CutID: h.Cut, Locator: cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: "/s"}}))
				check(b, v.Cut(b.Context(), h.Cut, saveTimeout))
				check(b, v.EndCut(b.Context(), h.Cut, true))
			}
			if c.already {
				_, err := v.WriteAt(make([]byte, size), 0)
				check(b, err)
			}
			order := rand.New(rand.NewPCG(1, 1)).Perm(int(size / 4096))
			var next atomic.Int64
			b.SetBytes(4096)
			b.SetParallelism(8) // of two processors
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				p := blockdev.Alloc(4096)
				defer blockdev.Free(p)
				for pb.Next() {
					at := order[int(next.Add(1))%len(order)]
					if _, err := v.WriteAt(p, int64(at)*4096); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.StopTimer()
			check(b, v.Close())
		})
	}
}
