package handover

import (
	"slices"
	"testing"
)

// with returns the table with a rule put before the others.
func with(table []Rule, s State, when func(Facts) bool, do Action, next State) []Rule {
	return append([]Rule{{s, "mutant", when, do, next}}, table...)
}

// without returns the table without a state's rules that do this.
func without(table []Rule, s State, do Action) []Rule {
	return slices.DeleteFunc(slices.Clone(table), func(r Rule) bool { return r.State == s && r.Do == do })
}

// bothRun has the guest able to run on both hosts.
var bothRun = append(switched[:5:5], "A: Finish's reply is lost")

// TestMutants breaks one rule, or leaves out one step of an action: the exploration must see each.
func TestMutants(t *testing.T) {
	always := func(Facts) bool { return true }
	for _, c := range []struct {
		name string
		m    func(t *testing.T, m *model)
	}{
		{"giver opens again without a RECLAIM", func(t *testing.T, m *model) {
			m.giver = with(m.giver, Sealed, func(f Facts) bool { return f.Peer != SlotActive && runs(f.Guest) }, DoReopen, Open)
		}},
		{"giver reads the receiver's slot before its RECLAIM is durable", func(t *testing.T, m *model) { m.no.keepBack, m.no.forget = true, true }},
		{"giver does not yield", func(t *testing.T, m *model) { m.giver = with(m.giver, Reclaim, always, DoKeep, Kept) }},
		{"giver hands over while open", func(t *testing.T, m *model) {
			m.giver = with(m.giver, Open, func(f Facts) bool { return f.Peer == SlotActive }, DoHandOver, Given)
		}},
		{"giver hands over to an idle receiver, and ends the grant of one that is active", func(t *testing.T, m *model) {
			m.giver = with(m.giver, Sealed, func(f Facts) bool { return f.Peer == SlotActive }, DoEndGrant, Alone)
			m.no.reread = true
		}},
		{"giver seals while its guest runs", func(t *testing.T, m *model) {
			m.giver = with(m.giver, Open, func(f Facts) bool { return f.Peer == SlotActive }, DoSeal, Sealed)
			m.giver = with(m.giver, Sealed, func(f Facts) bool { return runs(f.Guest) }, DoReopen, Open)
		}},
		{"giver that stays does not keep", func(t *testing.T, m *model) {
			m.no.keep = true
			m.start = play(t, m, m.start, bothRun...)
			m.giver = without(without(m.giver, Open, DoKeep), Reclaim, DoKeep)
			m.giver = with(m.giver, Reclaim, func(f Facts) bool { return f.Peer != Unread && f.Peer != SlotActive }, DoReopen, Open)
		}},
		{"receiver writes before it is active", func(t *testing.T, m *model) {
			m.receiver = with(m.receiver, Idle, func(f Facts) bool { return f.Peer == SlotSealed }, DoWrite, Writer)
		}},
		{"receiver writes while the giver is open", func(t *testing.T, m *model) {
			m.receiver = with(m.receiver, Active, func(f Facts) bool { return f.Peer == SlotOpen }, DoWrite, Writer)
		}},
		{"receiver writes on what it read before it was active", func(t *testing.T, m *model) { m.no.forget = true }},
		{"receiver goes on before its ACTIVE is durable", func(t *testing.T, m *model) { m.no.volatileActive = true }},
		{"receiver takes over without a proof of death", func(t *testing.T, m *model) { m.no.fence = true }},
		{"receiver takes over what the giver kept", func(t *testing.T, m *model) {
			m.receiver = with(m.receiver, Active, func(f Facts) bool { return f.PeerDead }, DoTakeOver, Owner)
			m.start = play(t, m, m.start, bothRun...)
		}},
		{"receiver is active for any request", func(t *testing.T, m *model) {
			m.receiver = with(m.receiver, Idle, func(f Facts) bool { return f.Waits }, DoActivate, Active)
			m.mirror = true
		}},
		{"receiver writes a mirror's", func(t *testing.T, m *model) {
			m.receiver = with(m.receiver, Idle, func(f Facts) bool { return f.Waits }, DoWrite, Writer)
			m.mirror = true
		}},
		{"receiver remembers a zero", func(t *testing.T, m *model) { m.no.wait = true }},
		{"receiver opens without reading the header again", func(t *testing.T, m *model) { m.no.endCheck = true }},
		{"receiver that may have written closes", func(t *testing.T, m *model) {
			m.start = play(t, m, m.start, switched...)
			m.receiver = with(m.receiver, Active, func(f Facts) bool { return f.Closing }, DoClose, Closed)
		}},
		{"grant without a commit", func(t *testing.T, m *model) { m.no.commit = true }},
		{"grant with the cache on", func(t *testing.T, m *model) { m.no.early = true }},
		{"seal without draining", func(t *testing.T, m *model) { m.no.drain = true }},
		{"grant ended without reading the receiver's slot", func(t *testing.T, m *model) { m.no.reread = true }},
		{"late FLUSH writes the table", func(t *testing.T, m *model) { m.no.flush = true }},
		{"what was known of the guest before counts", func(t *testing.T, m *model) {
			m.start = play(t, m, m.start, switched...)
			m.no.fresh = true
		}},
		{"messages and slots of another grant count", func(t *testing.T, m *model) { m.no.sameGrant = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			all, tries := 0, [][4]int{{1, 1, 0, 0}, {1, 2, 0, 0}, {1, 1, 1, 0}, {1, 1, 1, 1}, {2, 1, 0, 0}, {1, 2, 1, 1}, {2, 1, 1, 0}, {1, 2, 2, 1}, {1, 1, 2, 2}}
			for i, b := range tries {
				for _, dirty := range []bool{false, true} {
					m := newModel(2, 1, b[1], max(b[2], 1), dirty)
					m.start.fences = uint8(b[3])
					c.m(t, m)
					if m.start.id == 0 {
						m.start.migrations, m.start.faults = uint8(b[0]), uint8(b[2])
					} else {
						m.start.faults = 1
					}
					f := m.explore(3_000_000, true)
					all += f.states
					if f.bad != "" {
						t.Logf("%s, after %d steps, %d states", f.bad, len(f.trace), all)
						if testing.Verbose() && len(f.trace) < 60 {
							t.Logf("\n%s", trace(f.trace))
						}
						return
					}
					if f.stuck != nil {
						t.Logf("stuck, after %d steps, %d states", len(f.stuck), all)
						return
					}
				}
				if i >= 5 && !*deep {
					break
				}
			}
			t.Errorf("not seen in %d states", all)
		})
	}
}
