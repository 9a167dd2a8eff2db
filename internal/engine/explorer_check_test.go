package engine

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/store"
)

// cut looks at some of the states that a power cut now could leave.
func (x *explorer) cut(count int) {
	x.cutMu.Lock()
	defer x.cutMu.Unlock()
	if x.err != nil {
		return
	}
	before := x.model.snapshot()
	moments := blockdevtest.Moments(x.devices()...)
	views := [][][]uint64{before}
	if x.workers > 1 { // what was issued meanwhile may be in the moment
		views = append(views, x.model.snapshot())
	}
	for range count {
		state := x.left(moments, x.cutRNG)
		x.states++
		if err := x.checkState(state, x.cutRNG, views); err != nil {
			x.err = fmt.Errorf("state %d, a power cut after operation %d of the device: %w", x.states, x.crash.Ops(), err)
			return
		}
	}
}

// checkState boots again on what a power cut left.
func (x *explorer) checkState(state *blockdevtest.Memory, rng *rand.Rand, views [][][]uint64) error {
	if !x.raw {
		if err := x.checkTable(state, views); err != nil {
			return err
		}
	}
	if err := x.checkSnapshots(state); err != nil {
		return err
	}
	x.caches++
	boot, cache := uuid.New(), filepath.Join(x.dir, fmt.Sprintf("after-%d.cache", x.caches))
	v, err := x.openDev(state, boot, cache)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer os.Remove(cache)
	p, err := x.read(v)
	if err == nil {
		err = x.model.allows(p, x.off, views...)
	}
	if err != nil || rng.IntN(4) > 0 {
		abandon(v)
		return err
	}
	return x.goOn(state, v, rng, p, boot, cache)
}

// checkTable is invariant 1 without the engine: where a flag is durable, so is the data.
func (x *explorer) checkTable(state *blockdevtest.Memory, views [][][]uint64) error {
	st, err := store.Open(state)
	if err != nil {
		return err
	}
	h := st.Header()
	if x.length < x.size { // the table may be very large
		var flags [store.LeafFlags]byte
		for _, c := range []int64{x.off / x.chunk, (x.off + x.length - 1) / x.chunk} {
			if err := st.ReadLeaf(c/store.LeafChunks, flags[:]); err != nil {
				return err
			}
		}
		return nil
	}
	bad := func(e error) { err = e }
	_, scanErr := st.ScanTable(context.Background(), bad, nil, func(first, count int64) {
		p := make([]byte, min((first+count)*x.chunk, x.size)-first*x.chunk)
		buf := make([]byte, count*x.chunk)
		_, e := state.ReadAt(buf, h.ChunkOffset(first))
		if copy(p, buf); e == nil {
			e = x.model.allows(p, first*x.chunk, views...)
		}
		if e != nil && err == nil {
			err = fmt.Errorf("chunk %d and %d more have durable flags: %w", first, count-1, e)
		}
	})
	if scanErr != nil {
		return scanErr
	}
	return err
}

// goOn writes to what a power cut left, closes it and opens it once more.
func (x *explorer) goOn(state *blockdevtest.Memory, v *Volume, rng *rand.Rand, p []byte, boot uuid.UUID, cache string) error {
	for range 3 {
		n := x.randomLength(rng, x.length)
		at := rng.Int64N((x.length-n)/sector+1) * sector
		fill(p[at:at+n], x.off+at, rng.Uint32())
		if _, err := v.WriteAt(p[at:at+n], x.off+at); err != nil {
			abandon(v)
			return err
		}
	}
	if err := v.Flush(); err != nil {
		abandon(v)
		return err
	}
	if err := v.Close(); err != nil {
		return err
	}
	v, err := x.openDev(state, boot, cache)
	if err != nil {
		return fmt.Errorf("open once more: %w", err)
	}
	q, err := x.read(v)
	if err == nil && !bytes.Equal(p, q) {
		err = fmt.Errorf("written after a power cut, closed and opened: other data")
	}
	if cerr := v.Close(); err == nil {
		err = cerr
	}
	return err
}
