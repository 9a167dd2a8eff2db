package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
)

// step does one random thing.
func (x *explorer) step() error {
	if x.rng.IntN(25) == 0 {
		x.doom(12)
	}
	if x.rng.IntN(20) == 0 {
		x.darken(15)
	}
	return x.survive(x.something())
}

// survive follows a death of the engine or of its host, if there was one: then err says nothing.
func (x *explorer) survive(err error) error {
	x.cutMu.Lock()
	dead, after, views := x.late != nil, x.after, x.views
	x.cutMu.Unlock()
	switch {
	case after != nil:
		return x.boots(after, views)
	case dead:
		return x.successor()
	}
	return err
}

// darken has the power cut during one of the next operations of the device.
func (x *explorer) darken(within int) {
	x.cutMu.Lock()
	defer x.cutMu.Unlock()
	x.cutAt = x.ops + 1 + x.rng.IntN(within)
}

// doom has the engine killed during one of the next operations of the device.
func (x *explorer) doom(within int) {
	x.cutMu.Lock()
	defer x.cutMu.Unlock()
	x.killAt = x.ops + 1 + x.rng.IntN(within)
}

// spare calls both off.
func (x *explorer) spare() {
	x.cutMu.Lock()
	defer x.cutMu.Unlock()
	x.killAt, x.cutAt = 0, 0
}

func (x *explorer) something() error {
	if x.world.snapshots > 0 && x.rng.IntN(7) == 0 {
		return x.snapshotStep()
	}
	switch n := x.rng.IntN(100); {
	case n < 70:
		return x.guest(x.rng, x.off, x.length, 1)
	case n < 76:
		return x.verify()
	case n < 88:
		return x.hydrate()
	case n < 91:
		return x.v.commit.commit(x.v.table)
	case n < 93:
		return x.cutLoose()
	case n < 97:
		return x.reopen()
	}
	return x.powerCut()
}

// guest makes one random request inside [off, off+length) and keeps the model. Trims of several at a
// time are multiples of unit bytes: what a trim does to less depends on the target of that moment.
func (x *explorer) guest(rng *rand.Rand, off, length, unit int64) error {
	n := x.randomLength(rng, length)
	at := off + rng.Int64N((length-n)/sector+1)*sector
	if rng.IntN(4) == 0 { // whole chunks, to the end
		at = max(at/x.chunk*x.chunk, off)
		n = min((n+x.chunk-1)/x.chunk*x.chunk, off+length-at)
	}
	r := &blockdev.Request{Op: blockdev.OpWrite, Off: at, Length: n, FUA: rng.IntN(6) == 0}
	switch k := rng.IntN(16); {
	case k < 3:
		r = &blockdev.Request{Op: blockdev.OpFlush}
	case k < 5:
		r.Op = blockdev.OpTrim
		if unit > 1 {
			r.Off = (at + unit - 1) / unit * unit
			if r.Length = (at+n)/unit*unit - r.Off; r.Length <= 0 {
				return nil
			}
		}
	case k < 7:
		r.Op, r.NoHole = blockdev.OpWriteZeroes, rng.IntN(2) == 0
	}
	return x.submit(r)
}

func (x *explorer) randomLength(rng *rand.Rand, limit int64) int64 {
	n := sector + rng.Int64N(min(x.chunk, limit)/sector)*sector
	if rng.IntN(6) == 0 { // larger than a chunk
		n = sector + rng.Int64N(min(4*x.chunk, limit)/sector)*sector
	}
	return min(n, limit)
}

func (x *explorer) submit(r *blockdev.Request) error {
	if r.Op == blockdev.OpFlush {
		marks := x.model.beginFlush()
		err := request(x.v, r)
		if err == nil {
			x.model.endFlush(marks)
		}
		return err
	}
	off, length := r.Off, r.Length
	content := func(int64) uint64 { return 0 }
	switch r.Op {
	case blockdev.OpWrite:
		x.versionMu.Lock()
		x.version++
		version := x.version
		x.versionMu.Unlock()
		r.Buf = filled(off, length, version)
		content = func(at int64) uint64 { return word(version, at) }
	case blockdev.OpTrim:
		return x.trim(r)
	}
	durable := r.FUA
	if x.forgetFUA {
		r.FUA = false
	}
	x.model.issue(off, length, content)
	if err := request(x.v, r); err != nil {
		return err
	}
	x.model.ack(off, length, durable)
	return nil
}

// trim makes a trim, of which the target does what it can.
func (x *explorer) trim(r *blockdev.Request) error {
	pieces, sure := x.trimmed(x.v.target(), r.Off, r.Length)
	for _, p := range pieces {
		x.model.issue(p[0], p[1], func(int64) uint64 { return 0 })
	}
	if err := request(x.v, r); err != nil {
		return err
	}
	for _, p := range pieces {
		if sure {
			x.model.ack(p[0], p[1], r.FUA)
		}
	}
	return nil
}

