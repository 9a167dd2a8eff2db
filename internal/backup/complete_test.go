package backup

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/reader"
)

var owner = Standing{Owned: true, Epoch: 7, Address: "hv2:16589", Name: "hv2"}

// Without its owner's word a backup is not complete, however often it is asked for.
func TestAttestation(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		now    Standing
		answer api.PeerAttestAnswer
		err    error
		look   error
		says   string // "": it is well
	}{
		{name: "closed cleanly", now: Standing{Epoch: 7}},
		{name: "unbroken", now: owner, answer: api.PeerAttestAnswer{Unbroken: true, Open: true, Epoch: 7}},
		{name: "broken", now: owner, answer: api.PeerAttestAnswer{Open: true, Epoch: 7, Why: "no room"}, says: "is broken: no room"},
		{name: "not open", now: owner, answer: api.PeerAttestAnswer{Unbroken: true, Epoch: 7}, says: "has it not open now"},
		{name: "other epoch", now: owner, answer: api.PeerAttestAnswer{Unbroken: true, Open: true, Epoch: 8}, says: "from one host to another"},
		{name: "no answer", now: owner, err: errAway, says: "the word of host hv2"},
		{name: "no address", now: Standing{Owned: true, Epoch: 7, Name: "hv2"}, says: "has no address"},
		{name: "broken in the header", look: fmt.Errorf("%w: broken", ErrGivenUp), says: "broken"},
		{name: "broken, and why", now: owner, look: fmt.Errorf("%w: %w", ErrGivenUp, reader.ErrBroken), answer: api.PeerAttestAnswer{Open: true, Epoch: 7, Why: "no room"}, says: "host hv2 says of disk vdb: no room"},
		{name: "unreadable", look: errAway, says: errAway.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.stop()
			r.config.Patience = 20 * time.Millisecond
			r.start()
			m := r.manifest(r.reserve(), 5, 2)
			d := r.disks[m.Disks[1].UUID]
			d.standing, d.look = c.now, c.look
			r.answer = func(_, path string, _ api.PeerSnapshot) (any, error) {
				if path == api.PathPeerAttest {
					return c.answer, c.err
				}
				return nil, nil
			}
			r.begin(&m)
			s := r.await(m.Cut, func(s api.JobStatus) bool { return s.Ended != 0 })
			switch {
			case c.says == "" && s.State != api.JobDone:
				t.Errorf("%+v", s)
			case c.says != "" && (s.State != api.JobFailed || !strings.Contains(s.Error, c.says) || s.Backup != ""):
				t.Errorf("%+v", s)
			}
			r.awaitRemoved(&m)
		})
	}
}

// While the owner does not answer the job says for what it waits, and goes on once it does; nothing is read again for that.
func TestOwnerIsWaitedFor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 5)
	d := r.disks[m.Disks[0].UUID]
	d.standing = owner
	var answers atomic.Bool
	r.answer = func(_, path string, _ api.PeerSnapshot) (any, error) {
		if path == api.PathPeerAttest && !answers.Load() {
			return nil, errAway
		}
		return nil, nil
	}
	r.begin(&m)
	s := r.await(m.Cut, func(s api.JobStatus) bool { return s.Waits != "" })
	if s.State != api.JobCompleting || !strings.Contains(s.Waits, "hv2") {
		t.Errorf("%+v", s)
	}
	r.stop()
	r.start()
	answers.Store(true)
	r.holds(r.await(m.Cut, state(api.JobDone)), &m)
	for off, n := range d.reads {
		if n != 1 {
			t.Errorf("%d read %d times", off, n)
		}
	}
}

// The snapshot breaks while it is copied: the guest went on, the backup fails.
func TestBreaksMeanwhile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 8)
	d := r.disks[m.Disks[0].UUID]
	d.onRead = func(off int64) error {
		if off == 5*piece {
			return fmt.Errorf("%w: the snapshot is broken", ErrGivenUp)
		}
		return nil
	}
	r.begin(&m)
	if s := r.await(m.Cut, state(api.JobFailed)); !strings.Contains(s.Error, "disk vda: ") {
		t.Error(s.Error)
	}
	r.awaitRemoved(&m)
}

