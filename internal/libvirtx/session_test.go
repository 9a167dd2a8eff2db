package libvirtx

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

func numbered(i int) Event { return Lifecycle{Detail: int32(i)} }

func TestEventsNeverMakeTheLibraryWait(t *testing.T) {
	s := NewSession()
	defer s.End("test over")
	for i := range maxUnread {
		s.Deliver(numbered(i))
	}
	for i := range maxUnread {
		if e := <-s.Events(); e != numbered(i) {
			t.Fatalf("%d: %v", i, e)
		}
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
}

func TestUnreadEventsAreBounded(t *testing.T) {
	s := NewSession()
	for i := range 3 * maxUnread { // some are with the reader's side already
		s.Deliver(numbered(i))
	}
	for range s.Events() { // until it is closed
	}
	if err := s.Err(); !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
}

func TestOnlyTheFirstEndCounts(t *testing.T) {
	s := NewSession()
	s.End("first")
	s.End("second")
	s.Deliver(numbered(1))
	if _, ok := <-s.Events(); ok {
		t.Fatal("an event after the end")
	}
	if _, err := Do(t.Context(), s, "call", func() (int, error) { panic("called after the end") }); !errors.Is(err, ErrGone) ||
		err.Error() != "libvirt: call: "+s.Err().Error() {
		t.Fatal(err)
	}
}

func TestACallIsGivenUpAndMakesWay(t *testing.T) {
	s := NewSession()
	defer s.End("test over")
	hang := make(chan struct{})
	defer close(hang)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for range 3 * inFlight {
		if _, err := Do(ctx, s, "call", func() (int, error) { <-hang; return 0, nil }); !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if v, err := Do(t.Context(), s, "call", func() (int, error) { return 7, nil }); v != 7 || err != nil {
		t.Fatal(v, err)
	}
}

func TestWatch(t *testing.T) {
	k := Keepalive{Interval: 10 * time.Millisecond, Timeout: 30 * time.Millisecond}
	hang := make(chan struct{})
	defer close(hang)

	s := NewSession()
	s.Watch(k, func() int64 { return 0 }, func() { <-hang }) // returns once the session ended
	if err := s.Err(); !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}

	// One that answers nothing but sends something is at work.
	s = NewSession()
	var signs, asked atomic.Int64
	s.doubt <- struct{}{}
	go s.Watch(k, func() int64 { return signs.Add(1) }, func() { asked.Add(1); <-hang })
	for end := time.Now().Add(time.Minute); asked.Load() == 0 && time.Now().Before(end); {
		time.Sleep(k.Interval)
	}
	time.Sleep(10 * k.Timeout)
	if err := s.Err(); err != nil || asked.Load() != 1 {
		t.Fatal(err, asked.Load())
	}
	s.End("test over")
}

func TestSetEverywhereWhileTheDomainStarts(t *testing.T) {
	states := []Places{{Stored: true}, {Live: true, Stored: true}, {Live: true, Stored: true}}
	var set []Places
	err := SetEverywhere(func() (Places, error) {
		p := states[0]
		states = states[min(1, len(states)-1):]
		return p, nil
	}, func(p Places) error { set = append(set, p); return nil })
	if err != nil || len(set) != 2 || set[0] != (Places{Stored: true}) || set[1] != (Places{Live: true, Stored: true}) {
		t.Fatal(set, err)
	}
	failed := errors.New("refused")
	if err := SetEverywhere(func() (Places, error) { return Places{}, nil }, func(Places) error { return failed }); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	n := 0
	if err := SetEverywhere(func() (Places, error) { n++; return Places{Live: n%2 == 0}, nil }, func(Places) error { return nil }); err == nil {
		t.Fatal("a domain that never stays")
	}
}

func TestKnown(t *testing.T) {
	for _, c := range []struct {
		code int
		text string
		want error
	}{
		{42, "Domain not found", ErrNoDomain}, {49, "", ErrNoPool}, {50, "", ErrNoVolume}, {90, "", ErrExists}, {99, "", ErrNoDevice}, {80, "", ErrNoMetadata},
		{1, "internal error: No more available PCI slots", ErrNoSlot}, {1, "internal error: no device found with alias ua-x", ErrNoDevice},
		{3, "this function is not supported by the connection driver: storage pool does not support volume creation", ErrPool},
		{9, "operation failed: domain 'a' already exists with uuid x", ErrDomainExists}, {9, "operation failed: domain 'a' is already defined with uuid x", ErrDomainExists},
		{55, "Requested operation is not valid: domain is not running", ErrNotRunning},
		{55, "Requested operation is not valid: transient domains do not have any persistent config", ErrTransient},
		{74, "argument unsupported: QEMU guest agent is not configured", ErrNoAgent},
		{86, "Guest agent is not responding: QEMU guest agent is not connected", ErrNoAgent},
		{86, "Guest agent is not responding: QEMU guest agent is not available due to an error", ErrNoAgent},
		{86, "Guest agent is not responding: Guest agent disappeared while executing command", ErrNoAgent},
		{86, "Guest agent is not responding: Guest agent not available for now", ErrAgentHangs},
		{86, "Guest agent is not responding: guest agent didn't respond to command within '5' seconds", ErrAgentHangs},
		{112, "guest agent command timed out: Guest agent disappeared while executing command", ErrNoAgent}, // libvirt 11
		{112, "", ErrAgentHangs}, {97, "", ErrAgentHangs},
		{1, "internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state", ErrFrozen},
		{1, "internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': fsfreeze hook has failed with status 3", ErrHook},
	} {
		raw := errors.New(c.text)
		if err := Known(raw, c.code, c.text); !errors.Is(err, c.want) || !errors.Is(err, raw) {
			t.Errorf("%d %s: %v", c.code, c.text, err)
		}
	}
	if raw := errors.New("other"); Known(raw, 1, "other") != raw {
		t.Error("an error nobody knows was changed")
	}
}

func TestStateOf(t *testing.T) {
	for s, want := range map[[2]int]State{
		{1, 1}: {Active: true}, {3, 1}: {Active: true, Paused: true}, {3, 5}: {Active: true, Paused: true, IOError: true},
		{4, 0}: {Active: true, Ending: true}, {5, 5}: {}, {6, 0}: {}, {7, 0}: {Active: true}, {0, 0}: {},
	} {
		if got := StateOf(s[0], s[1]); got != want {
			t.Error(s, got)
		}
	}
}
