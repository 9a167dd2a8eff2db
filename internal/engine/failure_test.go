package engine

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// failing is a volume on a device that fails when it is told to.
func failing(t *testing.T, dir string, n int, raw bool) (x *explorer, dev *blockdevtest.Memory) {
	t.Helper()
	w := world{name: "failing", chunk: 4096, size: 12<<12 + 512, block: sector, master: 10 << 12, holes: true}
	if raw {
		w = world{name: "failing raw disk", chunk: 4096, size: 12<<12 + 512, block: sector, raw: true}
	}
	x, err := newExplorer(w, uint64(n), dir)
	check(t, err)
	return x, x.crash.PowerCut(x.rng)
}

// spell is a device that fails for a while.
type spell struct {
	blockdev.Device // that fails
	well            blockdev.Device
	over            atomic.Bool
}

func (s *spell) now() blockdev.Device {
	if s.over.Load() {
		return s.well
	}
	return s.Device
}

func (s *spell) ReadAt(p []byte, off int64) (int, error)  { return s.now().ReadAt(p, off) }
func (s *spell) WriteAt(p []byte, off int64) (int, error) { return s.now().WriteAt(p, off) }
func (s *spell) Flush() error                             { return s.now().Flush() }
func (s *spell) WriteZeroes(off, length int64, unmap bool) error {
	return s.now().WriteZeroes(off, length, unmap)
}

// attach opens the volume on dev with a failure, which ends when the returned function is called.
func (x *explorer) attach(dev blockdev.Device, f *blockdevtest.Failure) (end func(), err error) {
	s := &spell{Device: dev, well: dev}
	if f != nil {
		s.Device = blockdevtest.NewFault(dev, f)
	}
	x.mutate = func(blockdev.Device, cowfmt.Layout) blockdev.Device { return s }
	x.v, err = x.openDev(dev, x.boot, x.cachePath())
	x.mutate = nil
	return func() { s.over.Store(true) }, err
}

// actions are what fails at each of its operations. Before one of them, chunks 0 to 2 were written and
// flushed and chunk 3 was written.
var actions = []struct {
	name string
	do   func(x *explorer) error
}{
	{"first write", write(5<<12, 1<<12, false)},
	{"partial first write", write(5<<12+512, 1024, false)},
	{"first write of several chunks", write(4<<12+512, 3<<12, false)},
	{"first write, durable", write(5<<12, 1<<12, true)},
	{"rewrite", write(1024, 2<<12, false)},
	{"rewrite, durable", write(1024, 2<<12, true)},
	{"write over both", write(2<<12, 4<<12, false)},
	{"write to the end", write(11<<12+512, 1<<12, false)},
	{"zeroes", zeroes(512, 7<<12)},
	{"trim", func(x *explorer) error { return x.submit(&blockdev.Request{Op: blockdev.OpTrim, Length: 7 << 12}) }},
	{"flush", flush},
	{"write, flush, write, flush", func(x *explorer) error {
		for i := range int64(2) {
			if err := write((6+i)<<12+512, 512, false)(x); err != nil {
				return err
			}
			if err := flush(x); err != nil {
				return err
			}
		}
		return nil
	}},
	{"cut loose", func(x *explorer) error {
		if err := zeroes(0, x.size)(x); err != nil {
			return err
		}
		return hydrateNow(x.v)
	}},
	{"hydrate", func(x *explorer) error { return hydrateNow(x.v) }},
}

func write(off, length int64, durable bool) func(x *explorer) error {
	return func(x *explorer) error {
		return x.submit(&blockdev.Request{Op: blockdev.OpWrite, Off: off, Length: length, FUA: durable})
	}
}

func zeroes(off, length int64) func(x *explorer) error {
	return func(x *explorer) error {
		return x.submit(&blockdev.Request{Op: blockdev.OpWriteZeroes, Off: off, Length: length})
	}
}

func flush(x *explorer) error { return x.submit(&blockdev.Request{Op: blockdev.OpFlush}) }

// Each operation of each action fails in turn, in several ways. The error says where; nothing that was
// acknowledged is lost; a failed flush stays failed; after anything else the volume goes on.
func TestEachFailure(t *testing.T) {
	rules := map[string]blockdevtest.Rule{
		"EIO":                    {Ops: blockdevtest.AllOps &^ blockdevtest.ExtentQueries},
		"ENOSPC":                 {Ops: blockdevtest.Writes | blockdevtest.Zeroes, Err: syscall.ENOSPC},
		"torn":                   {Ops: blockdevtest.Writes | blockdevtest.Zeroes, Torn: 3},
		"flush that drops":       {Ops: blockdevtest.Flushes, DropUnflushed: true},
		"no room from then on":   {Ops: blockdevtest.Writes, Err: syscall.ENOSPC, Forever: true},
		"a device that is gone":  {Ops: blockdevtest.AllOps &^ blockdevtest.ExtentQueries, Forever: true},
		"no flush from then on ": {Ops: blockdevtest.Flushes, Forever: true},
	}
	dir := cacheDir(t)
	total := 0
	for kind, rule := range rules {
		for _, a := range actions {
			for _, raw := range []bool{false, true} {
				if a.name == "hydrate" && (raw || rule.Forever) {
					continue // its retries wait; TestHydrateFailsAndGoesOn has them
				}
				name := kind + "/" + strings.ReplaceAll(a.name, ",", "")
				if raw {
					name = "raw/" + name
				}
				t.Run(name, func(t *testing.T) {
					total += blockdevtest.EachFailure(t, rule, func(n int, f *blockdevtest.Failure) {
						if err := failOnce(t, dir, n, f, rule, raw, a.do); err != nil {
							t.Errorf("operation %d: %v", n, err)
						}
					})
				})
			}
		}
	}
	t.Logf("%d failures", total)
}