// A snapshot that breaks ends the job while another disk is still being copied.
func TestOtherDiskBreaks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	r.config.Look, r.config.Rate = time.Millisecond, piece // a second for each
	r.start()
	m := r.manifest(r.reserve(), 60, 4)
	first, second := r.disks[m.Disks[0].UUID], r.disks[m.Disks[1].UUID]
	second.standing = owner
	r.answer = func(_, path string, s api.PeerSnapshot) (any, error) {
		if path == api.PathPeerAttest && s.Snapshot == m.Disks[1].Snapshot {
			return api.PeerAttestAnswer{Open: true, Epoch: 7, Why: "no room"}, nil
		}
		return nil, nil
	}
	r.begin(&m)
	if s := r.await(m.Cut, state(api.JobFailed)); !strings.Contains(s.Error, "disk vdb: ") || !strings.Contains(s.Error, "no room") {
		t.Error(s.Error)
	}
	first.mu.Lock()
	if first.reads[59*piece] != 0 {
		t.Error("the first disk was copied to its end")
	}
	first.mu.Unlock()
	r.awaitRemoved(&m)
}

// A disk that can't be read for a while is waited for.
func TestDiskFailsForAWhile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 8)
	d := r.disks[m.Disks[0].UUID]
	var failures atomic.Int64
	d.onRead = func(off int64) error {
		if off == 5*piece && failures.Add(1) < 4 {
			return errAway
		}
		return nil
	}
	r.begin(&m)
	r.holds(r.await(m.Cut, state(api.JobDone)), &m)
}

// The owner is asked to remove a snapshot until it has, also by the next node.
func TestRemovalIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.manifest(r.reserve(), 2, 2)
	var answers atomic.Bool
	var asked atomic.Int64
	r.answer = func(_, path string, s api.PeerSnapshot) (any, error) {
		if path == api.PathPeerSnapshotRemove && s.Snapshot == m.Disks[1].Snapshot && !answers.Load() {
			asked.Add(1)
			return nil, errAway
		}
		return nil, nil
	}
	r.begin(&m)
	r.await(m.Cut, state(api.JobDone))
	for end := time.Now().Add(wait); asked.Load() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not asked again")
		}
	}
	r.stop()
	answers.Store(true)
	r.hosts.mu.Lock()
	delete(r.removed, m.Disks[0].Snapshot)
	r.hosts.mu.Unlock()
	r.start()
	r.await(m.Cut, func(api.JobStatus) bool { // it is noted
		r.node.mu.Lock()
		defer r.node.mu.Unlock()
		return r.node.jobs[m.Cut].rec.settled()
	})
	if r.removed[m.Disks[0].Snapshot] != "" {
		t.Error("asked for what is gone")
	}
}

// How full a snapshot is, is what its owner says while it is copied, and at the end.
func TestFill(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	r.config.Look = time.Millisecond
	r.start()
	m := r.manifest(r.reserve(), 8, 2)
	owned := m.Disks[0]
	d := r.disks[owned.UUID]
	d.standing = Standing{Owned: true, Epoch: 7, Address: "hv1"}
	saved := int64(3 * piece)
	r.answer = func(_, path string, s api.PeerSnapshot) (any, error) {
		if path != api.PathPeerAttest || s.Snapshot != owned.Snapshot {
			return nil, nil
		}
		return api.PeerAttestAnswer{Open: true, Unbroken: true, Epoch: 7, Saved: atomic.LoadInt64(&saved)}, nil
	}
	goOn := make(chan struct{})
	d.onRead = func(off int64) error {
		if off >= 5*piece {
			<-goOn
		}
		return nil
	}
	r.begin(&m)
	s := r.await(m.Cut, func(s api.JobStatus) bool { return len(s.Disks) > 0 && s.Disks[0].Saved != nil || s.Ended != 0 })
	if s.State != api.JobCopying || *s.Disks[0].Saved != 3*piece {
		t.Errorf("%+v", s)
	}
	atomic.StoreInt64(&saved, 1000*piece) // an owner's chunks are whole, the last one too
	close(goOn)
	s = r.await(m.Cut, state(api.JobDone))
	if *s.Disks[0].Saved != s.Disks[0].Size || s.Disks[1].Saved != nil {
		t.Errorf("%+v", s.Disks)
	}
}

// Two that clean up at once, as where a job begins while it is cancelled, take no snapshot for two.
func TestRemovedTwice(t *testing.T) {
	t.Parallel()
	m := api.Manifest{Disks: []api.ManifestDisk{{Snapshot: "a"}, {Snapshot: "b"}}}
	r := record{State: api.JobCancelled, Manifest: &m, Removed: []string{"a", "a"}}
	if r.settled() {
		t.Error("nobody removes b")
	}
	if r.Removed = append(r.Removed, "b"); !r.settled() {
		t.Error("something is still to be removed")
	}
}