// together has several workers make requests at the same time, each in its own pieces, which share
// chunks with others'.
func (x *explorer) together() error {
	if x.rng.IntN(12) == 0 {
		return x.reopen()
	}
	if x.rng.IntN(16) == 0 {
		return x.powerCut()
	}
	if x.world.snapshots > 0 && x.rng.IntN(4) == 0 {
		return x.survive(x.snapshotStep())
	}
	doomed := x.rng.IntN(6) == 0
	if doomed {
		x.doom(25)
	} else if x.rng.IntN(8) == 0 {
		x.darken(25)
	}
	piece := x.chunk*3/2/sector*sector + sector
	errs := make([]error, x.workers+1)
	var wg sync.WaitGroup
	for k := range x.workers {
		rng := rand.New(rand.NewPCG(x.rng.Uint64(), uint64(k)))
		wg.Go(func() {
			for range 3 {
				p := rng.Int64N((x.length/piece)/int64(x.workers))*int64(x.workers) + int64(k)
				if err := x.guest(rng, x.off+p*piece, piece, x.chunk); err != nil {
					errs[k] = err
					return
				}
			}
		})
	}
	if !x.cacheOff && x.rng.IntN(3) == 0 {
		loose := x.rng.IntN(6) == 0 && !doomed // or its retries would wait for a while
		job := x.rng.Uint64()
		wg.Go(func() {
			if loose {
				errs[x.workers] = hydrateNow(x.v)
			} else {
				errs[x.workers] = x.hydrateOne(int(job % (1 << 30)))
			}
		})
	}
	wg.Wait()
	x.spare()
	return x.survive(errors.Join(errs...))
}

// jobs are pieces of hydration that are left, of the window.
func (x *explorer) jobs() (jobs []job) {
	h := x.v.hydrator
	if h == nil || x.cacheOff || x.v.Target() != "clone" {
		return nil
	}
	if x.length == x.size {
		_ = h.plan(context.Background(), func(j job) { jobs = append(jobs, split(j, 2*x.chunk)...) })
		return jobs
	}
	for off := x.off / x.chunk * x.chunk; off < x.off+x.length; off += x.chunk {
		extents, err := h.c.masterExtents(off, min(x.chunk, x.size-off))
		if err == nil {
			jobs = append(jobs, jobsOf(extents, off, x.chunk, x.chunk)...)
		}
	}
	return jobs
}

func (x *explorer) hydrate() error { return x.hydrateOne(x.rng.IntN(1 << 30)) }

func (x *explorer) hydrateOne(n int) error {
	jobs := x.jobs()
	if len(jobs) == 0 {
		return nil
	}
	return x.v.hydrator.do(context.Background(), jobs[n%len(jobs)])
}

func (x *explorer) cutLoose() error {
	if x.cacheOff || x.length < x.size || x.v.Target() != "clone" || x.rng.IntN(3) > 0 {
		return nil
	}
	for _, j := range x.jobs() { // one at a time, so that what happens is the seed's alone
		if err := x.v.hydrator.do(context.Background(), j); err != nil {
			return err
		}
	}
	return x.v.cutLoose(context.Background())
}

// reopen closes the volume cleanly and opens it again in the same boot.
func (x *explorer) reopen() error {
	marks := x.model.beginFlush()
	if err := x.v.Close(); err != nil {
		return err
	}
	x.model.endFlush(marks)
	v, err := x.openDev(x.crash, x.boot, x.cachePath())
	if err == nil {
		x.v = v
	}
	return err
}

// successor follows an engine that was killed: its last writes land or don't, then its cache is taken
// over. What was acknowledged is there.
func (x *explorer) successor() error {
	if !x.v.closed.Load() {
		abandon(x.v)
	}
	x.cut(1)
	for x.late.Len() > 0 && x.rng.IntN(4) > 0 {
		x.late.Land(x.rng.IntN(x.late.Len()))
	}
	x.late.Drop()
	x.late = nil
	for _, s := range x.snaps {
		if s.late == nil { // made since
			continue
		}
		for s.late.Len() > 0 && x.rng.IntN(4) > 0 {
			s.late.Land(x.rng.IntN(s.late.Len()))
		}
		s.late.Drop()
		s.late = nil
		s.crash = s.crash.Open(false)
		s.crash.OnOp = x.onOp
	}
	if err := forgetFailedFlush(x.cachePath()); err != nil {
		return err
	}
	if x.loseCache {
		x.boot = uuid.New()
	}
	if err := x.start(x.crash.Open(false)); err != nil {
		return fmt.Errorf("after its engine was killed: %w", err)
	}
	if err := x.settleSnapshots(); err != nil {
		return fmt.Errorf("after its engine was killed: %w", err)
	}
	p, err := x.read(x.v)
	if err == nil {
		err = x.model.visible(p, x.off)
	}
	if err != nil {
		return fmt.Errorf("after its engine was killed: %w", err)
	}
	x.model.found(p, false)
	return nil
}

// forgetFailedFlush: the dead don't note that their flush failed, as those did that Kill had return.
func forgetFailedFlush(cache string) error {
	f, err := os.OpenFile(cache, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = f.WriteAt(make([]byte, 4), offFlushFailed)
		err = errors.Join(err, f.Close())
	}
	return err
}

// powerCut is one that happens between two requests.
func (x *explorer) powerCut() error {
	before := x.model.snapshot()
	state := x.left(blockdevtest.Moments(x.devices()...), x.rng)
	x.darkened()
	return x.boots(state, [][][]uint64{before})
}

// boots goes on on what a power cut left.
func (x *explorer) boots(state *blockdevtest.Memory, views [][][]uint64) error {
	if !x.v.closed.Load() {
		abandon(x.v)
	}
	x.spare()
	x.boot, x.late, x.after, x.views = uuid.New(), nil, nil, nil
	x.model.back(views...)
	x.relight()
	if err := x.start(blockdevtest.NewCrash(state, blockdevtest.CrashOptions{})); err != nil {
		return fmt.Errorf("after a power cut: %w", err)
	}
	if err := x.settleSnapshots(); err != nil {
		return fmt.Errorf("after a power cut: %w", err)
	}
	p, err := x.read(x.v)
	if err == nil {
		err = x.model.allows(p, x.off, views...)
	}
	if err != nil {
		return fmt.Errorf("after a power cut: %w", err)
	}
	x.model.found(p, true)
	return nil
}