func failOnce(t *testing.T, dir string, n int, f *blockdevtest.Failure, rule blockdevtest.Rule, raw bool, do func(x *explorer) error) error {
	x, dev := failing(t, dir, n, raw)
	if _, err := x.attach(dev, nil); err != nil {
		return err
	}
	for _, prepare := range []func(*explorer) error{write(0, 3<<12, false), flush, write(3<<12, 1<<12, false)} {
		if err := prepare(x); err != nil {
			return err
		}
	}
	// The same volume, from here on over a device that fails: the engine is killed and followed.
	abandon(x.v)
	end, err := x.attach(dev, f)
	opened := err == nil
	if opened {
		err = do(x)
	}
	end()
	switch {
	case err != nil && f.Fired() == 0:
		return err
	case err != nil && !strings.Contains(err.Error(), "store"):
		return fmt.Errorf("an error that does not name the device: %w", err)
	case err != nil && rule.Err != nil && !errors.Is(err, rule.Err):
		return fmt.Errorf("%w: want %v", err, rule.Err)
	case !opened:
		return x.again(dev, false)
	}
	if failed, err := err, x.usable(); err != nil {
		return fmt.Errorf("after %v: %w", failed, err)
	}
	return x.again(dev, x.v.FlushError() != nil)
}

// usable checks that a volume goes on after a failure, but for a failed flush, which stays failed.
func (x *explorer) usable() error {
	if x.v.FlushError() != nil {
		switch {
		case x.v.Flush() == nil:
			return errors.New("a failed flush did not stay failed")
		case write(0, 1<<12, true)(x) == nil:
			return errors.New("a durable write after a failed flush")
		case x.v.Close() == nil:
			return errors.New("closed cleanly after a failed flush")
		}
		return nil
	}
	for _, step := range []func(*explorer) error{
		(*explorer).verify, write(7<<12+512, 2<<12, false), write(0, 1<<12, false), flush, (*explorer).verify,
	} {
		if err := step(x); err != nil {
			return err
		}
	}
	return x.v.Close()
}

// again opens the volume again on a device that is well, and checks what it holds.
func (x *explorer) again(dev *blockdevtest.Memory, broken bool) error {
	v, err := x.openDev(dev, x.boot, x.cachePath())
	if broken {
		if !errors.Is(err, ErrLoss) {
			return fmt.Errorf("opened after a failed flush: %v, want %v", err, ErrLoss)
		}
		v, err = x.openDev(dev, x.boot, x.cachePath(), func(o *Options) { o.AcceptLoss = true })
	}
	if err != nil {
		return fmt.Errorf("open again: %w", err)
	}
	p, err := x.read(v)
	if err == nil && broken {
		err = x.model.allows(p, 0, x.model.snapshot()) // as after a power cut
	} else if err == nil {
		err = x.model.visible(p, 0)
	}
	if err == nil {
		err = v.Flush()
	}
	if cerr := v.Close(); err == nil {
		err = cerr
	}
	return err
}

// Opening and closing fail at each of their operations: the volume opens again, without accepting a loss
// unless a flush failed while there was something to lose.
func TestEachFailureOpenClose(t *testing.T) {
	rules := map[string]blockdevtest.Rule{
		"EIO":              {Ops: blockdevtest.AllOps &^ blockdevtest.ExtentQueries},
		"torn":             {Ops: blockdevtest.Writes, Torn: 5},
		"flush that drops": {Ops: blockdevtest.Flushes, DropUnflushed: true},
		"gone":             {Ops: blockdevtest.AllOps &^ blockdevtest.ExtentQueries, Forever: true},
	}
	dir := cacheDir(t)
	for kind, rule := range rules {
		t.Run("open/"+kind, func(t *testing.T) {
			n := blockdevtest.EachFailure(t, rule, func(n int, f *blockdevtest.Failure) {
				x, dev := failing(t, dir, n, false)
				end, err := x.attach(dev, f)
				end()
				if err != nil && !strings.Contains(err.Error(), "store") {
					t.Errorf("operation %d: an error that does not name the device: %v", n, err)
				}
				if err == nil {
					abandon(x.v)
				}
				if _, err := x.attach(dev, nil); err != nil {
					t.Errorf("operation %d failed at open; opened again: %v", n, err)
					return
				}
				check(t, x.verify())
				check(t, x.v.Close())
			})
			t.Logf("%d failures", n)
		})
		t.Run("close/"+kind, func(t *testing.T) {
			blockdevtest.EachFailure(t, rule, func(n int, f *blockdevtest.Failure) {
				x, dev := failing(t, dir, n, false)
				_, err := x.attach(dev, nil)
				check(t, err)
				check(t, write(0, 3<<12, false)(x))
				abandon(x.v)
				if _, err = x.attach(dev, f); err != nil {
					return // the other half of this test
				}
				failed := x.v.Close()
				if failed != nil && !strings.Contains(failed.Error(), "store") {
					t.Errorf("operation %d: an error that does not name the device: %v", n, failed)
				}
				// Once the owner record is gone all was committed, and there is nothing to lose.
				st, err := store.Open(dev)
				check(t, err)
				if err := x.again(dev, st.Header().Owner != nil && x.v.FlushError() != nil); err != nil {
					t.Errorf("operation %d failed at close (%v): %v", n, failed, err)
				}
			})
		})
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.new"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in the cache folder: %q %v", left, err)
	}
}
