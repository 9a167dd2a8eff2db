package serve

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/internal/store"
)

// snapshotStore makes the file of a snapshot store for a volume.
func snapshotStore(t *testing.T, c Config, volume *cowfmt.Header, cut uuid.UUID) (path string, h *cowfmt.Header) {
	t.Helper()
	h, err := store.NewSnapshotHeader(store.SnapshotParams{Volume: volume, VolumeAddress: c.Store, Cut: cut, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(filepath.Dir(c.Store), h.UUID.String())
	err = os.WriteFile(path, nil, 0o600)
	if err == nil {
		err = os.Truncate(path, h.DataEnd())
	}
	if err != nil {
		t.Fatal(err)
	}
	dev, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.CreateSnapshot(dev, h), dev.Close()); err != nil {
		t.Fatal(err)
	}
	return path, h
}

// A snapshot's life over the control API: added, cut, kept; the cursor; over a restart of the engine, its store moved
// meanwhile; removed.
func TestSnapshotLife(t *testing.T) {
	c, volume := config(t)
	stop := start(t, c)
	e := api.NewEngine(api.ControlPath(c.Socket))
	cut := uuid.New()
	path, h := snapshotStore(t, c, volume, cut)
	write := func(off int64, b byte) {
		t.Helper()
		dev, err := nbd.Dial(t.Context(), "nbd+unix:///?socket="+c.Socket, nbd.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		p := make([]byte, 4096)
		p[0] = b
		if _, err := dev.WriteAt(p, off); err != nil {
			t.Error(err)
		}
	}
	is := func(what string, s *api.EngineStatus, err error, state string, saved, cursor int64) {
		t.Helper()
		if err != nil || len(s.Stack) != 1 {
			t.Fatalf("%s: %v, %+v", what, err, s)
		}
		if got := s.Stack[0]; got.UUID != h.UUID.String() || got.Cut != cut.String() || got.State != state || got.Saved != saved || got.Cursor != cursor {
			t.Fatalf("%s: %+v", what, got)
		}
	}
	write(0, 1)
	write(8192, 1)
	s, err := e.AddSnapshot(t.Context(), api.SnapshotAddRequest{UUID: h.UUID.String(), Store: path, Cut: cut.String(), TimeoutMillis: 60_000})
	is("add", s, err, api.SnapshotPending, 0, 0)
	if _, err := blockdev.OpenFile(t.Context(), path, blockdev.FileOptions{}); err != nil { // to be read
		t.Error(err)
	}
	s, err = e.Cut(t.Context(), api.CutRequest{Cut: cut.String(), DeadlineMillis: 60_000})
	if is("cut", s, err, api.SnapshotPending, 0, 0); !s.Suspended {
		t.Error("not suspended")
	}
	s, err = e.EndCut(t.Context(), api.CutEndRequest{Cut: cut.String(), Keep: true})
	if is("keep", s, err, api.SnapshotActive, 0, 0); s.Suspended || s.Target != "origin" || s.Stack[0].HeldMicros <= 0 {
		t.Errorf("%+v", s)
	}
	write(0, 2)
	s, err = e.SnapshotCursor(t.Context(), api.SnapshotCursorRequest{UUID: h.UUID.String(), Cursor: 4096})
	is("cursor", s, err, api.SnapshotActive, 1, 4096)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	moved := path + ".moved"
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	c.Snapshots = map[string]string{h.UUID.String(): moved}
	stop = start(t, c)
	write(8192, 2)
	s, err = e.Status(t.Context())
	is("opened again", s, err, api.SnapshotActive, 2, 4096)
	s, err = e.RemoveSnapshot(t.Context(), api.SnapshotRequest{UUID: h.UUID.String()})
	if err != nil || len(s.Stack) != 0 || s.Target != "clone" {
		t.Errorf("%v, %+v", err, s)
	}
	if f, err := blockdev.OpenFile(t.Context(), moved, blockdev.FileOptions{Lock: blockdev.LockExclusive}); err != nil {
		t.Errorf("removed, and held still: %v", err)
	} else {
		f.Close()
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// An engine that finds an active snapshot gone breaks it before it serves; the header says so.
func TestSnapshotGone(t *testing.T) {
	c, volume := config(t)
	stop := start(t, c)
	e := api.NewEngine(api.ControlPath(c.Socket))
	cut := uuid.New()
	path, h := snapshotStore(t, c, volume, cut)
	_, err := e.AddSnapshot(t.Context(), api.SnapshotAddRequest{UUID: h.UUID.String(), Store: path, Cut: cut.String()})
	if err == nil {
		_, err = e.Cut(t.Context(), api.CutRequest{Cut: cut.String(), DeadlineMillis: 60_000})
	}
	if err == nil {
		_, err = e.EndCut(t.Context(), api.CutEndRequest{Cut: cut.String(), Keep: true})
	}
	if err := errors.Join(err, stop(), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	defer start(t, c)()
	s, err := e.Status(t.Context())
	if err != nil || len(s.Stack) != 1 || s.Stack[0].State != api.SnapshotBroken || s.Stack[0].Error == "" || s.Target != "clone" {
		t.Errorf("%v, %+v", err, s)
	}
}

func TestSnapshotRequests(t *testing.T) {
	c, volume := config(t)
	defer start(t, c)()
	socket := api.ControlPath(c.Socket)
	id, other := uuid.NewString(), uuid.New()
	path, h := snapshotStore(t, c, volume, other)
	for _, r := range []struct {
		path, body string
		code       int
	}{
		{"/v1/snapshot/add", `{"uuid":"x","store":"/s","cut":"` + id + `"}`, 400},
		{"/v1/snapshot/add", `{"uuid":"` + id + `","store":"/s"}`, 400},
		{"/v1/snapshot/add", `{"uuid":"` + id + `","store":"s","cut":"` + id + `"}`, 400},
		{"/v1/snapshot/add", `{"uuid":"` + id + `","store":"/s","cut":"` + id + `","onError":"ignore"}`, 400},
		{"/v1/snapshot/add", `{"uuid":"` + id + `","store":"/s","cut":"` + id + `","timeoutMillis":-1}`, 400},
		{"/v1/snapshot/add", `{"uuid":"` + id + `","store":"/nowhere/s","cut":"` + id + `"}`, 409},
		{"/v1/snapshot/add", `{"uuid":"` + id + `","store":"` + path + `","cut":"` + id + `"}`, 409},                      // another's
		{"/v1/snapshot/add", `{"uuid":"` + h.UUID.String() + `","store":"` + path + `","cut":"` + id + `"}`, 409},         // another cut's
		{"/v1/snapshot/add", `{"uuid":"` + volume.UUID.String() + `","store":"` + c.Store + `","cut":"` + id + `"}`, 409}, // the volume itself
		{"/v1/snapshot/remove", `{"uuid":"x"}`, 400},
		{"/v1/snapshot/remove", `{"uuid":"` + id + `"}`, 200},
		{"/v1/snapshot/cursor", `{"uuid":"` + id + `","cursor":-1}`, 400},
		{"/v1/snapshot/cursor", `{"uuid":"` + id + `","cursor":1}`, 409},
		{"/v1/cut", `{"cut":"` + id + `","deadlineMillis":0}`, 400},
		{"/v1/cut", `{"cut":"` + id + `","deadlineMillis":1000}`, 409},
		{"/v1/cut/end", `{"cut":"` + id + `","keep":true}`, 409},
		{"/v1/cut/end", `{"cut":"` + id + `"}`, 200},
	} {
		code, answer := post(t, socket, "POST", r.path, r.body)
		if code != r.code || code != 200 && answer["error"] == "" {
			t.Errorf("%s %s: %d %v, want %d", r.path, r.body, code, answer, r.code)
		}
	}
}

// The end does not wait for a cut's deadline, and takes its snapshot out.
func TestEndDuringACut(t *testing.T) {
	c, volume := config(t)
	stop := start(t, c)
	e := api.NewEngine(api.ControlPath(c.Socket))
	cut := uuid.New()
	path, h := snapshotStore(t, c, volume, cut)
	_, err := e.AddSnapshot(t.Context(), api.SnapshotAddRequest{UUID: h.UUID.String(), Store: path, Cut: cut.String()})
	if err == nil {
		_, err = e.Cut(t.Context(), api.CutRequest{Cut: cut.String(), DeadlineMillis: time.Hour.Milliseconds()})
	}
	if err := errors.Join(err, stop()); err != nil {
		t.Fatal(err)
	}
	dev, err := blockdev.OpenFile(t.Context(), c.Store, blockdev.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	st, err := store.Open(dev)
	if err != nil || len(st.Header().Stack) != 0 || st.Header().Owner != nil {
		t.Errorf("%v, %+v", err, st.Header())
	}
	if err := Run(t.Context(), Config{Snapshots: map[string]string{"x": "/s"}}, zerolog.Nop(), nil); err == nil {
		t.Error("a path for no UUID")
	}
}
