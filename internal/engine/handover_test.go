package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/blockdevtest"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/handover"
	"github.com/virt-cow/virt-cow/internal/store"
)

// A guest on two hosts, one after the other and there and back again, its clients at work all the while: what all of them
// on a host see, and the readers that it has while the guest is on the other one, is one disk, sector by sector. Only what is not
// acknowledged yet the two hosts may see, one after the other, as new and as old: memory has its flag before the device has.
func TestHandOverIsLinearizable(t *testing.T) {
	for seed := range uint64(12) {
		chunk := int64(4096)
		if seed%2 == 1 {
			chunk = 64 << 10
		}
		kind := []string{"clone", "partly hydrated", "cut loose", "raw"}[seed/2%4]
		t.Run(fmt.Sprintf("%d %s %d", seed, kind, chunk), func(t *testing.T) { moveUnderLoad(t, seed, kind, chunk) })
	}
}

func moveUnderLoad(t *testing.T, seed uint64, kind string, chunk int64) {
	size := 5*chunk - 4096
	s := sharedClone(t, size, chunk)
	if kind == "raw" {
		state, err := stateStore(size, chunk)
		check(t, err)
		raw := memoryMaster(size, false, 0, size)
		s = newShared(t, func() blockdev.Device { return state.Open(false) }, nil, func() blockdev.Device { return jitter{raw.Open(false)} })
	} else {
		inner := s.a.store
		slow := func() blockdev.Device { return jitter{inner()} }
		s.a.store, s.b.store = slow, slow
	}
	s.a.shelf = shelf{}
	s.b.shelf = s.a.shelf
	check(t, s.a.open())
	withSnapshots := (seed+seed/4)%2 == 0
	var wants [][]byte
	var snapshots []*blockdevtest.Memory
	snapshot := func(v *Volume) {
		wants = append(wants, contents(t, v, size))
		m, _ := snap(t, v, s.a.shelf, 0, func(m *blockdevtest.Memory, e *cowfmt.StackEntry) blockdev.Device { return jitter{m} })
		snapshots = append(snapshots, m)
	}
	if withSnapshots {
		snapshot(s.a.v)
	}
	switch kind {
	case "cut loose":
		check(t, hydrateNow(s.a.v))
	case "partly hydrated":
		s.a.v.SetHydrationRate(64 << 10)
		check(t, s.a.v.StartHydration())
	}
	h := &history{sectors: map[int64][]porcupine.Operation{}, hosts: map[int]*site{}, noTrim: withSnapshots}
	for at, p := int64(0), contents(t, s.a.v, size); at < size/sector; at++ {
		w, _ := wordOf(p[at*sector:])
		h.sectors[at] = []porcupine.Operation{{Input: access{true, w}, Call: -2, Return: -1}}
	}
	client := 0
	from, to := s.a, s.b
	for round := range 3 {
		client = moveOnce(t, h, from, to, seed*10+uint64(round), size, chunk, client)
		from.close()
		from, to = to, from
		if round == 0 && withSnapshots { // one more, on the other host
			from.alone()
			snapshot(from.v)
		}
	}
	from.alone()
	var master blockdev.Device
	if from.master != nil {
		master = from.master()
	}
	for i, m := range snapshots {
		if got := asOfCut(t, from.v, master, m); !bytes.Equal(got, wants[i]) || from.v.Header().Stack[i].State != cowfmt.StackActive {
			t.Errorf("snapshot %d is not the volume as of its cut: %v", i, from.v.Header().Stack)
		}
	}
	from.close()
	for at, all := range h.sectors {
		for _, host := range []*site{from, to} {
			ops := slices.DeleteFunc(slices.Clone(all), func(op porcupine.Operation) bool {
				return !op.Input.(access).write && h.hosts[op.ClientId] != host
			})
			if porcupine.CheckOperationsTimeout(register, ops, time.Minute) == porcupine.Illegal {
				for _, op := range ops {
					t.Logf("client %d %d-%d %s", op.ClientId, op.Call, op.Return, register.DescribeOperation(op.Input, op.Output))
				}
				t.Fatalf("sector %d is not linearizable, as host %s sees it", at, host.name)
			}
		}
	}
}

