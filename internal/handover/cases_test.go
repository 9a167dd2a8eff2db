package handover

import (
	"strings"
	"testing"
)

// directed are the steps that a script's world takes only when the script says so; of the others it takes what it needs.
var directed = []string{"guest writes", "migration begins", "hook vetoes", "source is suspended", "destination resumes", "source ends",
	"Finish's", "migration is cancelled", "--copy-storage-all", "daemon starts again", "what the daemon told", "daemon says"}

// play has the named steps happen, each as soon as it can, by the fewest other steps.
func play(t *testing.T, m *model, w world, script ...string) world {
	t.Helper()
	for _, want := range script {
		h, what := int8(want[0]-'A'), want[3:]
		seen := map[world]bool{w: true}
		var next *world
		for todo := []world{w}; next == nil; todo = todo[1:] {
			if len(todo) == 0 || len(seen) > 200_000 {
				t.Fatalf("%q does not come", want)
			}
			m.next(&todo[0], func(l label, k kind, n *world) {
				if n.bad != "" {
					t.Fatalf("%s, at %c: %s", n.bad, 'A'+rune(l.host), l.what)
				}
				if next == nil && l.host == h && strings.HasPrefix(l.what, what) {
					c := *n
					next = &c
				}
				for _, d := range directed {
					if k != usual || strings.HasPrefix(l.what, d) {
						return
					}
				}
				if !seen[*n] {
					seen[*n] = true
					todo = append(todo, *n)
				}
			})
		}
		w = *next
	}
	return w
}

var (
	prepared = []string{"A: migration begins", "B: hook: daemon asks", "B: hook ends"}
	switched = append(prepared[:3:3], "A: source is suspended", "B: destination resumes")
)

// TestCases are the cases that the protocol was made for, each from its switch-over to where it ends.
func TestCases(t *testing.T) {
	owns := func(h int) func(w world) bool {
		return func(w world) bool {
			return w.owner == int8(h) && w.grant == 0 && w.h[h].cache && w.h[h].state == Alone && w.h[h].exp == w.last
		}
	}
	for _, c := range []struct {
		name   string
		hosts  int
		before []string
		script []string
		is     func(w world) bool
	}{
		{"plain", 2, switched, []string{"A: source ends", "B: guest writes", "B: flag is written", "B: header names", "B: its read", "B: its read"}, owns(1)},
		{"written while the destination is open", 2, prepared, []string{"A: guest writes", "A: flag is written", "A: source is suspended",
			"B: destination resumes", "A: source ends", "B: header names", "B: its read", "B: its read"}, owns(1)},
		{"copy-storage-all", 2, prepared, []string{"B: --copy-storage-all writes", "B: refuses", "B: its read", "B: daemon says", "A: receiver closed",
			"A: its read", "A: its read", "A: its read"}, owns(0)},
		{"copy-storage-all's last write comes when the source is suspended", 2, prepared, []string{"A: source is suspended",
			"A: its read", "B: --copy-storage-all writes", "B: refuses", "A: guest writes", "A: receiver not active, guest runs", "A: flag is written"},
			func(w world) bool { return w.h[0].state == Kept && w.h[0].exp == w.last }},
		{"Finish's reply lost, both able to run, source first", 2, switched, []string{"A: Finish's reply is lost", "A: guest writes",
			"A: begins to write", "A: flag is written", "A: guest runs here for good", "A: its read", "B: guest writes", "B: guest runs here", "B: its read", "B: reads the other"},
			func(w world) bool { return w.h[0].slot == SlotKept && w.h[1].req == reqWaits }},
		{"Finish's reply lost, both able to run, destination first", 2, switched, []string{"B: guest writes", "A: guest suspended",
			"B: data is written", "A: Finish's reply is lost", "A: guest writes", "A: fails the guest's write"},
			func(w world) bool { return w.owner == 1 && w.h[0].dom == domFailed }},
		{"grant outlives its owner, who is fenced", 2, switched, []string{"B: guest writes", "A: host dies", "A: operator: the host is fenced",
			"B: giver proven dead", "B: its read", "B: its read", "B: data is written"}, owns(1)},
		{"a veto, and the grant is open", 2, []string{"A: migration begins", "B: hook: daemon asks", "A: another host", "B: hook vetoes"},
			[]string{"B: daemon says", "A: receiver closed", "A: its read", "A: its read", "A: its read"}, owns(0)},
		{"a request for a grant comes after the veto", 2, []string{"A: migration begins", "B: hook: daemon asks", "B: hook vetoes"},
			[]string{"A: another host", "B: daemon says", "A: receiver closed", "A: its read", "A: its read", "A: its read"}, owns(0)},
		{"late FLUSH", 2, switched, []string{"B: guest writes", "B: flag is written", "B: header names", "B: its read", "B: its read", "A: source ends"}, owns(1)},
		{"source's daemon started again with a grant open", 2, prepared, []string{"A: daemon is killed", "A: source is suspended",
			"B: destination resumes", "A: source ends", "B: guest writes", "A: daemon starts again", "B: flag is written", "B: header names", "B: its read", "B: its read"}, owns(1)},
		{"destination's daemon started again with a grant open", 2, prepared, []string{"B: daemon is killed", "A: source is suspended",
			"B: destination resumes", "A: source ends", "B: guest writes", "B: daemon starts again", "B: flag is written", "B: header names", "B: its read", "B: its read"}, owns(1)},
		{"source's engine killed when sealed", 2, prepared, []string{"A: source is suspended", "A: guest suspended", "A: its read", "A: its read",
			"A: engine is killed", "B: destination resumes", "A: source ends", "B: guest writes", "B: flag is written", "B: header names", "B: its read", "B: its read"}, owns(1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newModel(c.hosts, 2, 3, 3, false)
			if strings.HasPrefix(c.name, "copy-storage-all") {
				m.mirror = true
			}
			w := play(t, m, play(t, m, m.start, c.before...), c.script...)
			if !c.is(w) {
				t.Errorf("ends as %+v", w)
			}
		})
	}
}

// TestThirdHost: while one host has a grant another that asks gets none, and the one that has it gets the volume.
func TestThirdHost(t *testing.T) {
	m := newModel(3, 1, 1, 0, false)
	w := play(t, m, m.start, prepared...)
	w.ask, w.askTo, w.askBy, w.h[2].want = 9, 0, 2, 9 // as if C's hook had run
	m.next(&w, func(l label, _ kind, n *world) {
		if l.what == "daemon has the engine asked for a grant" {
			t.Errorf("%c is asked while it has granted", 'A'+rune(l.host))
		}
	})
	if r := Next(Giver, Open, Facts{Asked: true, Guest: GuestLeaves}); r.Do != Nothing {
		t.Errorf("an owner that has granted does %v for one who asks", r.Do)
	}
	w.ask = 0
	play(t, m, w, "A: source is suspended", "B: destination resumes", "A: source ends", "B: header names")
}

// TestUnseenEnd shows the limit that docs/MIGRATION.md names: nobody saw the source run again before it ended.
func TestUnseenEnd(t *testing.T) {
	m := newModel(2, 1, 2, 1, false)
	m.start = play(t, m, m.start, bothRun...)
	m.unseenEnds = true
	if f := m.explore(6_000_000, false); !strings.HasPrefix(f.bad, "2:") {
		t.Errorf("%d states: %q; if there is no such limit any more the page should not name it", f.states, f.bad)
	}
}
