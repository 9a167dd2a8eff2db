package cut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
)

// story is one run of the model: a cut, whatever comes of it, and then an hour in which nothing goes wrong any more.
type story struct {
	quiesce string
	then    string // hand: over; drop; die: nothing more comes
	off     bool
	vss     bool // the guest thaws itself after ten seconds
	granted time.Duration
	grants  time.Duration // once a snapshot was added
	frozen  time.Duration // FrozenFor; 0: ten seconds
	broken  bool          // a snapshot breaks as soon as it is there
	clients bool          // somebody is connected to a volume
	leave   bool          // until the cut
	choose  func(call string) fault
}

// tell runs a story and returns what was made, and what is wrong, "" for nothing.
func (s story) tell(t *testing.T) (w *world, result *Result, err error) {
	dir, tmp := os.MkdirTemp("/dev/shm", "cut") // fsync costs nothing there
	if tmp != nil {
		dir = t.TempDir()
	}
	defer os.RemoveAll(dir)
	var problem string
	synctest.Test(t, func(t *testing.T) {
		w = newWorld(dir, 2, s.choose)
		w.guest.off = s.off
		if s.vss {
			w.guest.byItself = 10 * time.Second
		}
		for _, v := range w.volumes {
			v.granted, v.grants, v.breaks, v.leave = time.Now().Add(s.granted), s.grants, s.broken, s.leave
			if s.clients && v.name == "v1" {
				v.clients = 1
			}
		}
		result, err = w.live(t, s)
		problem = w.wrong(s, result)
	})
	if problem != "" {
		t.Fatalf("%s\n%+v\nresult %+v, %v\n%s", problem, s, result, err, strings.Join(w.trace, "\n"))
	}
	return w, result, err
}

func (w *world) live(t *testing.T, s story) (result *Result, err error) {
	k, ctx, open := w.daemon(zerolog.Nop())
	if open != nil {
		t.Fatal(open)
	}
	w.mu.Lock()
	dead := w.dead
	w.mu.Unlock()
	ended := make(chan struct{})
	go func() { k.Run(ctx); ended <- struct{}{} }()
	r := w.request(s.quiesce)
	if s.frozen > 0 {
		r.FrozenFor = s.frozen
	}
	result, err = k.Make(ctx, r)
	select {
	case <-dead:
		result, err = nil, errDead // whatever it thought
	default:
	}
	if err == nil && s.then != "die" {
		err = errors.Join(err, k.Hand(theCut, []byte(`{"a":1}`)))
		if s.then == "drop" {
			err = errors.Join(err, k.Drop(theCut))
		} else {
			err = errors.Join(err, k.Done(theCut))
		}
	}
	if err == nil && s.then == "die" {
		w.mu.Lock()
		w.die()
		w.mu.Unlock()
	}
	for {
		select {
		case <-dead:
			<-ended
			time.Sleep(time.Second)
			if k, ctx, open = w.daemon(zerolog.Nop()); open != nil {
				t.Fatal(open)
			}
			w.mu.Lock()
			dead = w.dead
			w.mu.Unlock()
			go func() { k.Run(ctx); ended <- struct{}{} }()
			continue
		case <-time.After(time.Hour):
		}
		break
	}
	w.kill()
	<-ended
	w.mu.Lock()
	defer w.mu.Unlock()
	w.settle()
	return result, err
}