// moveOnce moves a volume with clients at work: from the giver's side until its guest is stopped, then from the
// receiver's, which also reads before. It returns the number of the next client.
func moveOnce(t *testing.T, h *history, from, to *site, seed uint64, size, chunk int64, client int) int {
	var giving, receiving atomic.Bool // these stop
	var a, b sync.WaitGroup
	work := func(wg *sync.WaitGroup, on *site, stop *atomic.Bool, readOnly bool, least int) {
		client++
		id, v := client, on.v
		h.hosts[id] = on
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(id)))
			for i := 0; i < least || !stop.Load(); i++ {
				if i >= 300 {
					time.Sleep(100 * time.Microsecond)
					if i >= 600 {
						return
					}
				}
				r := randomRequest(rng, size, chunk)
				if readOnly {
					r = &blockdev.Request{Op: blockdev.OpRead, Off: r.Off, Length: max(r.Length, sector)}
				}
				if err := h.do(v, id, r); err != nil {
					if t.Context().Err() != nil {
						return // the test has failed, and ended the volume
					}
					t.Errorf("client %d of %s: %v", id, v.Info().Name, err)
					return
				}
			}
		})
	}
	from.guest(handover.GuestLeaves)
	for range 3 {
		work(&a, from, &giving, false, 5)
	}
	g := from.grantTo(to)
	check(t, to.open(incoming(g)))
	var early atomic.Bool
	var reads sync.WaitGroup
	work(&reads, to, &early, true, 20)
	time.Sleep(time.Duration(rand.New(rand.NewPCG(seed, 1)).IntN(3000)) * time.Microsecond)
	giving.Store(true)
	a.Wait()
	if seed%2 == 0 {
		early.Store(true)
		reads.Wait()
	}
	from.guest(handover.GuestStopped)
	to.guest(handover.GuestRuns)
	for range 3 {
		work(&b, to, &receiving, false, 10)
	}
	to.is(handover.Owner)
	from.is(handover.Given)
	eventually(t, "cache on", func() bool { return to.v.CacheMode() == cowfmt.CacheOn })
	receiving.Store(true)
	early.Store(true)
	reads.Wait()
	b.Wait()
	return client
}

// The receiver opens while the giver writes; what it read and knew then does not count. With the protection taken away
// (build tag virtcow_stale) this very test must fail: see TestStaleTable.
func TestReceiverRemembersNothing(t *testing.T) {
	if staleTable {
		t.Skip("the protection is taken away")
	}
	if err := staleCase(t); err != nil {
		t.Error(err)
	}
}

// staleCase is the fault that the cache switch is for: a chunk that was clear when the receiver opened is written by the
// giver, and then read where the guest went.
func staleCase(t *testing.T) error {
	const at = 8 << 12
	s := sharedClone(t, 16<<12, 4096)
	check(t, s.a.open())
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	s.b.reads(at, 4096, 0)
	s.a.write(at, 4096, 7)
	s.a.guest(handover.GuestStopped)
	s.a.is(handover.Sealed)
	s.b.guest(handover.GuestRuns)
	s.b.write(0, sector, 1)
	s.b.is(handover.Owner)
	s.b.alone()
	p := make([]byte, 4096)
	check(t, request(s.b.v, &blockdev.Request{Op: blockdev.OpRead, Off: at, Buf: p}))
	if string(p) != string(filled(at, 4096, 7)) {
		return errors.New("an acknowledged write is gone after the hand-over: the table was stale")
	}
	return nil
}

// lateReads is a device whose reads of some bytes, once it is told, come back late: the first one when it is let go.
type lateReads struct {
	blockdev.Device
	from, to int64
	late     *atomic.Bool
	first    *sync.Once
	begun    chan struct{}
	letGo    chan struct{}
}

func (l *lateReads) ReadAt(p []byte, off int64) (int, error) {
	n, err := l.Device.ReadAt(p, off)
	if l.late.Load() && l.from <= off && off < l.to {
		time.Sleep(50 * time.Millisecond)
		l.first.Do(func() {
			close(l.begun)
			<-l.letGo
		})
	}
	return n, err
}

// A read of the table that the receiver began while the giver wrote comes back when the cache is on: it does not count.
func TestLateReadOfTheTable(t *testing.T) {
	const at = 8 << 12
	s := sharedClone(t, 16<<12, 4096)
	inner := s.b.store
	late := lateReads{late: new(atomic.Bool), first: new(sync.Once), begun: make(chan struct{}), letGo: make(chan struct{})}
	s.b.store = func() blockdev.Device {
		l := late
		l.Device = inner()
		return &l
	}
	check(t, s.a.open())
	h := s.a.v.Header()
	late.from = h.Layout.Table[h.ActiveTable]
	late.to = late.from + store.LeafBytes
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	late.late.Store(true)
	early := start(s.b.v, &blockdev.Request{Op: blockdev.OpRead, Off: 0, Buf: make([]byte, 4096)})
	<-late.begun
	s.a.write(at, 4096, 7)
	s.a.guest(handover.GuestStopped)
	s.a.is(handover.Sealed)
	s.b.guest(handover.GuestRuns)
	write := start(s.b.v, &blockdev.Request{Op: blockdev.OpWrite, Off: 4096, Buf: filled(4096, 4096, 1)})
	s.b.is(handover.Owner)
	s.b.alone()
	close(late.letGo)
	s.b.reads(at, 4096, 7)
	check(t, <-early)
	check(t, <-write)
	s.a.close()
	s.b.close()
}

