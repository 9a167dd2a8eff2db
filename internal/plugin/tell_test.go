package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func told(volume string, n int) Event {
	return Event{Event: EventFailed, Volume: Volume{Name: volume}, Error: fmt.Sprintf("n=%d.", n)}
}

// number appends "volume number" to $S/told.
const number = `sed 's/.*"volume":{"name":"\([^"]*\)".*n=\([0-9]*\)\..*/\1 \2/' >>$S/told`

func TestTellOrder(t *testing.T) {
	s := newSite(t, deadline)
	s.plugin("a", number)
	const volumes, each = 5, 8
	for n := range each {
		for v := range volumes {
			s.runner.Tell(told(fmt.Sprintf("v%d", v), n))
		}
	}
	if err := s.runner.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	for line := range strings.Lines(s.trace("told")) {
		var v string
		var n int
		if _, err := fmt.Sscan(line, &v, &n); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if n != next[v] {
			t.Errorf("%s: event %d after %d", v, n, next[v]-1)
		}
		next[v] = n + 1
	}
	if len(next) != volumes {
		t.Errorf("told of %v", next)
	}
	for v, n := range next {
		if n != each {
			t.Errorf("%s: %d events", v, n)
		}
	}
	if s.runner.Failures() != 0 {
		t.Errorf("%d failures\n%s", s.runner.Failures(), s.log)
	}
	s.runner.Tell(told("v1", 0))
	if s.runner.Failures() != 1 {
		t.Error("an event after Close is not counted")
	}
	if err := s.runner.Ask(t.Context(), attach("v1")); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// A plugin that fails is counted; the others and the next events go on.
func TestTellFailure(t *testing.T) {
	s := newSite(t, deadline)
	s.plugin("a", "echo broken >&2; exit 1")
	s.plugin("b", number)
	s.runner.Tell(told("v1", 1))
	s.runner.Tell(told("v1", 2))
	if err := s.runner.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.trace("told"); got != "v1 1\nv1 2\n" {
		t.Errorf("told %q", got)
	}
	if s.runner.Failures() != 2 || s.runner.Vetoes() != 0 {
		t.Errorf("%d failures, %d vetoes", s.runner.Failures(), s.runner.Vetoes())
	}
	s.wantLog("broken")
}

// A plugin that hangs on one volume does not keep others waiting, nor Tell.
func TestTellHang(t *testing.T) {
	s := newSite(t, 10*time.Minute)
	s.plugin("a", `cat >$S/doc.$$; if grep -q '"name":"slow"' $S/doc.$$; then echo $$ >$S/hung; exec sleep 600; fi; `+
		`sed 's/.*n=\([0-9]*\)\..*/\1/' $S/doc.$$ >>$S/told`)
	s.runner.Tell(told("slow", 0))
	s.await("it hangs", func() bool { return s.trace("hung") != "" })
	s.runner.Tell(told("slow", 1))
	s.runner.Tell(told("v1", 7))
	s.await("the other volume's event", func() bool { return s.trace("told") == "7\n" })

	for n := range 3 * maxTold {
		s.runner.Tell(told("slow", n))
	}
	s.wantLog("events were dropped")
	dropped := s.runner.Failures()
	if dropped < maxTold {
		t.Errorf("%d dropped", dropped)
	}
	if n := strings.Count(s.log.String(), "events were dropped"); n > 3 {
		t.Errorf("%d log lines about it", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.runner.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	s.await("plugin gone", func() bool { return gone(strings.TrimSpace(s.trace("hung"))) })
	if got := s.runner.Failures(); got < dropped+maxTold {
		t.Errorf("%d failures: what waited is not counted", got)
	}
}

func TestTellNobody(t *testing.T) {
	s := newSite(t, deadline)
	if err := os.RemoveAll(filepath.Dir(s.dir)); err != nil {
		t.Fatal(err)
	}
	s.runner.Tell(told("v1", 0))
	if err := s.runner.Ask(t.Context(), attach("v1")); err != nil {
		t.Error(err)
	}
	if err := s.runner.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if s.runner.Failures() != 0 {
		t.Error(s.log)
	}
}
