package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/archive"
)

// The archive is looked at again and again: that it is away is known, and that it is back, and its maintenance is done, but not by
// a host that does not own it.
func TestUpkeep(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	var opens, maintains atomic.Pointer[error]
	r.shelf.fails(func(op string) error {
		var p *error
		switch op {
		case "open":
			p = opens.Load()
		case "maintain":
			p = maintains.Load()
		}
		if p != nil {
			return *p
		}
		return nil
	})
	r.config.Upkeep = time.Millisecond
	r.start()
	is := func(what string, is func(a api.ArchiveStatus) bool) {
		t.Helper()
		for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
			s, err := r.node.Status(t.Context(), struct{}{})
			if err == nil && is(s.Archive) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %+v %v", what, s.Archive, err)
			}
		}
	}
	is("well", func(a api.ArchiveStatus) bool { return a.Up && a.Seen > 0 && a.Maintained > 0 && a.Error == "" })
	opens.Store(&errAway)
	is("away", func(a api.ArchiveStatus) bool { return !a.Up && strings.Contains(a.Error, "away") && a.Seen > 0 })
	opens.Store(nil)
	is("back", func(a api.ArchiveStatus) bool { return a.Up && a.Error == "" })
	bad := errors.New("a bad index")
	maintains.Store(&bad)
	is("not maintained", func(a api.ArchiveStatus) bool { return a.Up && a.MaintenanceError == "a bad index" })
	other := fmt.Errorf("%w: virt-cow@other", ErrNotOurs)
	maintains.Store(&other)
	is("another host's", func(a api.ArchiveStatus) bool { return a.NotOurs && a.MaintenanceError == "" })
}

// The real archive: its owner maintains it when it is due, another host does not.
func TestWholeUpkeep(t *testing.T) {
	t.Parallel()
	w := newWhole(t)
	for host, want := range map[string]error{"node": nil, "other": ErrNotOurs} {
		c := w.archive
		c.Host = host
		a := must(OpenArchive(c)(t.Context(), nil))(t)
		for _, due := range []bool{host == "node", false} {
			if done, err := a.Maintain(t.Context()); !errors.Is(err, want) || (done != "") != due {
				t.Errorf("%s: %q %v", host, done, err)
			}
		}
		if err := a.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// What never gets better fails a job at once; what an operator can mend is waited for, and gone on with.
func TestArchiveErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err   error
		waits bool
	}{
		{archive.ErrPassphrase, false},
		{archive.ErrDamaged, false},
		{fmt.Errorf("%w: reading q: %w", archive.ErrDamaged, syscall.EIO), true}, // as where its disk is away for a while
		{archive.ErrNotFound, false},
		{archive.ErrCheckpoint, false},
		{archive.ErrNoSpace, true},
		{archive.ErrUnreachable, true},
		{archive.ErrNoRepository, true}, // as where its folder is not mounted yet
	} {
		t.Run(c.err.Error(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.stop()
			r.config.Retry = time.Minute // nothing goes on in this test
			var resumed atomic.Int64
			r.shelf.fails(func(op string) error {
				if op == "begin" {
					resumed.Add(1)
					return judgeArchive(fmt.Errorf("archive /a: %w", c.err))
				}
				return nil
			})
			r.start()
			m := r.manifest(r.reserve(), 3)
			r.begin(&m)
			s := r.await(m.Cut, func(s api.JobStatus) bool { return s.Waits != "" || s.Ended != 0 })
			if c.waits != (s.Ended == 0) || !strings.Contains(s.Waits+s.Error, c.err.Error()) || resumed.Load() != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Of each domain the last success is remembered, however many jobs come after it.
func TestLastSuccess(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	old := record{Version: recordVersion, Job: uuid.NewString(), State: api.JobDone, Backup: "b", Reserved: 100, Ended: 200,
		Reserve: api.ReserveRequest{Domain: "web", UUID: domain, Host: "hv1", Address: "hv1"}}
	if err := r.node.journal.save(&old); err != nil {
		t.Fatal(err)
	}
	for i := range keep + 5 {
		f := old
		f.Job, f.State, f.Backup, f.Reserved, f.Ended = uuid.NewString(), api.JobFailed, "", int64(1000+i), int64(1000+i)
		b, err := json.Marshal(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(r.node.journal.dir, f.Job+recordSuffix), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	r.node.prune()
	s, err := r.node.Status(t.Context(), struct{}{})
	if err != nil || len(s.Backups) != 1 || s.Backups[0].LastSuccess != 200 || s.Backups[0].State != api.JobFailed || s.Jobs[api.JobFailed] != keep || s.Jobs[api.JobDone] != 1 {
		t.Errorf("%+v %v", s, err)
	}
}
