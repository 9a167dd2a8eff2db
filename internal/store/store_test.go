package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func header(t *testing.T, size, chunk int64) *cowfmt.Header {
	t.Helper()
	h, err := NewHeader(Params{Name: "vol", Role: cowfmt.RoleClone, Size: size, ChunkSize: chunk, Now: time.Unix(1, 0)})
	check(t, err)
	return h
}

func memory(h *cowfmt.Header, block int) *blockdevtest.Memory {
	return blockdevtest.NewMemory("disk", h.DataEnd(), block)
}

func created(t *testing.T, size, chunk int64, block int) *blockdevtest.Memory {
	t.Helper()
	h := header(t, size, chunk)
	dev := memory(h, block)
	check(t, Create(dev, h))
	return dev
}

func open(t *testing.T, dev blockdev.Device) *Store {
	t.Helper()
	s, err := Open(dev)
	check(t, err)
	return s
}

func TestDataConformance(t *testing.T) {
	for _, block := range []int{512, 4096} {
		blockdevtest.Conformance(t, func(t *testing.T) blockdev.Device {
			dev, err := open(t, created(t, 2<<20+512, 64<<10, block)).Data()
			check(t, err)
			return closing{dev}
		}, blockdevtest.WithFreshZeros())
	}
}

// closing closes the whole with the part.
type closing struct{ *blockdev.Section }

func (c closing) Close() error {
	whole, _ := c.Under()
	return whole.Close()
}

// Nothing of a store is written outside its metadata when it is made.
func TestCreateWritesNoData(t *testing.T) {
	h := header(t, 1<<20, 4096)
	dev := memory(h, 512)
	rubbish := bytes.Repeat([]byte{0xa5}, 4096)
	for off := int64(0); off < h.DataEnd(); off += 4096 {
		_, err := dev.WriteAt(rubbish, off)
		check(t, err)
	}
	check(t, Create(dev, h))
	p := make([]byte, 4096)
	for off := int64(cowfmt.MetadataSize); off < h.DataEnd(); off += 4096 {
		if _, err := dev.ReadAt(p, off); err != nil || !bytes.Equal(p, rubbish) {
			t.Fatalf("Create wrote at %d", off)
		}
	}
	s := open(t, dev)
	set, err := s.ScanTable(context.Background(), func(err error) { t.Error(err) }, nil, nil)
	if err != nil || set != 0 {
		t.Errorf("a fresh store has %d chunks: %v", set, err)
	}
}

func TestCreateTooSmall(t *testing.T) {
	h := header(t, 1<<20, 4096)
	dev := blockdevtest.NewMemory("disk", h.DataEnd()-512, 512)
	if err := Create(dev, h); err == nil || !strings.Contains(err.Error(), "disk") {
		t.Errorf("%v: want an error that names the device", err)
	}
}

// While a store is made over another one, a power cut leaves the old store, no store or the new one, and
// a failed Create can be done again.
func TestCreatePowerCut(t *testing.T) {
	old := created(t, 1<<20, 4096, 512)
	was := open(t, old).Header().UUID
	h := header(t, 1<<20, 4096)
	dev := blockdevtest.NewCrash(old, blockdevtest.CrashOptions{})
	states := 0
	dev.OnOp = func(n int, op string, _, _ int64) {
		for state := range dev.States(60) {
			states++
			s, err := Open(state)
			switch {
			case errors.Is(err, cowfmt.ErrNotStore), errors.Is(err, cowfmt.ErrCorrupt):
			case err != nil:
				t.Errorf("at operation %d (%s): %v", n, op, err)
			case s.Header().UUID != was && s.Header().UUID != h.UUID:
				t.Errorf("at operation %d: store %v", n, s.Header().UUID)
			}
		}
	}
	check(t, Create(dev, h))
	for state := range dev.States(10) {
		if s := open(t, state); s.Header().UUID != h.UUID {
			t.Error("made, but another store is there after a power cut")
		}
	}
	t.Logf("%d power cuts", states)
}

