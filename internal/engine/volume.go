package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// ErrLoss says that data which a guest had been told was written may be lost. Options.AcceptLoss goes on
// all the same.
var ErrLoss = errors.New("acknowledged data may be lost")

// Options say how to open a volume.
type Options struct {
	Store  *store.Store    // on a device of NewLatch that is locked against other processes
	Master blockdev.Device // of a clone that needs one, else nil; only read, and closed with the volume
	Origin blockdev.Device // of a state store: the raw disk, on a device of NewLatch that is locked, too; stays the caller's

	ReadOnly   bool
	Owner      cowfmt.Owner // Host, Boot and what is told of them; Instance is made here
	CachePath  string       // the exception cache, a file on tmpfs; "": memory that dies with the process
	CacheMode  cowfmt.CacheMode
	AcceptLoss bool // go on after ErrLoss
	Claiming   store.Claiming

	CommitEvery time.Duration // the longest a flag stays uncommitted; 0: a second; negative: until a FLUSH
	Log         zerolog.Logger
}

// Volume is what a guest sees as one disk. It is a blockdev.Device, and takes requests that must not
// block through Submit.
type Volume struct {
	st       *store.Store
	data     blockdev.Device // what guests' data is on
	info     blockdev.Info
	log      zerolog.Logger
	master   blockdev.Device
	cache    *cacheFile
	table    *table // nil: linear from the start
	commit   *committer
	gate     gate
	inflight *inflight
	stats    stats
	current  atomic.Pointer[target]
	hydrator *hydrator

	masterMu  sync.Mutex
	stopTicks context.CancelFunc
	ticks     sync.WaitGroup
	closed    atomic.Bool
}

// Open maps the volume of a store and, unless it is only read, becomes the store's owner. The context bounds the wait
// for another host that is just opening it.
func Open(ctx context.Context, o Options) (*Volume, error) {
	h := o.Store.Header()
	info := o.Store.Device().Info()
	v := &Volume{
		st: o.Store, log: o.Log, master: o.Master, data: o.Store.Device(), inflight: new(inflight),
		info: blockdev.Info{Name: h.Name, Size: h.Size, BlockSize: blockdev.SectorSize, ReadOnly: o.ReadOnly || info.ReadOnly},
	}
	switch h.Role {
	case cowfmt.RoleClone:
	case cowfmt.RoleState:
		if err := checkOrigin(h, o.Origin); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Store.Name(), err)
		}
		v.data = o.Origin
		v.info.ReadOnly = v.info.ReadOnly || o.Origin.Info().ReadOnly
	default:
		return nil, fmt.Errorf("%s: is a %v store, which is not served by itself", o.Store.Name(), h.Role)
	}
	v.commit = &committer{st: o.Store, data: v.data}
	if o.Master == nil && h.Master != nil && !h.CutLoose {
		return nil, fmt.Errorf("%s: its master is needed: %s", o.Store.Name(), h.Master.Address)
	}
	if err := checkState(o.Store.Name(), h, v.info.ReadOnly); err != nil {
		return nil, err
	}
	recovered, err := v.own(ctx, o)
	if err != nil {
		return nil, err
	}
	err = v.mapTarget(recovered, o.CacheMode)
	if err == nil && recovered && v.CacheMode() == cowfmt.CacheOff {
		// What is only in this host's memory no other host could see.
		err = v.commit.commit(v.table)
	}
	if err != nil {
		return nil, errors.Join(err, v.cache.close(false))
	}
	if !v.info.ReadOnly {
		v.tick(o.CommitEvery)
	}
	return v, nil
}

// checkState refuses a store in a state that this engine does not know how to keep right.
func checkState(name string, h *cowfmt.Header, readOnly bool) error {
	switch {
	case h.Progress.Kind != cowfmt.ProgressNone:
		return fmt.Errorf("%s: an operation on it was not finished (kind %d): finish it with the program that began it", name, h.Progress.Kind)
	case readOnly:
		return nil
	case len(h.Stack) > 0:
		return fmt.Errorf("%s: it has %d snapshots and trackers, which this program can't keep: use a newer one", name, len(h.Stack))
	case len(h.Grants) > 0:
		return fmt.Errorf("%s: it is granted to %s: a volume that two hosts have open can't be taken by this program", name, h.Grants[0].HostName)
	}
	return nil
}

