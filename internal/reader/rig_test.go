package reader_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/reader"
	"github.com/virt-cow/virt-cow/internal/store"
)

// shape is a volume of a test.
type shape struct {
	name        string
	clone       bool
	size, chunk int64
	master      int64 // bytes, with holes; 0: none
}

var shapes = []shape{
	{name: "raw disk", size: 70<<12 + 512, chunk: 4096},
	{name: "raw disk, 64K chunks", size: 9<<16 + 3*512, chunk: 64 << 10},
	{name: "clone", clone: true, size: 70<<12 + 512, chunk: 4096, master: 50<<12 + 512},
	{name: "clone of nothing, 64K chunks", clone: true, size: 9 << 16, chunk: 64 << 10},
}

// rig is a volume with an engine of its own kind, the real one, and one snapshot of it.
type rig struct {
	shape
	store, origin, snapshot blockdev.Device // as the engine has them; origin nil: of a clone
	master                  *blockdevtest.Memory
	v                       *engine.Volume
	id, cut                 uuid.UUID
	image                   []byte // what it held at the cut
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// pattern is n bytes that no other seed makes.
func pattern(n int64, seed uint64) []byte {
	p, rng := make([]byte, n), rand.New(rand.NewPCG(seed, 7))
	for i := range p {
		p[i] = byte(rng.Uint32()) | 1
	}
	return p
}

// disks makes the devices of a rig: make puts a device of a size there.
func (s shape) disks(tb testing.TB, make func(name string, size int64) blockdev.Device) *rig {
	tb.Helper()
	r := &rig{shape: s, cut: uuid.New()}
	p := store.Params{Name: "vol", Role: cowfmt.RoleState, Size: s.size, ChunkSize: 4096, Now: time.Unix(1, 0)}
	if s.clone {
		p.Role, p.ChunkSize = cowfmt.RoleClone, s.chunk
	} else {
		p.Origin = &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: "/raw"}
		r.origin = make("origin", s.size)
		_, err := r.origin.WriteAt(pattern(s.size/2&^511, 1), 0) // the rest is a hole
		check(tb, err)
		check(tb, r.origin.Flush())
	}
	if s.master > 0 {
		p.Master = &cowfmt.Locator{Kind: cowfmt.LocatorRaw, Address: "/master"}
		p.MasterIdentity = &cowfmt.Identity{Kind: cowfmt.IdentitySamples, Size: s.master}
		r.master = blockdevtest.NewMemory("master", s.master, 512)
		for off := int64(0); off < s.master; off += 8 << 12 {
			_, err := r.master.WriteAt(pattern(min(5<<12, s.master-off), uint64(off)), off)
			check(tb, err)
		}
	}
	h, err := store.NewHeader(p)
	check(tb, err)
	r.store = make("store", h.DataEnd())
	check(tb, store.Create(r.store, h))
	sh, err := store.NewSnapshotHeader(store.SnapshotParams{
		Volume: h, VolumeAddress: "/volume", ChunkSize: s.chunk, Cut: r.cut, Now: time.Unix(1, 0),
	})
	check(tb, err)
	r.snapshot, r.id = make("snapshot", sh.DataEnd()), sh.UUID
	check(tb, store.CreateSnapshot(r.snapshot, sh))
	return r
}

func memory(name string, size int64) blockdev.Device { return blockdevtest.NewMemory(name, size, 512) }

var background = context.Background()

// open starts an engine.
func (r *rig) open(tb testing.TB) {
	tb.Helper()
	st, err := store.Open(engine.NewLatch(r.store))
	check(tb, err)
	o := engine.Options{
		Store: st, Owner: cowfmt.Owner{Host: uuid.UUID{1}, Boot: uuid.UUID{2}, HostName: "a"}, CommitEvery: -1, Log: zerolog.Nop(), AcceptLoss: true,
		OpenSnapshot: func(context.Context, cowfmt.StackEntry) (*store.Snapshot, func() error, error) {
			s, err := store.OpenSnapshot(engine.NewLatch(r.snapshot))
			return s, func() error { return nil }, err
		},
	}
	if r.master != nil {
		o.Master = r.master.Open(true)
	}
	if r.origin != nil {
		o.Origin = engine.NewLatch(r.origin)
	}
	r.v, err = engine.Open(background, o)
	check(tb, err)
}