// wrong looks for what must never be.
func (w *world) wrong(s story, result *Result) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.guest.isFrozen() {
		return "the guest is frozen"
	}
	kept := 0
	for _, v := range w.volumes {
		kept += len(v.stack)
		for id, entry := range v.stack {
			if entry.State == api.SnapshotActive && (result == nil || s.then != "hand") {
				return fmt.Sprintf("%s has an active snapshot of a cut that was not made, or was dropped", v.name)
			}
			if !w.stores[id] && entry.State == api.SnapshotActive {
				return fmt.Sprintf("%s lists a store that is gone", v.name)
			}
		}
		if v.opens != 0 {
			return fmt.Sprintf("%s is held %d times", v.name, v.opens)
		}
	}
	handed := result != nil && s.then == "hand"
	switch {
	case handed && (kept != len(w.volumes) || len(w.stores) != kept):
		return fmt.Sprintf("made, and %d of %d volumes have it, in %d stores", kept, len(w.volumes), len(w.stores))
	case !handed && len(w.stores) != 0:
		return fmt.Sprintf("not made, and %d stores are left", len(w.stores))
	}
	left, err := os.ReadDir(w.dir)
	if err != nil || len(left) != 0 {
		return fmt.Sprintf("journal has %v, %v", left, err)
	}
	if result == nil {
		return ""
	}
	at := func(spans []span) bool {
		return slices.ContainsFunc(spans, func(x span) bool { return x.has(result.At) })
	}
	for _, v := range w.volumes {
		if !at(v.suspended) {
			return fmt.Sprintf("%s was not suspended at %v: %v", v.name, result.At, v.suspended)
		}
	}
	switch {
	case (result.Grade == api.GradeFS || result.Grade == api.GradeApp) && !at(w.guest.frozen):
		return "graded better than it is: the guest was not frozen"
	case (result.Grade == api.GradeOff) != s.off && result.Grade != api.GradeCrash:
		return "grade " + result.Grade
	case result.Grade == api.GradeCrash && (s.quiesce == api.QuiesceRequire || result.Why == ""):
		return "grade crash: " + result.Why
	}
	return ""
}

func well(string) fault { return none }

func TestMade(t *testing.T) {
	for _, c := range []struct {
		story story
		grade string
		says  string
	}{
		{story{quiesce: api.QuiesceTry, then: "hand"}, api.GradeFS, ""},
		{story{quiesce: api.QuiesceRequire, then: "hand"}, api.GradeFS, ""},
		{story{quiesce: api.QuiesceOff, then: "hand"}, api.GradeCrash, "not to be frozen"},
		{story{quiesce: api.QuiesceRequire, then: "hand", off: true}, api.GradeOff, ""},
		{story{quiesce: api.QuiesceTry, then: "hand", off: true, clients: true}, api.GradeCrash, "volume v1 open"},
		{story{quiesce: api.QuiesceTry, then: "hand", off: true, clients: true, leave: true}, api.GradeCrash, "volume v1 open"},
		{story{quiesce: api.QuiesceTry, then: "hand", clients: true}, api.GradeFS, ""},
		{story{quiesce: api.QuiesceTry, then: "drop"}, api.GradeFS, ""},
		{story{quiesce: api.QuiesceTry, then: "die"}, api.GradeFS, ""},
		{story{quiesce: api.QuiesceTry, then: "hand", granted: 30 * time.Second}, api.GradeFS, ""},
		{story{quiesce: api.QuiesceTry, then: "hand", frozen: time.Second, choose: only("cut v0 0", slow)}, api.GradeCrash, "before all volumes were suspended"},
		{story{quiesce: api.QuiesceTry, then: "hand", frozen: time.Second, choose: only("thaw 0", slow)}, api.GradeCrash, "it was frozen for 3.004s, longer than 1s"},
		{story{quiesce: api.QuiesceTry, then: "hand", choose: only("freeze 0", lostReply)}, api.GradeCrash, "may not have been frozen"},
	} {
		if c.story.choose == nil {
			c.story.choose = well
		}
		_, result, err := c.story.tell(t)
		if err != nil || result.Grade != c.grade || !strings.Contains(result.Why, c.says) {
			t.Errorf("%+v: %+v, %v", c.story, result, err)
		}
	}
	if _, _, err := (story{quiesce: api.QuiesceTry, then: "hand", broken: true, choose: well}).tell(t); err == nil || !strings.Contains(err.Error(), "broken right after the cut") {
		t.Errorf("a snapshot that breaks at once: %v", err)
	}
	for _, leave := range []bool{false, true} {
		s := story{quiesce: api.QuiesceRequire, then: "hand", off: true, clients: true, leave: leave, choose: well}
		if _, _, err := s.tell(t); !errors.Is(err, ErrCrash) || !strings.Contains(err.Error(), "volume v1 open") {
			t.Errorf("somebody has a volume of a domain that is off: %v", err)
		}
	}
	s := story{quiesce: api.QuiesceTry, granted: 10 * time.Minute, choose: well}
	if w, _, err := s.tell(t); !errors.Is(err, errShared) || len(w.guest.frozen) > 0 {
		t.Errorf("a migration that does not end: %v, frozen %v", err, w.guest.frozen)
	}
}