func TestCreateEachFailure(t *testing.T) {
	for _, torn := range []int{0, 7} {
		n := blockdevtest.EachFailure(t, blockdevtest.Rule{Torn: torn}, func(n int, f *blockdevtest.Failure) {
			h := header(t, 1<<20, 4096)
			dev := memory(h, 512)
			err := Create(blockdevtest.NewFault(dev, f), h)
			if (err != nil) != (f.Fired() > 0) || err != nil && !strings.Contains(err.Error(), "disk") {
				t.Errorf("operation %d: %v", n, err)
			}
			check(t, Create(dev, h))
			open(t, dev)
		})
		if n < 6 {
			t.Errorf("only %d operations failed", n)
		}
	}
}

// A header update is all or nothing, whatever was damaged, torn or failed before.
func TestUpdatePowerCut(t *testing.T) {
	states := 0
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		dev := blockdevtest.NewCrash(created(t, 1<<20, 4096, []int{512, 4096}[seed%2]), blockdevtest.CrashOptions{})
		s := open(t, dev)
		low, high := uint64(0), uint64(0) // Opens that may be found
		look := func() {
			for range 12 {
				states++
				found, err := Open(dev.PowerCut(rng))
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if got := found.Header().Opens; got < low || got > high {
					t.Fatalf("seed %d: found update %d, want %d to %d", seed, got, low, high)
				}
			}
		}
		var amid *blockdevtest.Memory // what a power cut left that happened during an update
		hook := func(int, string, int64, int64) {
			look()
			if rng.IntN(12) == 0 {
				amid = dev.PowerCut(rng)
			}
		}
		dev.OnOp = hook
		for range 40 {
			high++
			check(t, s.change(func(h *cowfmt.Header) {
				h.Opens = high
				h.Owner = &cowfmt.Owner{Host: uuid.New(), Boot: uuid.New(), Instance: uuid.New()}
				letter := string(rune('a' + high%26)) // several sectors change, so that a header can tear
				h.Owner.HostName, h.Owner.Address = strings.Repeat(letter, 250), strings.Repeat(letter, 500)
			}))
			low = high
			look()
			state := amid
			if amid = nil; state == nil && rng.IntN(4) == 0 {
				state = dev.PowerCut(rng)
			}
			if state != nil { // the machine boots on it
				dev = blockdevtest.NewCrash(state, blockdevtest.CrashOptions{})
				dev.OnOp = hook
			}
			s = open(t, dev)
			low, high = s.Header().Opens, s.Header().Opens
		}
	}
	t.Logf("%d power cuts", states)
}

// An update that fails leaves the old or the new header, and the next one works.
func TestUpdateEachFailure(t *testing.T) {
	for _, torn := range []int{0, 9} {
		blockdevtest.EachFailure(t, blockdevtest.Rule{Ops: blockdevtest.Writes | blockdevtest.Flushes, Torn: torn}, func(n int, f *blockdevtest.Failure) {
			dev := created(t, 1<<20, 4096, 512)
			s := open(t, blockdevtest.NewFault(dev, f))
			err := s.Update(func(h *cowfmt.Header) { h.Opens = 5 })
			if (err != nil) != (f.Fired() > 0) || err != nil && !strings.Contains(err.Error(), "disk") {
				t.Errorf("operation %d: %v", n, err)
			}
			if got := open(t, dev).Header().Opens; got != 5 && (got != 0 || err == nil) {
				t.Errorf("operation %d: Opens %d after %v", n, got, err)
			}
			if f.Fired() == 0 {
				return
			}
			check(t, s.Update(func(h *cowfmt.Header) { h.Opens = 6 }))
			again := open(t, dev)
			if again.Header().Opens != 6 || again.Problems() != [2]error{} {
				t.Errorf("operation %d: %d, %v after the update after it", n, again.Header().Opens, again.Problems())
			}
		})
	}
}

