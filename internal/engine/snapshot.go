package engine

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// saveTimeout is how long saving a chunk may take where the stack's entry does not say.
const saveTimeout = 30 * time.Second

func saveTimeoutOf(e *cowfmt.StackEntry) time.Duration {
	if e.Timeout == 0 {
		return saveTimeout
	}
	return time.Duration(e.Timeout) * time.Millisecond
}

var errSlow = fmt.Errorf("it took too long: %w", unix.EIO)

// snapshot is an entry of the volume's stack. While it is active no chunk that it needs is changed before it is saved.
//
//	pending -> active -> broken
//	   |         |         |
//	   +---------+---------+-> removed
//
// It ends when it is broken or removed, durably: then writers go past it, and what is still being saved does no harm.
type snapshot struct {
	v       *Volume
	id, cut uuid.UUID
	path    string
	onError uint8
	timeout time.Duration
	chunk   int64

	store  *store.Snapshot   // nil: it could not be opened; failure says why
	data   blockdev.Device   // of the snapshot
	origin *blockdev.Section // the volume's data, at the same places
	saved  bitmap
	froze  []uint16 // ones of each leaf of the clone's table, as they were written to the frozen table last
	frozen *bitmap  // of a clone: what is clear is the master's, and needs no saving; nil: all chunks are needed
	copier copier

	state  atomic.Uint32 // cowfmt.StackPending and so on
	cursor atomic.Int64  // bytes below it are not saved any more
	held   atomic.Int64  // nanoseconds that the volume was suspended for the cut
	gone   chan struct{} // closed at the end

	freezing sync.Mutex // kept while the frozen table is written, or a leaf is surveyed

	mu       sync.Mutex
	close    func() error // what it is on; nil: closed
	failure  error        // why it is broken, or about to be
	breaking *breaker     // runs
}

// newSnapshot is an entry of the stack, on a store or, nil, on none.
func newSnapshot(v *Volume, e *cowfmt.StackEntry, on *store.Snapshot, close func() error) (*snapshot, error) {
	s := &snapshot{
		v: v, id: e.UUID, cut: e.CutID, path: e.Locator.Address, onError: e.OnError, timeout: saveTimeoutOf(e),
		store: on, close: close, gone: make(chan struct{}), chunk: v.st.Header().ChunkSize,
	}
	s.copier = copier{s: s, asked: map[int64]*batch{}}
	s.state.Store(uint32(e.State))
	s.cursor.Store(e.Cursor)
	if on == nil {
		return s, nil
	}
	data, err := on.Data()
	if err != nil {
		return nil, err
	}
	if s.origin, err = v.section(); err != nil {
		return nil, err
	}
	h := on.Header()
	s.data, s.chunk, s.path = data, h.ChunkSize, on.Name()
	s.saved = newBitmap(durableLeaf(on), newHeapLeaves(on.Leaves()), on.Leaves(), h.Chunks())
	if on.HasFrozen() {
		frozen := newBitmap(on.ReadFrozen, newHeapLeaves(on.Leaves()), on.Leaves(), h.Chunks())
		s.frozen = &frozen
	}
	return s, nil
}

// durableLeaf reads a leaf of the saved table. What a predecessor had written when it died is on the device, but perhaps
// not for good: a one is believed once it is.
func durableLeaf(on *store.Snapshot) func(leaf int64, flags []byte) error {
	return func(leaf int64, flags []byte) error {
		if err := on.ReadLeaf(leaf, flags); err != nil || !slices.ContainsFunc(flags, func(b byte) bool { return b != 0 }) {
			return err
		}
		return on.Device().Flush()
	}
}

func (s *snapshot) is(state uint8) bool { return s.state.Load() == uint32(state) }

func (s *snapshot) ended() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// look says whether the bytes at off may be changed as far as this snapshot is concerned, and for how many from there, at
// most n, that is the same. It takes no lock. What memory does not know may not be changed.
func (s *snapshot) look(off, n int64) (free bool, m int64) {
	if !s.is(cowfmt.StackActive) {
		return true, n
	}
	c := off / s.chunk
	limit := (off+n-1)/s.chunk - c + 1
	bytes := func(chunks int64) int64 { return min((c+chunks)*s.chunk-off, n) }
	if done := s.released(); c < done {
		return true, bytes(done - c)
	}
	if s.store == nil {
		return false, n
	}
	set, run, known := s.saved.lookup(c, limit)
	if known && set {
		return true, bytes(run)
	}
	if !known {
		run = min(limit, store.LeafChunks-c%store.LeafChunks)
	}
	if s.frozen != nil {
		if set, same, known := s.frozen.lookup(c, run); known {
			return !set, bytes(same)
		}
	}
	return false, bytes(run)
}

// released is how many chunks, from the first on, are below the cursor.
func (s *snapshot) released() int64 {
	cursor := s.cursor.Load()
	if cursor >= s.v.info.Size { // the last chunk may be short
		return (s.v.info.Size + s.chunk - 1) / s.chunk
	}
	return cursor / s.chunk
}

