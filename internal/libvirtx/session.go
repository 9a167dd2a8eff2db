package libvirtx

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// inFlight is how many calls go to libvirtd at once. It works on five of a client (max_client_requests) and
// does not even read the next one meanwhile: one is left for the question whether it is alive.
const inFlight = 4

// maxUnread is how many events wait for their reader. Its listing on the next connection makes up for more.
const maxUnread = 10000

// Session is what every driver needs around its library: the end of the connection, told once and with its reason;
// calls that can be given up; events that never make the library wait.
type Session struct {
	gone   chan struct{}
	slots  chan struct{}
	doubt  chan struct{}
	events chan Event
	wake   chan struct{}

	mu     sync.Mutex
	err    error // why it ended
	unread []Event
}

// NewSession makes a session that has not ended. End it.
func NewSession() *Session {
	s := &Session{
		gone: make(chan struct{}), slots: make(chan struct{}, inFlight), doubt: make(chan struct{}, 1),
		events: make(chan Event), wake: make(chan struct{}, 1),
	}
	go s.pass()
	return s
}

// End ends the session, for this reason. Only the first call counts.
func (s *Session) End(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = fmt.Errorf("%w: %s", ErrGone, reason)
		s.unread = nil
		close(s.gone)
	}
}

// Gone is closed when the session ended.
func (s *Session) Gone() <-chan struct{} { return s.gone }

// Err is nil until the session ended, then wraps ErrGone.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Events is what Deliver was given, and is closed when the session ended.
func (s *Session) Events() <-chan Event { return s.events }

// Deliver hands an event to the reader of Events and returns at once.
func (s *Session) Deliver(e Event) {
	s.mu.Lock()
	full := len(s.unread) >= maxUnread
	if s.err == nil && !full {
		s.unread = append(s.unread, e)
	}
	s.mu.Unlock()
	if full {
		s.End(fmt.Sprintf("dropped: %d events were not read", maxUnread))
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Session) pass() {
	defer close(s.events)
	for {
		s.mu.Lock()
		batch := s.unread
		s.unread = nil
		s.mu.Unlock()
		for _, e := range batch {
			select {
			case s.events <- e:
			case <-s.gone:
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-s.wake:
		case <-s.gone:
			return
		}
	}
}

// Watch asks libvirtd whether it is alive, when a call was given up and when nothing came from it for a while, and
// ends the session when it is not. signs counts what comes: anything is an answer, for libvirtd may be at work
// on earlier calls. It returns when the session ended.
func (s *Session) Watch(k Keepalive, signs func() int64, ask func()) {
	tick := time.NewTicker(k.Interval)
	defer tick.Stop()
	for seen := int64(-1); ; seen = signs() {
		select {
		case <-s.gone:
			return
		case <-s.doubt:
		case <-tick.C:
			if now := signs(); seen >= 0 && seen != now {
				continue
			}
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			ask()
		}()
		s.await(answered, signs, k.Timeout)
	}
}

// await waits for an answer for as long as anything comes at all.
func (s *Session) await(answered <-chan struct{}, signs func() int64, timeout time.Duration) {
	for {
		seen := signs()
		select {
		case <-s.gone:
			return
		case <-answered:
			return
		case <-time.After(timeout):
		}
		if signs() == seen {
			s.End(fmt.Sprintf("dropped: libvirtd did not answer for %s", timeout))
		}
	}
}

// Do runs one call of a driver's library and waits for it no longer than ctx, CallTimeout and the session last.
// Neither library can take a call back: one that is given up goes on in a goroutine of its own until it is
// answered or the connection is closed, and has Watch ask. Errors say what was called.
func Do[T any](ctx context.Context, s *Session, what string, f func() (T, error)) (T, error) {
	v, err := do(ctx, s, f)
	if err != nil {
		return v, fmt.Errorf("libvirt: %s: %w", what, err)
	}
	return v, nil
}

func do[T any](ctx context.Context, s *Session, f func() (T, error)) (none T, err error) {
	if err := s.Err(); err != nil {
		return none, err
	}
	timeout := time.NewTimer(CallTimeout)
	defer timeout.Stop()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.gone:
		return none, s.Err()
	case <-ctx.Done():
		return none, fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
	case <-timeout.C:
		return none, fmt.Errorf("%w: earlier calls took %s", ErrNoAnswer, CallTimeout)
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-s.gone:
		select { // the answer may have been there just before the end
		case r := <-done:
			return r.v, r.err
		case <-time.After(time.Second):
			return none, s.Err()
		}
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
	case <-timeout.C:
		err = fmt.Errorf("%w in %s", ErrNoAnswer, CallTimeout)
	}
	select {
	case s.doubt <- struct{}{}:
	default:
	}
	return none, err
}