// own takes the store and its exception cache. recovered: the cache is that of an engine of this boot
// that died.
func (v *Volume) own(ctx context.Context, o Options) (recovered bool, err error) {
	leaves := v.st.Leaves()
	// Since the store was opened there was time for others, by another path or on another host.
	if err := v.st.Reread(); err != nil {
		return false, err
	}
	if v.info.ReadOnly {
		// What another host wrote with its cache on may still be in its memory only.
		if err := v.st.Elsewhere(o.Owner.Host); err != nil && o.CacheMode != cowfmt.CacheOff {
			return false, err
		}
		if owner := v.st.Header().Owner; owner != nil && owner.Host == o.Owner.Host && owner.Boot == o.Owner.Boot {
			return false, fmt.Errorf("%s: its engine died in this boot: serve it for writing once before it is read", v.st.Name())
		}
		v.cache, err = createCache("", nil, uuid.Nil, leaves)
		return false, err
	}
	me := o.Owner
	if me.Instance = uuid.New(); me.Since == 0 {
		me.Since = time.Now().Unix()
	}
	// The cache is there before the owner record that names its instance: an owner record without its
	// cache then always means that the cache was lost. Another host's owner leaves everything as it is.
	if owner := v.st.Header().Owner; owner == nil || owner.Host == me.Host && owner.Boot != me.Boot {
		if v.cache, err = createCache(o.CachePath, v.st.Header(), me.Instance, leaves); err != nil {
			return false, err
		}
	}
	resumed, err := v.st.Acquire(ctx, me, o.Claiming)
	if err != nil {
		// The device may have the new owner record all the same: then its cache must be there.
		if v.cache != nil {
			err = errors.Join(err, v.cache.close(errors.Is(err, store.ErrOwned) || errors.Is(err, store.ErrClaimed)))
		}
		return false, err
	}
	if resumed {
		if recovered, err = v.recover(o, leaves); err != nil {
			return false, err
		}
	}
	for _, dev := range []blockdev.Device{v.st.Device(), v.data} {
		if l, ok := dev.(*latch); ok {
			l.tell = v.cache.setFlushFailed
		}
	}
	return recovered, nil
}

// recover takes over what a dead engine of this boot left in memory.
func (v *Volume) recover(o Options, leaves int64) (recovered bool, err error) {
	h := v.st.Header()
	v.cache, err = openCache(o.CachePath, h, leaves)
	switch {
	case errors.Is(err, errNoCache) && !o.AcceptLoss:
		return false, fmt.Errorf("%s: its engine died in this boot and the exception cache %s is gone or not its own: %w (--accept-loss goes on)", v.st.Name(), o.CachePath, ErrLoss)
	case errors.Is(err, errNoCache):
		return false, v.startAnew(o.CachePath, leaves)
	case err != nil:
		return false, err
	}
	if atomic.LoadUint32(v.cache.flushFailed()) == 0 {
		return true, nil
	}
	if !o.AcceptLoss {
		err := fmt.Errorf("%s: a flush failed while it was open: %w (--accept-loss goes on; check the guest's file systems)", v.st.Name(), ErrLoss)
		return false, errors.Join(err, v.cache.close(false))
	}
	// Flags that were not committed are dropped, as a power cut would: their data may be what was lost.
	if err := v.cache.close(false); err != nil {
		return false, err
	}
	return false, v.startAnew(o.CachePath, leaves)
}

// startAnew goes on with an empty cache after a loss that was accepted. The instance is a new one, or an
// old cache that turns up somewhere would be taken for this one's.
func (v *Volume) startAnew(path string, leaves int64) (err error) {
	instance := uuid.New()
	if v.cache, err = createCache(path, v.st.Header(), instance, leaves); err != nil {
		return err
	}
	err = v.st.Update(func(h *cowfmt.Header) {
		owner := *h.Owner
		owner.Instance = instance
		h.Owner = &owner
	})
	if err != nil {
		return errors.Join(err, v.cache.close(false))
	}
	return nil
}