// One damaged header copy costs nothing and is mended; two are refused.
func TestDamagedHeaders(t *testing.T) {
	for _, which := range [][]int{{0}, {1}, {0, 1}} {
		dev := created(t, 1<<20, 4096, 512)
		for _, i := range which {
			p := make([]byte, 512)
			_, err := dev.ReadAt(p, cowfmt.HeaderOffsets[i])
			check(t, err)
			p[100] ^= 1
			_, err = dev.WriteAt(p, cowfmt.HeaderOffsets[i])
			check(t, err)
		}
		s, err := Open(dev)
		if len(which) == 2 {
			if !errors.Is(err, cowfmt.ErrCorrupt) || !strings.Contains(err.Error(), "disk") {
				t.Errorf("both copies damaged: %v", err)
			}
			continue
		}
		check(t, err)
		if s.Problems()[which[0]] == nil || s.Problems()[1-which[0]] != nil {
			t.Errorf("copy %d damaged: problems %v", which[0], s.Problems())
		}
		check(t, s.Update(func(h *cowfmt.Header) { h.Opens++ }))
		if p := open(t, dev).Problems(); p != [2]error{} {
			t.Errorf("copy %d is not mended: %v", which[0], p)
		}
	}
}

func TestTruncated(t *testing.T) {
	h := header(t, 1<<20, 4096)
	whole := memory(h, 512)
	check(t, Create(whole, h))
	for _, size := range []int64{h.DataEnd() - 512, h.Layout.Table[0], cowfmt.MetadataSize, 700 << 10, 64 << 10} {
		short, err := blockdev.NewSection(whole, 0, size)
		check(t, err)
		if _, err := Open(short); !errors.Is(err, ErrTruncated) || !strings.Contains(err.Error(), "disk") {
			t.Errorf("%d bytes of %d: %v", size, h.DataEnd(), err)
		}
	}
	short, err := blockdev.NewSection(whole, 0, 32<<10)
	check(t, err)
	if _, err := Open(short); err == nil || !strings.Contains(err.Error(), "disk") {
		t.Errorf("half a header: %v", err)
	}
}

// Who owns a store, and who may take it.
func TestOwner(t *testing.T) {
	dev := created(t, 1<<20, 4096, 512)
	me := cowfmt.Owner{Host: uuid.New(), Boot: uuid.New(), Instance: uuid.New(), HostName: "one", Since: 1}
	other := cowfmt.Owner{Host: uuid.New(), Boot: uuid.New(), Instance: uuid.New()}
	acquire := func(o cowfmt.Owner) (bool, error) { return open(t, dev).Acquire(context.Background(), o, Claiming{}) }
	if resumed, err := acquire(me); resumed || err != nil {
		t.Fatalf("of nobody: %v %v", resumed, err)
	}
	if _, err := acquire(other); !errors.Is(err, ErrOwned) || !strings.Contains(err.Error(), "one") {
		t.Errorf("of another host: %v", err)
	}
	successor := me
	successor.Instance = uuid.New()
	if resumed, err := acquire(successor); !resumed || err != nil {
		t.Errorf("of this boot: %v %v", resumed, err)
	}
	if got := open(t, dev).Header(); got.Owner.Instance != me.Instance || got.Opens != 1 {
		t.Errorf("a successor changed the header: %+v", got.Owner)
	}
	successor.Boot = uuid.New()
	if resumed, err := acquire(successor); resumed || err != nil {
		t.Errorf("of an earlier boot: %v %v", resumed, err)
	}
	last := open(t, dev)
	if err := last.Release(); !errors.Is(err, ErrNotOwner) {
		t.Errorf("released without having been acquired: %v", err)
	}
	_, err := last.Acquire(context.Background(), successor, Claiming{})
	check(t, err)
	check(t, last.Release())
	if got := open(t, dev).Header(); got.Owner != nil || got.Opens != 2 {
		t.Errorf("released: %+v, %d opens", got.Owner, got.Opens)
	}
	if _, err := acquire(other); err != nil {
		t.Error(err)
	}
}