// needs says whether a chunk must be saved before it is changed. It makes the flag ready to be set.
func (s *snapshot) needs(chunk int64) (bool, error) {
	if chunk < s.released() {
		return false, nil
	}
	if s.frozen != nil {
		if set, _, err := s.frozen.run(chunk, 1); err != nil || !set {
			return false, err
		}
	}
	if err := s.saved.prepare(chunk, 1); err != nil {
		return false, err
	}
	set, _, _ := s.saved.lookup(chunk, 1)
	return !set, nil
}

// ahead is the range of chunks that is to be saved with a chunk, none where what is around it was not written to yet.
func (s *snapshot) ahead(chunk int64) (first, count int64) {
	for _, step := range aheadSteps {
		n := step.bytes / s.chunk
		if n < 2 {
			continue
		}
		at := chunk / n * n
		most := min(n, s.saved.chunks-at)
		if s.saved.countSet(at, most)*64 >= most*step.parts {
			first, count = at, most
		}
	}
	return first, count
}

// want is what a writer waits for.
type want struct {
	s           *snapshot
	first, last int64 // chunks
	batches     []*batch
	err         error
}

// ask has what a range needs saved. It does not wait.
func (s *snapshot) ask(off, length int64) want {
	w := want{s: s, first: off / s.chunk, last: (off + length - 1) / s.chunk}
	for end := off + length; off < end; {
		free, n := s.look(off, end-off)
		if !free && s.store == nil {
			w.err = s.why()
			return w
		}
		if !free {
			first := off / s.chunk
			w.batches = s.copier.ask(first, (off+n-1)/s.chunk-first+1, w.batches)
		}
		off += n
	}
	return w
}

// wait returns once the range may be changed: all of it is saved, or the snapshot has ended.
func (w *want) wait() error {
	if len(w.batches) == 0 && w.err == nil {
		return nil
	}
	err := w.err
	timer := time.NewTimer(w.s.timeout)
	defer timer.Stop()
	for i := 0; i < len(w.batches) && err == nil; i++ {
		select {
		case <-w.batches[i].done:
			err = w.batches[i].err(w.first, w.last)
		case <-w.s.gone:
			return nil
		case <-timer.C:
			err = errSlow
		}
	}
	switch {
	case err == nil, w.s.ended():
		return nil
	case w.s.onError == cowfmt.OnErrorBreakGuestWrite:
		if errors.Is(err, unix.EBADE) { // another LUN's refusal than the volume's, which would mean that another host has that
			err = fmt.Errorf("%w: %v", unix.EIO, err)
		}
		return fmt.Errorf("snapshot %v can't keep what the write is about to change: %w", w.s.id, err)
	}
	return w.s.awaitBreak(err)
}

// why is what went wrong with it, nil: nothing.
func (s *snapshot) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// activate is the cut: called while nothing is inside the target.
func (s *snapshot) activate() { s.state.Store(uint32(cowfmt.StackActive)) }

// end lets writers go past it, for good, broken or removed.
func (s *snapshot) end(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Store(0)
	if broken {
		s.state.Store(uint32(cowfmt.StackBroken))
	}
	if !s.ended() {
		close(s.gone)
	}
}

// waitFor says whether done was closed within so long.
func waitFor(done <-chan struct{}, limit time.Duration) bool {
	select {
	case <-done:
		return true
	default:
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// survey counts what an earlier engine has saved, for people to see.
func (s *snapshot) survey() {
	if s.store == nil {
		return
	}
	for leaf := range s.store.Leaves() {
		if more, err := s.surveyLeaf(leaf); err != nil || !more {
			return
		}
	}
}

func (s *snapshot) surveyLeaf(leaf int64) (more bool, err error) {
	s.freezing.Lock() // until then it is not closed
	defer s.freezing.Unlock()
	s.mu.Lock()
	closed := s.close == nil
	s.mu.Unlock()
	if closed || s.ended() {
		return false, nil
	}
	return true, s.saved.survey(leaf, s.store.ReadLeaf)
}

// shut closes what it is on, once nothing is being written to it any more. The device of one that hangs is closed when it goes on.
func (s *snapshot) shut(wait time.Duration) error {
	closed := make(chan error, 1)
	go func() {
		s.freezing.Lock()
		defer s.freezing.Unlock()
		<-s.copier.rest()
		closed <- s.closeDevice()
	}()
	select {
	case err := <-closed:
		return err
	case <-time.After(wait):
		return fmt.Errorf("snapshot %v: writes to %s don't end: it stays open until they do", s.id, s.path)
	}
}

func (s *snapshot) closeDevice() error {
	s.mu.Lock()
	close := s.close
	s.close = nil
	s.mu.Unlock()
	if close == nil {
		return nil
	}
	return close()
}
