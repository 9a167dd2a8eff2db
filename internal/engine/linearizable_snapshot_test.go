package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Clients stay linearizable while cuts are made, cursors move, snapshots fail and are broken, and are removed; and each
// snapshot holds the volume as of its cut, above its cursor, until it is broken.
func TestLinearizableWithSnapshots(t *testing.T) {
	const clients, each, chunk = 4, 60, 4096
	const size = 8*chunk - 512
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := memoryMaster(size, true, 0, size)
			h := &history{sectors: map[int64][]porcupine.Operation{}, noTrim: true}
			for at, p := int64(0), contents(t, m, size); at < size/sector; at++ {
				w, _ := wordOf(p[at*sector:])
				h.sectors[at] = []porcupine.Operation{{Input: access{true, w}, Call: -2, Return: -1}}
			}
			on := shelf{}
			v := mustOpen(t, jitter{memoryStore(t, size, chunk, sector, true)}, jitter{m.Open(true)}, uuid.New(), "", on.option, func(o *Options) {
				o.CommitEvery = time.Millisecond
			})
			v.SetHydrationRate(int64(seed%3) * mib)
			check(t, v.StartHydration())
			var stop atomic.Bool
			var wg, background sync.WaitGroup
			background.Go(func() {
				for rng := rand.New(rand.NewPCG(seed, 7)); !stop.Load(); {
					if err := liveSnapshot(v, m, on, rng); err != nil {
						t.Error(err)
						return
					}
				}
			})
			for k := range clients {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(seed, uint64(k)))
					for range each {
						if err := h.do(v, k, randomRequest(rng, size, chunk)); err != nil {
							t.Error(err)
							return
						}
						time.Sleep(time.Duration(rng.IntN(200)) * time.Microsecond)
					}
				})
			}
			wg.Wait()
			stop.Store(true)
			background.Wait()
			for at, ops := range h.sectors {
				if porcupine.CheckOperationsTimeout(register, ops, time.Minute) == porcupine.Illegal {
					t.Errorf("sector %d is not linearizable", at)
				}
			}
			check(t, v.Close())
		})
	}
}

// liveSnapshot is the life of one snapshot under load.
func liveSnapshot(v *Volume, master blockdev.Device, on shelf, rng *rand.Rand) error {
	ctx, cut := context.Background(), uuid.New()
	m, e, err := newSnapshotStore(v.Header(), 0, sector, cut)
	if err != nil {
		return err
	}
	fails := rng.IntN(3) == 0
	sick := &spell{Device: blockdevtest.NewFault(m, blockdevtest.NewFailure(blockdevtest.Rule{N: 1 + rng.IntN(12), Forever: true})), well: m}
	sick.over.Store(true)
	on[e.UUID] = func() (blockdev.Device, error) { return jitter{sick}, nil }
	if err := v.AddSnapshot(ctx, e); err != nil {
		return err
	}
	for err = v.Cut(ctx, cut, time.Minute); err != nil; err = v.Cut(ctx, cut, time.Minute) {
		if errors.Is(err, ErrNoSnapshot) { // the one before failed halfway
			return nil
		}
		time.Sleep(time.Millisecond) // cutting loose, for one
	}
	want := make([]byte, v.info.Size)
	if err := v.target().read(want, 0); err != nil {
		return err
	}
	if err := v.EndCut(ctx, cut, true); err != nil {
		return err
	}
	sick.over.Store(!fails)
	section, err := v.section()
	if err != nil {
		return err
	}
	for range 4 {
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond)
		// As a reader on another host does it: all of it, piece by piece; then a look at the header.
		got := bytes.Clone(want)
		readErr := readLive(m, section, master, got)
		i := v.Header()
		var now cowfmt.StackEntry
		for _, o := range i.Stack {
			if o.UUID == e.UUID {
				now = o
			}
		}
		if now.State != cowfmt.StackActive {
			if now.State == cowfmt.StackBroken && fails {
				break
			}
			return fmt.Errorf("snapshot %v: %v", e.UUID, now)
		}
		if readErr != nil || !bytes.Equal(got[now.Cursor:], want[now.Cursor:]) {
			return fmt.Errorf("snapshot %v is not the volume as of its cut: %v", e.UUID, readErr)
		}
		if to := now.Cursor + rng.Int64N(8192); to < v.info.Size {
			if err := v.SetCursor(ctx, e.UUID, to); err != nil && !fails {
				return err
			}
		}
	}
	return v.RemoveSnapshot(ctx, e.UUID)
}

// readLive reads while the volume is written: each chunk in the order of docs/BACKUP.md, its flags by reads of their own.
func readLive(snapshot, origin, master blockdev.Device, p []byte) error {
	for off := int64(0); off < int64(len(p)); off += 4096 {
		part := p[off:min(off+4096, int64(len(p)))]
		if err := readSnapshot(snapshot, origin, original(master), 0, part, off); err != nil {
			return err
		}
	}
	return nil
}