// mapTarget builds the target that the header asks for.
func (v *Volume) mapTarget(recovered bool, mode cowfmt.CacheMode) error {
	h := v.st.Header()
	section, err := v.section()
	if err != nil {
		return err
	}
	data := newArea(section)
	if h.CutLoose || h.Role == cowfmt.RoleState {
		v.setTarget(&linear{size: h.Size, data: data, inflight: v.inflight, commit: v.commit})
		return nil
	}
	v.table = newTable(v.st, v.cache, recovered)
	if mode != 0 {
		v.table.mode.Store(uint32(mode))
	}
	c := &clone{
		size: h.Size, chunk: h.ChunkSize, data: data, table: v.table,
		inflight: v.inflight, commit: v.commit, copied: &v.stats.copied,
	}
	if v.master != nil {
		master := newArea(v.master)
		c.master, c.end = &master, min(v.master.Info().Size, h.Size)
	}
	v.setTarget(c)
	v.hydrator = newHydrator(v, c)
	return nil
}

// section is the part of a device that holds the volume, rounded up to whole chunks or blocks.
func (v *Volume) section() (*blockdev.Section, error) {
	h := v.st.Header()
	if h.Role != cowfmt.RoleState {
		return v.st.Data()
	}
	block := int64(v.data.Info().BlockSize)
	return blockdev.NewSection(v.data, 0, (h.Size+block-1)/block*block)
}

// checkOrigin refuses a raw disk that can't hold the volume: what is behind its end would be lost.
func checkOrigin(h *cowfmt.Header, origin blockdev.Device) error {
	if origin == nil {
		return fmt.Errorf("its raw disk is needed: %s", h.Origin.Address)
	}
	if info := origin.Info(); info.Size < h.Size {
		return fmt.Errorf("its raw disk %s has %d bytes, the volume %d: the disk has shrunk, or is another one", info.Name, info.Size, h.Size)
	}
	return nil
}

func (v *Volume) target() target { return *v.current.Load() }

func (v *Volume) setTarget(t target) { v.current.Store(&t) }

// tick commits flags that nobody flushes.
func (v *Volume) tick(every time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	v.stopTicks = cancel
	if every < 0 || v.table == nil {
		return
	}
	if every == 0 {
		every = time.Second
	}
	v.ticks.Add(1)
	go func() {
		defer v.ticks.Done()
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				if v.table.isDirty() {
					if err := v.commit.commit(v.table); err != nil {
						v.log.Error().Err(err).Msg("commit of the exception table")
						if v.FlushError() != nil {
							return // it will not get better
						}
					}
				}
			}
		}
	}()
}

// Target is the name of the current target: clone or linear.
func (v *Volume) Target() string { return v.target().name() }

// Header is the store's header as it is now.
func (v *Volume) Header() *cowfmt.Header { return v.st.Header() }

// FlushError is why FLUSH fails for good, or nil.
func (v *Volume) FlushError() error {
	for _, dev := range []blockdev.Device{v.st.Device(), v.data} {
		if l, ok := dev.(*latch); ok {
			if err := l.failed.Load(); err != nil {
				return *err
			}
		}
	}
	return nil
}

// Close drains the volume, commits its table, gives up the store and closes the master. On an error what
// a successor needs is left in place: open the volume again. The device stays the caller's to close.
func (v *Volume) Close() error {
	if v.closed.Swap(true) {
		return os.ErrClosed
	}
	if v.hydrator != nil {
		v.hydrator.shut()
	}
	v.gate.close()
	if v.stopTicks != nil {
		v.stopTicks()
		v.ticks.Wait()
	}
	var err error
	if !v.info.ReadOnly {
		if err = v.commit.commit(v.table); err == nil {
			err = v.st.Release()
		}
	}
	return errors.Join(err, v.cache.close(err == nil && !v.info.ReadOnly), v.closeMaster())
}

// CacheMode says whether the exception cache is on.
func (v *Volume) CacheMode() cowfmt.CacheMode {
	if v.table != nil && v.table.off() {
		return cowfmt.CacheOff
	}
	return cowfmt.CacheOn
}

// Suspended says whether the volume's I/O is being held.
func (v *Volume) Suspended() bool {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	return v.gate.suspended != nil
}
