package engine

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

const sector = blockdev.SectorSize

// testHost is the host all engines of these tests run on.
var testHost = uuid.MustParse("4a5e1e4b-aab8-4a0e-b1d6-6c1f2e3d4c5b")

// word is what a sector written as a version holds, 64 times over. Version 0 is the master's.
func word(version uint32, at int64) uint64 {
	return 1<<63 | uint64(version&0x7fffffff)<<32 | uint64(uint32(at))
}

// fill makes p, whole sectors, hold one version from byte off of the volume on.
func fill(p []byte, off int64, version uint32) {
	for i := 0; i < len(p); i += sector {
		w := word(version, off/sector+int64(i/sector))
		for j := i; j < i+sector; j += 8 {
			binary.LittleEndian.PutUint64(p[j:], w)
		}
	}
}

func filled(off, length int64, version uint32) []byte {
	p := make([]byte, length)
	fill(p, off, version)
	return p
}

// wordOf is the word a sector holds, or an error for a mixture.
func wordOf(p []byte) (uint64, error) {
	w := binary.LittleEndian.Uint64(p)
	for i := 8; i < sector; i += 8 {
		if v := binary.LittleEndian.Uint64(p[i:]); v != w {
			return 0, fmt.Errorf("a mixture of %#x and %#x", w, v)
		}
	}
	return w, nil
}

// memoryMaster is a master of size bytes of version 0; with holes, of each four pieces of 4 KiB the last
// is one. Nothing outside the window is written.
func memoryMaster(size int64, holes bool, from, to int64) *blockdevtest.Memory {
	m := blockdevtest.NewMemory("master", size, sector)
	for off := from; off < min(to, size); off += 4096 {
		if holes && off/4096%4 == 3 {
			continue
		}
		if _, err := m.WriteAt(filled(off, min(4096, size-off), 0), off); err != nil {
			panic(err)
		}
	}
	return m
}

// newStore makes a store of a clone on a device with room for it; open makes the device.
func newStore(size, chunk int64, master bool, open func(size int64) (blockdev.Device, error)) (blockdev.Device, error) {
	p := store.Params{Name: "vol", Role: cowfmt.RoleClone, Size: size, ChunkSize: chunk, Now: time.Unix(1, 0)}
	if master {
		p.Master = &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: "/master"}
		p.MasterIdentity = &cowfmt.Identity{Kind: cowfmt.IdentitySamples, Size: size}
	}
	h, err := store.NewHeader(p)
	if err != nil {
		return nil, err
	}
	dev, err := open(h.DataEnd())
	if err != nil {
		return nil, err
	}
	return dev, store.Create(dev, h)
}

// memoryStore is newStore in memory.
func memoryStore(tb testing.TB, size, chunk int64, block int, master bool) *blockdevtest.Memory {
	tb.Helper()
	dev, err := newStore(size, chunk, master, func(size int64) (blockdev.Device, error) {
		return blockdevtest.NewMemory("store", size, block), nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return dev.(*blockdevtest.Memory)
}

// openOn opens a volume on a device, as an engine of this boot with this cache.
func openOn(dev, master blockdev.Device, boot uuid.UUID, cache string, change ...func(*Options)) (*Volume, error) {
	st, err := store.Open(NewLatch(dev))
	if err != nil {
		return nil, err
	}
	o := Options{
		Store: st, Master: master, Owner: cowfmt.Owner{Host: testHost, Boot: boot, Since: 1},
		CachePath: cache, CommitEvery: -1, Log: zerolog.Nop(),
	}
	if st.Header().Master == nil {
		o.Master = nil
	}
	for _, f := range change {
		f(&o)
	}
	return Open(context.Background(), o)
}

func mustOpen(tb testing.TB, dev, master blockdev.Device, boot uuid.UUID, cache string, change ...func(*Options)) *Volume {
	tb.Helper()
	v, err := openOn(dev, master, boot, cache, change...)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// abandon is what is left to do for a volume whose process is dead: its memory is unmapped, nothing else.
func abandon(v *Volume) {
	v.moving.kill()
	if v.stopTicks != nil {
		v.stopTicks()
		v.ticks.Wait()
	}
	_ = v.cache.close(false)
}

// cacheDir is a folder for exception caches on tmpfs, where there is one.
func cacheDir(tb testing.TB) string {
	tb.Helper()
	if st, err := os.Stat("/dev/shm"); err != nil || !st.IsDir() {
		return tb.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "engine-test-")
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// request makes one request through Submit and waits for it.
func request(v *Volume, r *blockdev.Request) error {
	done := make(chan error, 1)
	r.Done = func(_ *blockdev.Request, err error) { done <- err }
	if r.Buf != nil {
		r.Length = int64(len(r.Buf))
	}
	v.Submit(r)
	return <-done
}

// hydrateNow copies everything and cuts the clone loose, on this goroutine.
func hydrateNow(v *Volume) error {
	if v.hydrator == nil {
		return nil
	}
	return v.hydrator.hydrate(context.Background())
}

// eventually polls until ok, and fails the test after a minute.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("after a minute: not %s", what)
		}
	}
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