// A guest whose volumes are granted is not frozen any more: it might go frozen to a host that knows nothing of it.
func TestNotFrozenOnceGranted(t *testing.T) {
	w, result, err := story{quiesce: api.QuiesceTry, then: "hand", grants: 30 * time.Second, choose: well}.tell(t)
	if err != nil || result.Grade != api.GradeFS || len(w.guest.frozen) != 1 {
		t.Errorf("%+v, %v: frozen %v", result, err, w.guest.frozen)
	}
}

// A guest that could not be thawed at once is thawed while snapshots are removed, not after that.
func TestThawedWhileUndone(t *testing.T) {
	w, _, err := story{quiesce: api.QuiesceTry, then: "hand", choose: func(call string) fault {
		switch {
		case call == "thaw 0", strings.HasPrefix(call, "cut "):
			return refused
		case strings.HasPrefix(call, "remove "):
			return slow
		}
		return none
	}}.tell(t)
	if err == nil || len(w.guest.frozen) != 1 {
		t.Fatalf("%v: frozen %v", err, w.guest.frozen)
	}
	if f := w.guest.frozen[0]; f.to.Sub(f.from) > 2*time.Second {
		t.Errorf("frozen for %v", f.to.Sub(f.from))
	}
}

// calls are all that are made in a story.
func calls(w *world) []string {
	var all []string
	for what, n := range w.calls {
		for i := range n {
			all = append(all, fmt.Sprintf("%s %d", what, i))
		}
	}
	slices.Sort(all)
	return all
}

// Each call goes wrong in each way, in each story; and after that each of those that undo it.
func TestOneFault(t *testing.T) {
	told := 0
	for _, s := range []story{
		{quiesce: api.QuiesceTry, then: "hand"}, {quiesce: api.QuiesceRequire, then: "hand", vss: true},
		{quiesce: api.QuiesceTry, then: "drop"}, {quiesce: api.QuiesceOff, then: "hand", off: true},
		{quiesce: api.QuiesceTry, then: "die"},
	} {
		s.choose = well
		w, _, _ := s.tell(t)
		for _, call := range calls(w) {
			for f := none + 1; f < faults; f++ {
				s.choose = only(call, f)
				s.tell(t)
				told++
			}
		}
	}
	t.Logf("%d stories", told)
}

func only(call string, f fault) func(string) fault {
	return func(now string) fault {
		if now == call {
			return f
		}
		return none
	}
}

// Anything goes wrong, at any time in the first calls.
func TestManyFaults(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	made := 0
	rounds := 1500
	if testing.Short() {
		rounds = 200
	}
	for range rounds {
		left, rate := 40, random.IntN(25)+1
		s := story{
			quiesce: []string{api.QuiesceTry, api.QuiesceRequire, api.QuiesceOff}[random.IntN(3)],
			then:    []string{"hand", "hand", "drop", "die"}[random.IntN(4)],
			vss:     random.IntN(2) == 0, off: random.IntN(8) == 0,
		}
		if random.IntN(5) == 0 {
			s.granted = time.Duration(random.IntN(90)) * time.Second
		}
		s.choose = func(string) fault { // under the world's lock
			if left--; left < 0 || random.IntN(rate) != 0 {
				return none
			}
			return fault(random.IntN(int(faults)))
		}
		if _, result, _ := s.tell(t); result != nil {
			made++
		}
	}
	t.Logf("%d of %d made", made, rounds)
	if made < rounds/50 || made > rounds*49/50 {
		t.Error("the model shows next to nothing")
	}
}
