package reader

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// Verify is the last look: with nil, all that was read (and all that was said to be zeros) before it was called is as of the
// cut. Bytes below released are those that the caller let go of, after it had read them: from here on they are not read any more.
// So that nobody else's cursor is taken for the caller's, one is reported only after a Verify, and bytes that an earlier reader
// had read without one are not below released.
//
// ErrBroken, ErrReleased and ErrGone are for good, and what was read since the last Verify that was good counts for nothing; other
// errors may pass, as when the header is being written or the device fails. What the header says is not all: an engine that opened
// the volume without its stack would not have broken the snapshot. So whoever owns the volume must be asked as well. The header it
// goes by is returned: shared, not to be changed.
func (v *View) Verify(ctx context.Context, released int64) (*cowfmt.Header, error) {
	v.verifying.Lock()
	defer v.verifying.Unlock()
	if err := v.check(0, 0); err != nil {
		return nil, err
	}
	low := v.unjudged.Swap(nothing) // before the look: what is read meanwhile is for the next one
	h, cursor, err := v.look(ctx)
	if err == nil && cursor > min(low, released) {
		err = fmt.Errorf("%s: %w: it is at %d, and what was read begins at %d", v.info.Name, ErrReleased, cursor, min(low, released))
	}
	if errors.Is(err, ErrBroken) || errors.Is(err, ErrGone) || errors.Is(err, ErrReleased) {
		v.fate.CompareAndSwap(nil, &err)
		v.log.Warn().Err(err).Msg("what was read of the volume is not as of the cut")
	}
	if err != nil {
		lower(&v.unjudged, low)
		return nil, err
	}
	raise(&v.cursor, released)
	return h, nil
}

// nothing is an offset for nothing that was read.
const nothing = math.MaxInt64

// Cursor is the snapshot's cursor as last seen, bytes: what is below is refused.
func (v *View) Cursor() int64 { return v.cursor.Load() }

// How often a header that is not whole in both copies is read again, and the pause before the first time, which doubles: it is
// being written, most likely.
const (
	looks     = 6
	lookPause = 10 * time.Millisecond
)

// look reads both copies of the volume's header, and says what has become of the snapshot, and where its cursor is.
func (v *View) look(ctx context.Context) (h *cowfmt.Header, cursor int64, err error) {
	pause := lookPause
	for n := 1; ; n++ {
		if h, err = v.glance(); err == nil {
			cursor, err = v.judge(h)
			return h, cursor, err
		}
		if errors.Is(err, cowfmt.ErrNotStore) {
			return nil, 0, fmt.Errorf("%w: %w", ErrGone, err)
		}
		if n == looks {
			return nil, 0, fmt.Errorf("whether snapshot %v is unbroken can't be told: %w", v.entry.UUID, err)
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return nil, 0, errors.Join(ctx.Err(), err)
		}
	}
}

// glance reads the header. Both copies must be whole: one alone may be what a dead owner's late write has left, while the other
// one, which is damaged, said that the snapshot is broken. One that is only older is no such case.
func (v *View) glance() (*cowfmt.Header, error) {
	choice, err := store.Peek(v.volume)
	if err != nil {
		return nil, err
	}
	for i, problem := range choice.Problem {
		if problem != nil && !errors.Is(problem, cowfmt.ErrStale) {
			return nil, fmt.Errorf("%s: header copy %d: %w", v.volume.Info().Name, i, problem)
		}
	}
	return choice.Header, nil
}

// judge says what a header makes of the snapshot.
func (v *View) judge(h *cowfmt.Header) (cursor int64, err error) {
	name := v.volume.Info().Name
	var entry *cowfmt.StackEntry
	for i := range h.Stack {
		if e := &h.Stack[i]; e.UUID == v.entry.UUID && e.CutID == v.entry.CutID {
			entry = e
		}
	}
	if entry == nil {
		return 0, fmt.Errorf("%s: %w: volume %s has no snapshot %v of cut %v", name, ErrGone, h.Name, v.entry.UUID, v.entry.CutID)
	}
	if err := v.snapshot.Belongs(h, *entry); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrGone, err)
	}
	switch {
	case entry.State == cowfmt.StackBroken:
		return 0, fmt.Errorf("%s: volume %s: %w: %v", name, h.Name, ErrBroken, v.entry.UUID)
	case entry.State != cowfmt.StackActive:
		return 0, fmt.Errorf("%s: volume %s: the cut of snapshot %v is not made yet", name, h.Name, v.entry.UUID)
	case int64(h.Epoch) < v.epoch.Load():
		return 0, fmt.Errorf("%s: volume %s: its header has gone back to epoch %d, it was %d", name, h.Name, h.Epoch, v.epoch.Load())
	}
	raise(&v.epoch, int64(h.Epoch))
	raise(&v.cursor, entry.Cursor)
	return entry.Cursor, nil
}
