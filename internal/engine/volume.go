package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// ErrMovedOn says that another host has had the volume since the guest here began to use it.
var ErrMovedOn = errors.New("volume has been on another host")

// Options say how to open a volume.
type Options struct {
	Store  *store.Store    // on a device of NewLatch that is locked against other processes
	Master blockdev.Device // of a clone that needs one, else nil; only read, and closed with the volume
	Origin blockdev.Device // of a state store: the raw disk, on a device of NewLatch that is locked, too; stays the caller's

	ReadOnly   bool
	Owner      cowfmt.Owner     // Host, Boot and what is told of them; Instance is made here
	CachePath  string           // the exception cache, a file on tmpfs; "": memory that dies with the process
	CacheMode  cowfmt.CacheMode // what is wanted while no other host has the volume open; 0: on
	AcceptLoss bool             // go on after ErrLoss
	Claiming   store.Claiming

	OpenSnapshot OpenSnapshot  // nil: a volume with snapshots is refused
	openWait     time.Duration // how long a snapshot's store may take to be opened; 0: as its entry says

	Incoming uuid.UUID   // open it by this grant of its owner, unless this host is the owner by now; Nil: as the owner
	Epoch    uint32      // that a guest here has it since: ErrMovedOn if it is another by now; 0: any
	Dead     *store.Dead // proof that the owner which the header may name is dead: exactly this one is taken over from; Boot may be Nil

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
	stack    stack
	mapping  sync.Mutex // inner is changed, and current with it
	inner    target     // that the volume would have without snapshots
	current  atomic.Pointer[target]
	hydrator *hydrator
	moving   *mover

	mode      atomic.Uint32         // cowfmt.CacheMode
	switched  atomic.Int64          // Unix seconds; 0: never
	quiet     atomic.Bool           // nothing may be written: FLUSH flushes the device only
	lost      atomic.Pointer[error] // why nothing may be done any more
	recovered bool                  // memory may have flags that the device lacks

	masterMu  sync.Mutex
	stopTicks context.CancelFunc
	ticks     sync.WaitGroup
	closed    atomic.Bool
	freezes   sync.RWMutex // read: the table's memory is looked at outside of a request, as long as it is not closed
}

// Open maps the volume of a store and, unless it is only read, becomes the store's owner, or the receiver of a grant. The
// context bounds the wait for another host that is just opening it.
func Open(ctx context.Context, o Options) (*Volume, error) {
	h := o.Store.Header()
	info := o.Store.Device().Info()
	v := &Volume{
		st: o.Store, log: o.Log, master: o.Master, data: o.Store.Device(), inflight: new(inflight), stack: stack{open: o.OpenSnapshot, openWait: o.openWait},
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
	v.commit = &committer{st: o.Store, data: v.data, taken: v.lose}
	v.moving = newMover(v, o.Owner)
	v.moving.claims = o.Claiming
	v.gate.onHold = v.moving.wake
	if o.Master == nil && h.Master != nil && !h.CutLoose {
		return nil, fmt.Errorf("%s: its master is needed: %s", o.Store.Name(), h.Master.Address)
	}
	if err := checkState(o.Store.Name(), h, v.info.ReadOnly, o.OpenSnapshot != nil); err != nil {
		return nil, err
	}
	var err error
	if v.recovered, err = v.own(ctx, o); err != nil {
		return nil, err
	}
	if err := v.begin(ctx, o); err != nil {
		v.moving.stillborn()
		v.shutStack()
		return nil, errors.Join(err, v.moving.withdraw(), v.cache.close(false))
	}
	return v, nil
}

// begin maps the target and sets the engine going.
func (v *Volume) begin(ctx context.Context, o Options) error {
	v.mode.Store(uint32(v.st.Header().Cache))
	if v.info.ReadOnly && o.CacheMode != 0 {
		v.mode.Store(uint32(o.CacheMode))
	}
	if err := v.mapTarget(v.recovered); err != nil {
		return err
	}
	if v.info.ReadOnly {
		v.moving.stillborn()
		return nil
	}
	if err := v.moving.begin(ctx, o.CacheMode); err != nil {
		return err
	}
	if err := v.openStack(ctx); err != nil {
		return err
	}
	if v.moving.now().MayWrite() {
		if err := v.settleStack(); err != nil {
			return err
		}
	}
	v.tick(o.CommitEvery)
	go v.moving.run()
	return nil
}

// checkState refuses a store in a state that this engine does not know how to keep right.
func checkState(name string, h *cowfmt.Header, readOnly, snapshots bool) error {
	switch {
	case h.Progress.Kind == cowfmt.ProgressTakeover && h.Owner != nil && !readOnly: // gone on with by who takes it
	case h.Progress.Kind != cowfmt.ProgressNone:
		return fmt.Errorf("%s: an operation on it was not finished (kind %d): finish it with the program that began it", name, h.Progress.Kind)
	}
	switch {
	case readOnly:
		return nil
	case slices.ContainsFunc(h.Stack, func(e cowfmt.StackEntry) bool { return e.Kind != cowfmt.StackSnapshot }):
		return fmt.Errorf("%s: its stack has something that this program can't keep: use a newer one", name)
	case len(h.Stack) > 0 && !snapshots:
		return fmt.Errorf("%s: it has %d snapshots, and may be written only with them", name, len(h.Stack))
	case len(h.Grants) > 1, len(h.Grants) > 0 && h.Owner == nil:
		return fmt.Errorf("%s: it has %d grants, to %s for one, in a way that this program did not make: use a newer one", name, len(h.Grants), h.Grants[0].HostName)
	}
	return nil
}

// mapTarget builds the target that the header asks for.
func (v *Volume) mapTarget(recovered bool) error {
	h := v.st.Header()
	section, err := v.section()
	if err != nil {
		return err
	}
	data := newArea(section)
	if h.CutLoose || h.Role == cowfmt.RoleState {
		v.remap(func() { v.inner = &linear{size: h.Size, data: data, inflight: v.inflight, commit: v.commit} })
		return nil
	}
	v.table = newTable(v.st, v.cache, recovered)
	v.table.mode.Store(v.mode.Load())
	c := &clone{
		size: h.Size, chunk: h.ChunkSize, data: data, table: v.table,
		inflight: v.inflight, commit: v.commit, copied: &v.stats.copied,
	}
	if v.master != nil {
		master := newArea(v.master)
		c.master, c.end = &master, min(v.master.Info().Size, h.Size)
	}
	v.remap(func() { v.inner = c })
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

// remap has change done, to inner or to the snapshots, and puts the target in place that follows from it. Requests that are
// inside keep the target they have: a change that they must not outlive is made while the volume is suspended.
func (v *Volume) remap(change func()) {
	v.mapping.Lock()
	defer v.mapping.Unlock()
	change()
	var active []*snapshot
	for _, s := range v.stack.snapshots() {
		if s.is(cowfmt.StackActive) {
			active = append(active, s)
		}
	}
	if len(active) == 0 {
		v.setTarget(v.inner)
		return
	}
	v.setTarget(&origin{inner: v.inner, snapshots: active})
}

// without is the target that the volume would have without snapshots.
func (v *Volume) without() target {
	v.mapping.Lock()
	defer v.mapping.Unlock()
	return v.inner
}

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
						v.shutOut(err)
						if v.Err() != nil {
							return // it will not get better
						}
					}
				}
			}
		}
	}()
}

// Target is the name of the current target: clone or linear; origin while there are active snapshots.
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