// snap makes the cut, after a few writes.
func (r *rig) snap(tb testing.TB) {
	tb.Helper()
	r.open(tb)
	rng := rand.New(rand.NewPCG(1, uint64(r.size)))
	for range 12 {
		r.change(tb, rng)
	}
	check(tb, r.v.AddSnapshot(tb.Context(), cowfmt.StackEntry{
		UUID: r.id, CutID: r.cut, Locator: cowfmt.Locator{Kind: cowfmt.LocatorStore, Address: "/snapshot"},
	}))
	r.image = make([]byte, r.size)
	_, err := r.v.ReadAt(r.image, 0)
	check(tb, err)
	check(tb, r.v.Cut(tb.Context(), r.cut, time.Minute))
	check(tb, r.v.EndCut(tb.Context(), r.cut, true))
}

// change has the guest change something.
func (r *rig) change(tb testing.TB, rng *rand.Rand) {
	tb.Helper()
	check(tb, change(r.v, rng))
}

func change(v *engine.Volume, rng *rand.Rand) error {
	sectors := v.Info().Size / 512
	n := 1 + rng.Int64N(min(40, sectors))
	off := rng.Int64N(sectors-n+1) * 512
	q := &blockdev.Request{Off: off, Length: n * 512}
	switch rng.IntN(6) {
	case 0:
		q.Op = blockdev.OpWriteZeroes
	case 1:
		q.Op = blockdev.OpTrim
	case 2:
		q = &blockdev.Request{Op: blockdev.OpFlush}
	default:
		q.Op, q.Buf = blockdev.OpWrite, pattern(n*512, rng.Uint64())
	}
	done := make(chan error, 1)
	q.Done = func(_ *blockdev.Request, err error) { done <- err }
	v.Submit(q)
	return <-done
}

// config is what a reader on another host has.
func (r *rig) config() reader.Config {
	c := reader.Config{Volume: r.store, Origin: r.origin, Snapshot: r.snapshot, SnapshotUUID: r.id, Cut: r.cut, Log: zerolog.Nop()}
	if r.master != nil {
		c.Master = r.master.Open(true)
	}
	return c
}

func (r *rig) view(tb testing.TB) *reader.View {
	tb.Helper()
	v, err := reader.Open(background, r.config())
	check(tb, err)
	return v
}

// compare reads a part and says how it differs from the cut.
func (r *rig) compare(v *reader.View, off, length int64) error {
	p := blockdev.Alloc(int(length))
	defer blockdev.Free(p)
	for i := range p {
		p[i] = 0xbd
	}
	if _, err := v.ReadAt(p, off); err != nil {
		return err
	}
	if want := r.image[off : off+length]; !bytes.Equal(p, want) {
		i := 0
		for p[i] == want[i] {
			i++
		}
		return fmt.Errorf("%s: byte %d is %#x, at the cut it was %#x: %w", r.name, off+int64(i), p[i], want[i], errWrong)
	}
	return nil
}

var errWrong = fmt.Errorf("not as of the cut")

// zeros says whether what is said to be zeros was so at the cut.
func (r *rig) zeros(v *reader.View, off, length int64) error {
	all, err := v.Extents(off, length)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.Zero && len(bytes.Trim(r.image[e.Offset:e.Offset+e.Length], "\x00")) > 0 {
			return fmt.Errorf("%s: %+v was not zeros: %w", r.name, e, errWrong)
		}
	}
	return nil
}

// whole compares all that is not released, and has it judged.
func (r *rig) whole(v *reader.View) error {
	from := v.Cursor()
	if from < r.size {
		if err := r.compare(v, from, r.size-from); err != nil {
			return err
		}
		if err := r.zeros(v, from, r.size-from); err != nil {
			return err
		}
	}
	_, err := v.Verify(background, from)
	return err
}

// save marks chunks as saved, whatever they hold.
func (r *rig) save(tb testing.TB, which func(chunk int64) bool) {
	tb.Helper()
	s, err := store.OpenSnapshot(r.snapshot)
	check(tb, err)
	data, err := s.Data()
	check(tb, err)
	fillUp(tb, data)
	chunks := s.Header().Chunks()
	for i := range s.Leaves() {
		flags := make([]byte, store.LeafFlags)
		for n := range min(store.LeafChunks, chunks-i*store.LeafChunks) {
			if which(i*store.LeafChunks + n) {
				flags[n/8] |= 1 << (n % 8)
			}
		}
		check(tb, s.WriteLeaves([]store.Leaf{{Index: i, Flags: flags}}))
	}
}

// fillUp writes all of a device.
func fillUp(tb testing.TB, d blockdev.Device) {
	tb.Helper()
	p := pattern(1<<20, 3)
	for off, size := int64(0), d.Info().Size; off < size; off += int64(len(p)) {
		_, err := d.WriteAt(p[:min(int64(len(p)), size-off)], off)
		check(tb, err)
	}
	check(tb, d.Flush())
}

// cpu is what this process has used, in seconds.
func cpu(tb testing.TB) float64 {
	tb.Helper()
	var u unix.Rusage
	check(tb, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