// Libvirt starts the guest on the giver again: what it writes is held until the giver may write.
func TestGuestComesBack(t *testing.T) {
	s := sharedClone(t, 16<<12, 4096)
	check(t, s.a.open())
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	s.a.guest(handover.GuestStopped)
	s.a.is(handover.Sealed)
	s.a.write(0, 4096, 3)   // held, reclaimed, reopened
	s.a.is(handover.Sealed) // again: it is told still that its guest is stopped
	s.a.guest(handover.GuestLeaves)
	s.a.is(handover.Kept)
	s.b.reads(0, 4096, 3)
	if err := s.a.v.EndGrant(t.Context(), g.ID, false); !errors.Is(err, ErrGranted) || !strings.Contains(err.Error(), "b has it open") {
		t.Errorf("ended under the receiver: %v", err)
	}
	s.b.close()
	s.a.is(handover.Alone) // seen in the slot, with nobody's help
	s.a.alone()
	check(t, s.a.v.EndGrant(t.Context(), g.ID, false))
	s.a.close()
}

// Both guests run, since libvirt lost an answer: the receiver was active first. The giver yields, its guest's requests fail.
func TestGiverYields(t *testing.T) {
	s := sharedClone(t, 16<<12, 4096)
	check(t, s.a.open())
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	s.a.write(0, 4096, 3)
	s.b.guest(handover.GuestRuns)
	held := start(s.b.v, &blockdev.Request{Op: blockdev.OpWrite, Off: 4096, Buf: filled(4096, 4096, 4)})
	s.b.is(handover.Active)
	s.a.guest(handover.GuestLeaves)
	s.a.write(8192, 4096, 5) // the giver may: it is not sealed
	s.a.guest(handover.GuestStopped)
	check(t, <-held)
	s.a.is(handover.Given)
	for _, op := range []blockdev.Op{blockdev.OpWrite, blockdev.OpRead} {
		if err := request(s.a.v, &blockdev.Request{Op: op, Buf: filled(0, 4096, 6)}); !errors.Is(err, unix.EIO) {
			t.Errorf("%v on the giver after the hand-over: %v", op, err)
		}
	}
	check(t, s.a.v.Flush()) // QEMU sends one late
	s.b.is(handover.Owner)
	s.b.reads(0, 4096, 3)
	s.b.reads(4096, 4096, 4)
	s.b.reads(8192, 4096, 5)
	s.a.close()
	s.b.alone()
	s.b.close()
}

// A late FLUSH at a sealed giver writes nothing.
func TestLateFlush(t *testing.T) {
	s := sharedClone(t, 16<<12, 4096)
	trace := new(blockdevtest.Trace)
	inner := s.a.store().(*blockdevtest.Memory)
	crash := blockdevtest.NewCrash(inner, blockdevtest.CrashOptions{Trace: trace})
	s.a.store = func() blockdev.Device { return crash }
	check(t, s.a.open())
	s.a.write(0, 4096, 3)
	s.a.grantTo(s.b)
	s.a.guest(handover.GuestStopped)
	s.a.is(handover.Sealed)
	trace.Reset()
	check(t, s.a.v.Flush())
	if got := trace.String(); got != "flush store\n" {
		t.Errorf("did\n%s", got)
	}
}

// Writes that come while the guest is not here are refused, but only once that is known for sure.
func TestMirrorIsRefused(t *testing.T) {
	s := sharedClone(t, 16<<12, 4096)
	check(t, s.a.open())
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	mirror := start(s.b.v, &blockdev.Request{Op: blockdev.OpWrite, Off: 0, Buf: filled(0, 4096, 9)})
	eventually(t, "held", func() bool { h := s.b.v.Handover(); return h.Held == 1 && h.Waits != "" })
	select {
	case err := <-mirror:
		t.Fatalf("answered while nobody knows what the guest does: %v", err)
	default:
	}
	end := time.After(time.Minute)
	tick := time.NewTicker(400 * time.Millisecond)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case err := <-mirror:
			if !errors.Is(err, unix.EPERM) {
				t.Errorf("%v, want EPERM", err)
			}
			done = true
		case <-tick.C:
			s.b.guest(handover.GuestStopped)
		case <-end:
			t.Fatal("not refused")
		}
	}
	s.a.reads(0, 4096, 0)
	s.b.close()
	s.a.is(handover.Alone)
	s.a.close()
}

