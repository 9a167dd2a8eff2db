package serve

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/local"
	"github.com/virt-cow/virt-cow/internal/nbd"
	"github.com/virt-cow/virt-cow/internal/store"
)

// config is of an empty volume in a folder of its own.
func config(t *testing.T) (Config, *cowfmt.Header) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vcs") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h, err := store.NewHeader(store.Params{Name: "v", Role: cowfmt.RoleClone, Size: 1 << 20, ChunkSize: 4096, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{
		Store: filepath.Join(dir, "v.vcow"), Socket: filepath.Join(dir, "v.sock"), RunDir: filepath.Join(dir, "run"),
		HostUUID: uuid.NewString(), Version: "test", LockWait: time.Minute,
	}
	if err := os.WriteFile(c.Store, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(c.Store, h.DataEnd()); err != nil {
		t.Fatal(err)
	}
	dev, err := blockdev.OpenFile(t.Context(), c.Store, blockdev.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Create(dev, h), dev.Close()); err != nil {
		t.Fatal(err)
	}
	return c, h
}

// start runs an engine until the returned function is called, which returns Run's error.
func start(t *testing.T, c Config) func() error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- Run(ctx, c, zerolog.Nop(), func(*engine.Volume) { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	return func() error { cancel(); return <-ended }
}

func TestRunAndLocks(t *testing.T) {
	c, h := config(t)
	if err := NotServed(c.RunDir, h); err != nil {
		t.Errorf("not served, never was: %v", err)
	}
	stop := start(t, c)
	if err := NotServed(c.RunDir, h); !errors.Is(err, blockdev.ErrLocked) {
		t.Errorf("while it is served: %v", err)
	}
	if err := Run(t.Context(), c, zerolog.Nop(), nil); !errors.Is(err, blockdev.ErrLocked) {
		t.Errorf("a second engine on the sockets: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := NotServed(c.RunDir, h); err != nil {
		t.Errorf("served no longer: %v", err)
	}
	for _, path := range []string{c.Socket, api.ControlPath(c.Socket)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was left: %v", path, err)
		}
	}
}

// The end does not wait for a suspension's deadline, and what it held is carried out.
// TestLeavesNoCacheElsewhere: what an engine leaves that was killed is of no use once another host has the volume: its successor, which
// is refused that, removes it.
func TestLeavesNoCacheElsewhere(t *testing.T) {
	c, h := config(t)
	left := api.CachePath(c.RunDir, h.UUID.String())
	kill := func(c Config) *cowfmt.Header {
		o, err := open(t.Context(), c, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		h := o.volume.Header()
		if err := errors.Join(o.volume.Abandon(), o.close()); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Fatal(err)
		}
		return h
	}
	h = kill(c)
	if _, err := os.Stat(left); err != nil {
		t.Fatal(err)
	}
	other := c
	other.HostUUID, other.RunDir = uuid.NewString(), t.TempDir()
	other.Dead = &api.DeadOwner{Host: h.Owner.Host.String(), Instance: h.Owner.Instance.String(), Epoch: h.Epoch}
	kill(other)
	if _, err := open(t.Context(), c, zerolog.Nop()); !errors.Is(err, store.ErrOwned) {
		t.Errorf("%v: want ErrOwned", err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its exception cache: %v", err)
	}
}

// What ends before it serves, while another host has the volume open, leaves it to the next engine.
func TestFailsWhileGranted(t *testing.T) {
	defer func(was time.Duration) { handoverWait = was }(handoverWait)
	handoverWait = time.Millisecond
	c, h := config(t)
	o, err := open(t.Context(), c, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if !o.file.Direct() {
		_ = o.close()
		t.Skip("SKIPPED: no O_DIRECT in ", os.TempDir())
	}
	g := cowfmt.Grant{ID: uuid.New(), Host: uuid.New(), Boot: uuid.New(), HostName: "hv2", Since: time.Now().Unix()}
	if err := o.volume.Grant(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	bad := c
	bad.Group = "no such group"
	ended := make(chan error, 1)
	go func() { ended <- o.serve(t.Context(), bad, zerolog.Nop(), nil) }()
	select {
	case err = <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	if err == nil || !strings.Contains(err.Error(), bad.Group) {
		t.Error(err)
	}
	if o, err = open(t.Context(), c, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	if got := o.volume.Header().Grants; len(got) != 1 || got[0].ID != g.ID || o.volume.Header().UUID != h.UUID {
		t.Errorf("%+v", got)
	}
	if err := errors.Join(o.volume.Abandon(), o.close()); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func TestEndDuringASuspension(t *testing.T) {
	c, _ := config(t)
	stop := start(t, c)
	dev, err := nbd.Dial(t.Context(), "nbd+unix:///?socket="+c.Socket, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	e := api.NewEngine(api.ControlPath(c.Socket))
	if _, err := e.Suspend(t.Context(), api.SuspendRequest{DeadlineMillis: time.Hour.Milliseconds()}); err != nil {
		t.Fatal(err)
	}
	before, err := e.Status(t.Context())
	if err != nil || !before.Suspended {
		t.Fatalf("%+v, %v", before, err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := dev.WriteAt(make([]byte, 512), 0)
		wrote <- err
	}()
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the engine waits for the suspension")
	}
	<-wrote
}

// Whoever asks to stop is answered before the process ends.
func TestStopIsAnswered(t *testing.T) {
	for range 20 {
		c, _ := config(t)
		stop := start(t, c)
		if err := api.NewEngine(api.ControlPath(c.Socket)).Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestListen(t *testing.T) {
	c, _ := config(t)
	dir := filepath.Dir(c.Socket)
	path := filepath.Join(dir, "s")
	l, err := listen(path, nbdMode, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path, nbdMode, -1); !errors.Is(err, blockdev.ErrLocked) {
		t.Errorf("beside a live one: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed process leaves it
	l.Close()
	if old, err := stale(path); !old || err != nil {
		t.Errorf("stale: %v, %v", old, err)
	}
	if l, err = listen(path, nbdMode, -1); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if old, err := stale(path); old || err != nil {
		t.Errorf("gone: %v, %v", old, err)
	}
	long := filepath.Join(dir, strings.Repeat("x", local.MaxPath-len(dir)-1))
	if err := checkSocket(long); err != nil {
		t.Error(err)
	}
	if l, err = listen(long, nbdMode, -1); err != nil {
		t.Fatal(err) // the limit is the kernel's
	}
	l.Close()
	if err := checkSocket(long + "x"); err == nil {
		t.Error("a path longer than the kernel takes was let through")
	}
}

func TestHost(t *testing.T) {
	id := uuid.New()
	o, err := Host(id.String())
	if err != nil || o.Host != id || o.Boot == uuid.Nil || o.HostName == "" || o.Instance != uuid.Nil {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := Host("not a uuid"); err == nil {
		t.Error("anything is a host UUID")
	}
	dir := t.TempDir()
	empty, good := filepath.Join(dir, "empty"), filepath.Join(dir, "good")
	nil0 := filepath.Join(dir, "nil")
	for path, text := range map[string]string{empty: "\n", nil0: uuid.Nil.String(), good: strings.ReplaceAll(id.String(), "-", "") + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := firstUUID(filepath.Join(dir, "none"), empty, nil0, good); err != nil || got != id {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{empty, nil0, filepath.Join(dir, "none")} {
		if _, err := firstUUID(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("a UUID out of %s: %v", bad, err)
		}
	}
}

func TestControlPath(t *testing.T) {
	for socket, want := range map[string]string{"/r/v.sock": "/r/v.ctl", "/r/v": "/r/v.ctl"} {
		if got := api.ControlPath(socket); got != want {
			t.Errorf("%s: %s, want %s", socket, got, want)
		}
	}
}
