package engine

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/uring"
)

// openRing returns a ring of the test's own thread.
func openRing(t *testing.T) *uring.Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	ring, err := uring.New(64)
	if err != nil {
		t.Skipf("SKIP: no io_uring here: %v", err)
	}
	t.Cleanup(func() { check(t, ring.Close()) })
	return ring
}

// openFile opens a file of the host as serve does a store, or as it does a master.
func openFile(t *testing.T, path string, o blockdev.FileOptions) *blockdev.File {
	t.Helper()
	f, err := blockdev.OpenFile(context.Background(), path, o)
	check(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func newFile(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	check(t, os.WriteFile(path, nil, 0o600))
	check(t, os.Truncate(path, size))
	return path
}

// ringed drives a volume with many requests at a time through a real ring, each on sectors that no other
// one uses just then, against a model.
type ringed struct {
	t      *testing.T
	ring   *uring.Ring
	v      *Volume
	rng    *rand.Rand
	want   []byte
	active []*blockdev.Request
	done   chan *blockdev.Request
	errs   []error
	count  int
}

func (x *ringed) start() {
	size := int64(len(x.want))
	n := (1 + x.rng.Int64N(24)) * sector
	switch x.rng.IntN(8) {
	case 0: // several chunks
		n = (1 + x.rng.Int64N(400)) * sector
	case 1, 2:
		n = 4096 * (1 + x.rng.Int64N(8))
	}
	n = min(n, size)
	off := x.rng.Int64N((size-n)/sector+1) * sector
	if x.rng.IntN(2) == 0 { // the fast way takes whole blocks
		off, n = off/4096*4096, max(n/4096*4096, min(4096, size-off/4096*4096))
	}
	for _, r := range x.active {
		if off < r.Off+r.Length && r.Off < off+n {
			return
		}
	}
	r := &blockdev.Request{Op: blockdev.OpRead, Off: off, Length: n, Ring: x.ring}
	switch k := x.rng.IntN(20); {
	case k < 9:
		r.Op, r.FUA = blockdev.OpWrite, k == 0
	case k == 9:
		r.Op = blockdev.OpWriteZeroes
	case k == 10:
		r.Op, r.Off, r.Length = blockdev.OpFlush, 0, 0
	}
	if r.Length > 0 && r.Op <= blockdev.OpWrite {
		r.Buf = blockdev.Alloc(int(n))
	}
	switch r.Op {
	case blockdev.OpWrite:
		fill(r.Buf, off, x.rng.Uint32())
		copy(x.want[off:], r.Buf)
	case blockdev.OpWriteZeroes:
		clear(x.want[off : off+n])
	}
	r.Done = func(r *blockdev.Request, err error) {
		if err != nil || !r.Detached {
			x.errs = append(x.errs, err)
		}
		x.done <- r
	}
	x.active = append(x.active, r)
	x.v.Submit(r)
}

// finish takes what has ended off the list and looks at what was read.
func (x *ringed) finish(r *blockdev.Request) {
	for i, o := range x.active {
		if o == r {
			x.active = append(x.active[:i], x.active[i+1:]...)
			break
		}
	}
	x.count++
	if r.Op == blockdev.OpRead && !bytes.Equal(r.Buf, x.want[r.Off:r.Off+r.Length]) {
		for at := int64(0); at < r.Length; at += sector {
			if got, want := r.Buf[at:at+sector], x.want[r.Off+at:r.Off+at+sector]; !bytes.Equal(got, want) {
				x.t.Fatalf("request %d: read at %d length %d: sector at %d holds %x, want %x", x.count, r.Off, r.Length, r.Off+at, got[:8], want[:8])
			}
		}
	}
	blockdev.Free(r.Buf)
}

// turn lets completions come in, waiting for one if anything is under way.
func (x *ringed) turn(wait bool) {
	for {
		check(x.t, x.ring.Turn(wait && x.ring.InFlight() > 0))
		select {
		case r := <-x.done:
			x.finish(r)
			wait = false
			continue
		default:
		}
		if !wait || len(x.active) == 0 {
			return
		}
		if x.ring.InFlight() == 0 {
			x.finish(<-x.done)
			wait = false
		}
	}
}

func (x *ringed) drain() {
	for len(x.active) > 0 {
		x.turn(true)
	}
}

// runRinged is the test on a store at a path, with a master with holes, shorter than the volume.
func runRinged(t *testing.T, storePath string, size, chunk int64, seed uint64, requests int) {
	ring := openRing(t)
	masterPath := newFile(t, "master", 3*mib+512)
	w := openFile(t, masterPath, blockdev.FileOptions{})
	for off := int64(0); off < 3*mib; off += 16 << 10 {
		_, err := w.WriteAt(filled(off, 8192, 0), off)
		check(t, err)
	}
	check(t, w.Flush())
	master := openFile(t, masterPath, blockdev.FileOptions{ReadOnly: true})
	file := openFile(t, storePath, blockdev.FileOptions{Direct: true, Lock: blockdev.LockExclusive})
	if !file.Direct() {
		t.Skipf("SKIP: no O_DIRECT on the file system of %s", storePath)
	}
	_, err := newStore(size, chunk, true, func(int64) (blockdev.Device, error) { return file, nil })
	check(t, err)
	boot, cache := uuid.New(), filepath.Join(cacheDir(t), "c")
	x := &ringed{t: t, ring: ring, rng: rand.New(rand.NewPCG(seed, 5)), done: make(chan *blockdev.Request, 1024)}
	on := shelf{}
	x.v = mustOpen(t, file, master, boot, cache, on.option)
	x.want = contents(t, x.v, size)
	var snapshots []*blockdevtest.Memory
	var wants [][]byte
	snapshot := func() { // of the moment
		x.drain()
		m, _ := snap(t, x.v, on, 0)
		snapshots, wants = append(snapshots, m), append(wants, bytes.Clone(x.want))
	}
	check(t, master.DropCache())
	depth := 16
	for i := 0; x.count < requests; i++ {
		for range 4 {
			if len(x.active) < depth {
				x.start()
			}
		}
		x.turn(len(x.active) >= depth || x.rng.IntN(4) == 0)
		switch {
		case len(snapshots) == 0 && x.count > requests/8:
			snapshot()
		case i%100 == 50 && x.count < requests/2:
			check(t, master.DropCache())
		case x.count > requests/2 && x.v.Hydration().State == HydrationPaused:
			x.v.SetHydrationRate(20 * mib)
			check(t, x.v.StartHydration())
		}
	}
	x.drain()
	for _, err := range x.errs {
		check(t, err)
	}
	if !bytes.Equal(contents(t, x.v, size), x.want) {
		t.Error("at the end the volume reads as something else")
	}
	snapshot()
	x.v.SetHydrationRate(0)
	eventually(t, "cut loose", func() bool { return x.v.Hydration().State == HydrationDone })
	for x.count = 0; x.count < requests/4; {
		x.start()
		x.turn(len(x.active) >= depth)
	}
	x.drain()
	if !bytes.Equal(contents(t, x.v, size), x.want) {
		t.Error("once cut loose the volume reads as something else")
	}
	for i, m := range snapshots {
		if got := asOfCut(t, x.v, openFile(t, masterPath, blockdev.FileOptions{ReadOnly: true}), m); !bytes.Equal(got, wants[i]) {
			t.Errorf("snapshot %d is not the volume as of its cut", i)
		}
	}
	check(t, x.v.Close())
	v := mustOpen(t, file, nil, boot, cache, on.option)
	if !bytes.Equal(contents(t, v, size), x.want) {
		t.Error("opened again the volume reads as something else")
	}
	check(t, v.Close())
}

// The io_uring way of a clone and of a linear volume, on a real file.
func TestRing(t *testing.T) {
	for seed, chunk := range []int64{4096, 64 << 10} {
		runRinged(t, newFile(t, "store", 16*mib), 5*mib+3*512, chunk, uint64(seed), 4000)
	}
}

// The same without a master: reads of clear chunks ask nobody.
func TestRingNoMaster(t *testing.T) {
	ring := openRing(t)
	file := openFile(t, newFile(t, "store", 8*mib), blockdev.FileOptions{Direct: true})
	_, err := newStore(mib, 4096, false, func(int64) (blockdev.Device, error) { return file, nil })
	check(t, err)
	x := &ringed{t: t, ring: ring, rng: rand.New(rand.NewPCG(1, 5)), done: make(chan *blockdev.Request, 64), want: make([]byte, mib)}
	x.v = mustOpen(t, file, nil, uuid.New(), "")
	for x.count < 1000 {
		x.start()
		x.turn(len(x.active) >= 8)
	}
	x.drain()
	if !bytes.Equal(contents(t, x.v, mib), x.want) {
		t.Error("at the end the volume reads as something else")
	}
	check(t, x.v.Close())
}

// The same on a block device with sectors of 4096 bytes.
func TestRingLoop4096(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: loop devices need root")
	}
	backing := newFile(t, "backing", 16*mib)
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", "4096", backing).CombinedOutput()
	if err != nil {
		t.Skipf("SKIP: losetup --sector-size 4096: %v: %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", loop, err, out)
		}
	})
	runRinged(t, loop, 5*mib+3*512, 16<<10, 9, 2500)
}