// What may not be asked for while another host has the volume open, and by whom.
func TestGrantRefusals(t *testing.T) {
	s := sharedClone(t, 16<<12, 4096)
	check(t, s.a.open())
	ctx := t.Context()
	if err := s.a.v.Grant(ctx, cowfmt.Grant{ID: uuid.New(), Host: s.a.host, Boot: s.a.boot}); err == nil {
		t.Error("granted to itself")
	}
	if err := s.b.open(incoming(cowfmt.Grant{ID: uuid.New()})); !errors.Is(err, store.ErrNoGrant) || !strings.Contains(err.Error(), "ask a for a new one") {
		t.Errorf("opened without a grant: %v", err)
	}
	held, err := s.a.v.Suspend(ctx, time.Hour)
	check(t, err)
	if err := s.a.v.Grant(ctx, cowfmt.Grant{ID: uuid.New(), Host: s.b.host, Boot: s.b.boot}); !errors.Is(err, ErrSuspended) {
		t.Errorf("granted while a cut is made: %v", err)
	}
	check(t, held.Resume())
	s.a.alone()
	g := s.a.grantTo(s.b)
	check(t, s.a.v.Grant(ctx, g)) // once more
	other := cowfmt.Grant{ID: uuid.New(), Host: uuid.New(), Boot: uuid.New()}
	if err := s.a.v.Grant(ctx, other); !errors.Is(err, ErrGranted) || !strings.Contains(err.Error(), "b has it open since") {
		t.Errorf("a second grant: %v", err)
	}
	if err := s.a.v.SetCache(ctx, cowfmt.CacheOn); !errors.Is(err, ErrGranted) {
		t.Errorf("cache on with a grant open: %v", err)
	}
	if _, err := s.a.v.Suspend(ctx, time.Hour); !errors.Is(err, ErrGranted) {
		t.Errorf("suspended with a grant open: %v", err)
	}
	check(t, s.a.v.StartHydration()) // noted
	if got := s.a.v.Hydration().State; got != HydrationPaused {
		t.Errorf("hydration is %s with the cache off", got)
	}
	if err := s.a.v.EndGrant(ctx, other.ID, false); !errors.Is(err, ErrGranted) {
		t.Errorf("ended another grant: %v", err)
	}
	check(t, s.a.v.EndGrant(ctx, g.ID, false)) // it was never opened
	check(t, s.a.v.EndGrant(ctx, g.ID, false))
	s.a.alone()
	eventually(t, "hydrated", func() bool { return s.a.v.Hydration().State == HydrationDone })
	if err := s.b.open(incoming(g)); !errors.Is(err, store.ErrNoGrant) {
		t.Errorf("opened by a grant that has ended: %v", err)
	}
	s.a.close()
	if _, err := os.Stat(s.a.cache); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the exception cache is left: %v", err)
	}
}

// While another host has the volume open its owner is not closed; when it has taken it over, its last owner writes nothing.
func TestCloseWithGrant(t *testing.T) {
	s := sharedClone(t, 16<<12, 4096)
	check(t, s.a.open())
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	s.a.v.BeginClose()
	s.a.write(0, 4096, 3)
	eventually(t, "says what it waits for", func() bool { return strings.Contains(s.a.v.Handover().Waits, "host fenced b") })
	select {
	case <-s.a.v.MayClose():
		t.Fatal("may be closed with a grant open")
	default:
	}
	s.a.guest(handover.GuestStopped)
	s.b.guest(handover.GuestRuns)
	s.b.write(4096, 4096, 4)
	<-s.a.v.MayClose()
	s.a.close()
	s.b.is(handover.Owner)
	s.b.reads(0, 4096, 3)
	s.b.alone()
	s.b.close()
	check(t, s.a.open())
	s.a.reads(4096, 4096, 4)
	s.a.close()
}

// A receiver that is closed before anything happened leaves nothing; the giver is as before.
func TestReceiverCloses(t *testing.T) {
	s := sharedClone(t, 16<<12, 4096)
	check(t, s.a.open())
	g := s.a.grantTo(s.b)
	check(t, s.b.open(incoming(g)))
	held := start(s.b.v, &blockdev.Request{Op: blockdev.OpWrite, Off: 4096, Buf: filled(4096, 4096, 4)})
	eventually(t, "held", func() bool { return s.b.v.Handover().Held == 1 })
	s.b.close()
	if err := <-held; !errors.Is(err, ErrClosed) {
		t.Errorf("a held write at the end: %v", err)
	}
	check(t, s.a.v.EndGrant(context.Background(), g.ID, false))
	s.a.alone()
	s.a.reads(4096, 4096, 0)
	s.a.close()
}
