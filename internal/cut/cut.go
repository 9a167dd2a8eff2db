// Package cut makes a cut: one instant across all disks of a domain, at which each volume has a snapshot.
//
// It is made only if every engine said that its volume was suspended, and every engine said afterwards that it had resumed with
// its snapshot in place, before its deadline: so at the moment between these two all were suspended. In any other case, and
// wherever it is not known, all snapshots are taken away again, their stores deleted, and the guest is thawed.
//
//	step                          journal before it                 undone by
//	stores are made               volumes, UUIDs of the snapshots   deleting them, once no stack lists them
//	engines add them              the same                          removing them from the stacks
//	the guest is frozen           frozen                            thawing it, until that is certain
//	engines suspend               the same                          their own deadline
//	engines keep                  the same                          removing
//	handed over to who reads it   made, with what is handed over    nothing: it is handed over again, or dropped
//
// The record of a cut is in the state folder from before the first step until somebody else looks after its snapshots
// (Done) or nothing is left of it. What an earlier process left behind is gone on with by Run: cuts that were not made are
// undone, guests that may be frozen are thawed.
//
// A freeze that was not answered may have frozen. A thaw that was not answered is repeated. Whatever the guest does, a cut
// never waits for a thaw to succeed: its grade is crash then.
package cut

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

var (
	// ErrBusy says that a cut of this domain is being made.
	ErrBusy = errors.New("a cut of this domain is being made already")
	// ErrNotFrozen is for a Guests: of Freeze, that it certainly froze nothing, nor will; of Thaw, that nothing was frozen.
	ErrNotFrozen = errors.New("not frozen")
	// ErrElsewhere is for an Engines: another host has the volume.
	ErrElsewhere = errors.New("another host has the volume")
	// ErrCrash says that the grade would be crash, and better was required.
	ErrCrash = errors.New("the backup would be no better than after a power cut, and --quiesce=require wants more")
)

// Engine is one volume's engine; an *api.Engine is one.
type Engine interface {
	Status(ctx context.Context) (*api.EngineStatus, error)
	AddSnapshot(ctx context.Context, r api.SnapshotAddRequest) (*api.EngineStatus, error)
	RemoveSnapshot(ctx context.Context, r api.SnapshotRequest) (*api.EngineStatus, error)
	Cut(ctx context.Context, r api.CutRequest) (*api.EngineStatus, error)
	EndCut(ctx context.Context, r api.CutEndRequest) (*api.EngineStatus, error)
}

// Engines finds engines. Volumes go by their UUIDs.
type Engines interface {
	// Hold is the engine of a volume, which stays until release. A volume that nobody serves is opened for it. ErrElsewhere.
	Hold(ctx context.Context, volume string) (e Engine, release func(), err error)
	// Listed says whether a volume's stack has a snapshot: its engine here says so, or its header. One that is no volume
	// any more has none.
	Listed(ctx context.Context, volume, snapshot string) (bool, error)
	// Unlist takes a snapshot out of the stack of a volume that nobody has open, without an engine. After an error, as where
	// somebody has it open, it is an engine's to do: Hold.
	Unlist(ctx context.Context, volume, snapshot string) error
}

// Stores makes and deletes snapshot stores.
type Stores interface {
	Make(ctx context.Context, s Snapshot) (path string, err error)
	// Delete deletes a store, and what was begun of one. One that is not known is no error.
	Delete(ctx context.Context, snapshot string) error
}

// Guests is what is asked of libvirt.
type Guests interface {
	Running(ctx context.Context, d libvirtx.Domain) (bool, error)
	// Freeze freezes the guest's file systems and returns how many. After any error but ErrNotFrozen they may be frozen, or
	// be frozen a moment later.
	Freeze(ctx context.Context, d libvirtx.Domain) (int, error)
	// Thaw returns how many file systems it thawed. With nil and with ErrNotFrozen none is frozen any more, by any Freeze that
	// was called before. A guest that is not on this host has nothing to thaw: ErrNotFrozen.
	Thaw(ctx context.Context, d libvirtx.Domain) (int, error)
}

// Snapshot is one volume's part of a cut. Sizes are bytes.
type Snapshot struct {
	Volume    string `json:"volume"`   // UUID
	Name      string `json:"name"`     // of the volume
	Snapshot  string `json:"snapshot"` // UUID
	Cut       string `json:"cut"`
	ChunkSize int64  `json:"chunkSize,omitempty"` // 0: the volume's
	Folder    string `json:"folder,omitempty"`    // where its store is made; all empty: the default
	Pool      string `json:"pool,omitempty"`
	Provider  string `json:"provider,omitempty"`

	Store  string            `json:"-"` // path, once it was made
	Status *api.EngineStatus `json:"-"` // of the volume, after the cut
}

// Config says by whom things are done.
type Config struct {
	Dir     string // of the journal
	Engines Engines
	Stores  Stores
	Guests  Guests
	Log     zerolog.Logger
}

// Cutter makes cuts, one of a domain at a time.
type Cutter struct {
	c       Config
	journal journal

	mu      sync.Mutex
	records map[string]*record  // by cut: all there are
	busy    map[string]*attempt // by UUID of the domain
	toUndo  chan struct{}       // wakes Run
	toThaw  chan struct{}
}

// attempt is a domain whose cut is being made.
type attempt struct {
	ended chan struct{} // nil while it waits for something before anything is touched
}

// Open reads what an earlier process has left. Run goes on with it.
func Open(c Config) (*Cutter, error) {
	j, records, err := openJournal(c.Dir, c.Log)
	if err != nil {
		return nil, fmt.Errorf("journal of cuts: %w", err)
	}
	k := &Cutter{c: c, journal: j, records: records, busy: map[string]*attempt{}, toUndo: make(chan struct{}, 1), toThaw: make(chan struct{}, 1)}
	for _, r := range records {
		if r.Phase == phaseMaking {
			r.Phase = phaseUndo
		}
	}
	return k, nil
}

// Has says whether somebody here looks after a cut still: its snapshots are nobody else's to remove.
func (k *Cutter) Has(cut string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.records[cut] != nil
}

// MaybeFrozen says whether a domain may be frozen now because of a cut.
func (k *Cutter) MaybeFrozen(domain string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.records {
		if r.Domain.UUID.String() == domain && r.Frozen {
			return true
		}
	}
	return false
}

// Await returns once no cut of a domain is at work on its volumes.
func (k *Cutter) Await(ctx context.Context, domain string) error {
	for {
		k.mu.Lock()
		var ended chan struct{}
		if a := k.busy[domain]; a != nil {
			ended = a.ended
		}
		k.mu.Unlock()
		if ended == nil {
			return nil
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return fmt.Errorf("a backup's cut is being made of this domain: %w", ctx.Err())
		}
	}
}

// begin reserves a domain.
func (k *Cutter) begin(domain string) (end func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy[domain] != nil {
		return nil, ErrBusy
	}
	k.busy[domain] = &attempt{}
	return func() {
		k.setWorking(domain, false)
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.busy, domain)
	}, nil
}

// setWorking notes whether the volumes of a domain are being worked on, or something is waited for.
func (k *Cutter) setWorking(domain string, on bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.busy[domain]
	switch {
	case on && a.ended == nil:
		a.ended = make(chan struct{})
	case !on && a.ended != nil:
		close(a.ended)
		a.ended = nil
	}
}

// pause waits, or returns why not.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
