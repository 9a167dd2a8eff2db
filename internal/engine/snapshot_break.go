package engine

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// breaker is one attempt to make it durable that a snapshot is broken.
type breaker struct {
	done chan struct{}
	err  error
}

// breakPause is how long the header is left alone after a write of it that failed.
const breakPause = 50 * time.Millisecond

// breakTry is what each attempt gets, however late it is: a host that stood still finds out first whose the header is.
const breakTry = time.Second

// awaitBreak breaks the snapshot because of err, and returns once that is durable; an error where that could not be done in
// time. While the header is another host's to write, in the middle of a hand-over, it waits as long as that takes, as
// writes do then that are held outside.
func (s *snapshot) awaitBreak(err error) error {
	for began := time.Now(); ; time.Sleep(breakPause) {
		b := s.startBreak(err)
		var failed error
		if waitFor(b.done, max(s.timeout-time.Since(began), breakTry)) {
			failed = b.err
		} else {
			failed = errSlow
		}
		if failed == nil || s.ended() {
			return nil
		}
		foreign := errors.Is(failed, store.ErrNotOwner) && !s.v.moving.hasEnded() // not asked of the store, which may hang in a write
		if foreign {
			began = time.Now()
		}
		if s.v.Lost() || !foreign && time.Since(began) >= s.timeout {
			return fmt.Errorf("snapshot %v is to be broken: %w: %w", s.id, unix.EIO, failed)
		}
	}
}

// startBreak begins an attempt to break it, unless one is going on.
func (s *snapshot) startBreak(err error) *breaker {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.failure = err
		s.v.log.Error().Err(err).Stringer("snapshot", s.id).Msg("can't keep what the guest is about to change: the snapshot is broken")
	}
	if s.breaking == nil {
		s.breaking = &breaker{done: make(chan struct{})}
		go s.doBreak(s.breaking)
	}
	return s.breaking
}

func (s *snapshot) doBreak(b *breaker) {
	b.err = s.v.st.SetSnapshot(s.id, func(e *cowfmt.StackEntry) { e.State = cowfmt.StackBroken })
	if b.err == nil {
		s.end(true)
		s.v.remap(func() {})
		go s.v.leave(s)
	}
	if errors.Is(b.err, store.ErrEpoch) {
		s.v.lose(b.err)
	}
	s.mu.Lock()
	s.breaking = nil
	s.mu.Unlock()
	close(b.done)
}
