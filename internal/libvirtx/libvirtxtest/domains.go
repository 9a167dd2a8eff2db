package libvirtxtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/test/lab"
)

// domains: what may be asked of one that is off.
func (r *rig) domains(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	g, d := r.define(t, lab.GuestConfig{Name: "off"})
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Defined})
	if byID, err := c.Lookup(ctx, d.UUID.String()); err != nil || byID != d {
		t.Fatal(byID, d, err)
	}
	if list, err := c.Domains(ctx); err != nil || len(list) != 1 || list[0] != d {
		t.Fatal(list, err)
	}
	if v, err := c.Version(ctx); err != nil || v < 7000000 || v > 100000000 {
		t.Fatal(v, err)
	}
	if s, err := c.State(ctx, d); err != nil || s != (libvirtx.State{}) {
		t.Fatal(s, err)
	}
	for _, f := range []func() (string, error){
		func() (string, error) { return c.XML(ctx, d) }, func() (string, error) { return c.InactiveXML(ctx, d) },
	} {
		x, err := f()
		if err != nil {
			t.Fatal(err)
		}
		if named, volumes, err := libvirtx.Named([]byte(x), "/run/virt-cow"); err != nil || named != d || volumes != nil {
			t.Fatal(named, volumes, err)
		}
	}
	if leaving, _ := c.Leaving(ctx, d); leaving { // that it is off may be an error
		t.Error("a domain that is off is leaving")
	}
	if err := c.Resume(ctx, d); err == nil || errors.Is(err, libvirtx.ErrGone) || !strings.Contains(err.Error(), "off") {
		t.Fatal(err)
	}
	r.unknown(t, c)
	r.virsh(t, "domrename", "off", "other")
	renamed := libvirtx.Domain{Name: "other", UUID: d.UUID}
	const detailRenamed = 1 // of undefined; of defined it is 2
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Undefined, Detail: detailRenamed},
		libvirtx.Lifecycle{Domain: renamed, What: libvirtx.Defined, Detail: detailRenamed + 1})
	if s, err := c.State(ctx, d); err != nil || s != (libvirtx.State{}) {
		t.Fatal("the UUID still finds it by its old name:", s, err)
	}
	r.virsh(t, "undefine", "other")
	r.sees(t, libvirtx.Lifecycle{Domain: renamed, What: libvirtx.Undefined})
	if _, err := c.XML(ctx, d); !errors.Is(err, libvirtx.ErrNoDomain) || !strings.Contains(err.Error(), g.Name) {
		t.Fatal(err)
	}
}

// unknown: every call on a domain that does not exist says so, and names it.
func (r *rig) unknown(t *testing.T, c libvirtx.Conn) {
	ctx := t.Context()
	nobody := libvirtx.Domain{Name: "nobody", UUID: uuid.New()}
	for name, f := range map[string]func() error{
		"lookup name": func() error { _, err := c.Lookup(ctx, nobody.Name); return err },
		"lookup UUID": func() error {
			_, err := c.Lookup(ctx, nobody.UUID.String())
			if err != nil && !strings.Contains(err.Error(), nobody.UUID.String()) {
				t.Error(err)
			}
			return errors.Join(err, errors.New(nobody.Name))
		},
		"state":        func() error { _, err := c.State(ctx, nobody); return err },
		"XML":          func() error { _, err := c.XML(ctx, nobody); return err },
		"inactive XML": func() error { _, err := c.InactiveXML(ctx, nobody); return err },
		"secret XML":   func() error { _, err := c.SecretXML(ctx, nobody); return err },
		"leaving":      func() error { _, err := c.Leaving(ctx, nobody); return err },
		"saved":        func() error { _, err := c.Saved(ctx, nobody); return err },
		"metadata":     func() error { _, err := c.Metadata(ctx, nobody); return err },
		"set metadata": func() error { return c.SetMetadata(ctx, nobody, "<disks/>") },
		"attach":       func() error { return c.Attach(ctx, nobody, "<disk/>") },
		"detach":       func() error { return c.Detach(ctx, nobody, "ua-a") },
		"resume":       func() error { return c.Resume(ctx, nobody) },
		"freeze":       func() error { _, err := c.Freeze(ctx, nobody); return err },
		"thaw":         func() error { _, err := c.Thaw(ctx, nobody); return err },
		"frozen":       func() error { _, err := c.Frozen(ctx, nobody); return err },
		"undefine":     func() error { return c.Undefine(ctx, nobody) },
	} {
		if err := f(); !errors.Is(err, libvirtx.ErrNoDomain) || !strings.Contains(err.Error(), nobody.Name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// life: start, pause, go on, save, go on, stop. Nothing need boot for that.
func (r *rig) life(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	g, d := r.define(t, lab.GuestConfig{Name: "life"})
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Started}, libvirtx.Lifecycle{Domain: d, What: libvirtx.Resumed})
	if s, err := c.State(ctx, d); err != nil || s != (libvirtx.State{Active: true}) {
		t.Fatal(s, err)
	}
	r.virsh(t, "suspend", g.Name)
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Suspended})
	if s, err := c.State(ctx, d); err != nil || s != (libvirtx.State{Active: true, Paused: true}) {
		t.Fatal(s, err)
	}
	r.rec.forget()
	if err := c.Resume(ctx, d); err != nil {
		t.Fatal(err)
	}
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Resumed})
	if s, err := c.State(ctx, d); err != nil || s != (libvirtx.State{Active: true}) {
		t.Fatal(s, err)
	}
	saved := func(want bool) {
		t.Helper()
		if saved, err := c.Saved(ctx, d); err != nil || saved != want {
			t.Fatal(saved, err)
		}
	}
	saved(false)
	r.virsh(t, "managedsave", g.Name)
	saved(true)
	if s, err := c.State(ctx, d); err != nil || s.Active {
		t.Fatal(s, err)
	}
	r.virsh(t, "start", g.Name)
	saved(false)
	file := filepath.Join(t.TempDir(), "memory")
	r.virsh(t, "save", g.Name, file)
	saved(true)
	r.virsh(t, "restore", file)
	saved(false)
	const destroyed = 1
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Stopped, Detail: destroyed})
	r.virsh(t, "undefine", g.Name)
}

// transient: a domain with nothing stored has its metadata live only, and is gone when it ends.
func (r *rig) transient(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	g, d := r.define(t, lab.GuestConfig{Name: "transient"})
	x, err := c.InactiveXML(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	r.virsh(t, "undefine", g.Name)
	file := filepath.Join(r.h.Dir, "transient.xml")
	if err := os.WriteFile(file, []byte(x), 0o600); err != nil {
		t.Fatal(err)
	}
	r.virsh(t, "create", file)
	r.rec.forget()
	r.setAndGet(t, c, d)
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Stopped, Detail: 1})
	if _, err := c.Metadata(ctx, d); !errors.Is(err, libvirtx.ErrNoDomain) {
		t.Fatal(err)
	}
}

// metadata: of a domain that is off, that runs, and by two at once.
func (r *rig) metadata(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	g, d := r.define(t, lab.GuestConfig{Name: "meta", Metadata: `<x:foreign xmlns:x="urn:x">stays</x:foreign>`})
	r.rec.forget()
	r.setAndGet(t, c, d)
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	r.rec.forget()
	r.setAndGet(t, c, d)
	r.foreign(t, d)

	mine, err := r.dial(ctx, r.h.LibvirtSocket(), patient)
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	ours := map[string]string{}
	done := make(chan error, 2)
	for name, conn := range map[string]libvirtx.Conn{"a": c, "b": mine} {
		x, err := libvirtx.FormatWants([]libvirtx.Want{{Volume: name, Store: "/" + name, Target: "vdb"}})
		if err != nil {
			t.Fatal(err)
		}
		ours[name] = x
		go func() {
			var errs error
			for range 10 {
				errs = errors.Join(errs, conn.SetMetadata(ctx, d, x))
			}
			done <- errs
		}()
	}
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	x, err := c.Metadata(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	// Whole and one of the two, the same over both connections.
	if w, err := libvirtx.ParseWants(x); err != nil || len(w) != 1 || ours[w[0].Volume] == "" {
		t.Fatal(x, w, err)
	}
	if y, err := mine.Metadata(ctx, d); err != nil || x != y {
		t.Fatal(x, y, err)
	}
	if err := g.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if y, err := c.Metadata(ctx, d); err != nil || y == "" {
		t.Fatal("not stored:", y, err)
	}
	r.virsh(t, "undefine", g.Name)
}

// foreign: an event of somebody else's element says whose it is, and that element is left alone.
func (r *rig) foreign(t *testing.T, d libvirtx.Domain) {
	r.virsh(t, "metadata", d.Name, "urn:y", "--key", "y", "--set", "<y/>", "--live")
	r.sees(t, libvirtx.MetadataChanged{Domain: d, Namespace: "urn:y"})
	if x, err := r.conn(t).XML(t.Context(), d); err != nil || !strings.Contains(x, ">stays<") || !strings.Contains(x, "urn:y") {
		t.Fatal(x, err)
	}
}

// setAndGet sets, reads and removes the element.
func (r *rig) setAndGet(t *testing.T, c libvirtx.Conn, d libvirtx.Domain) {
	t.Helper()
	ctx := t.Context()
	if x, err := c.Metadata(ctx, d); x != "" || err != nil {
		t.Fatal(x, err)
	}
	want := libvirtx.Want{Volume: "v1", Store: "/a b/<&>", Target: "vdb"}
	x, err := libvirtx.FormatWants([]libvirtx.Want{want})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetMetadata(ctx, d, x); err != nil {
		t.Fatal(err)
	}
	r.sees(t, libvirtx.MetadataChanged{Domain: d, Namespace: libvirtx.Namespace})
	if x, err = c.Metadata(ctx, d); err != nil {
		t.Fatal(err)
	}
	if got, err := libvirtx.ParseWants(x); err != nil || len(got) != 1 || got[0] != want {
		t.Fatal(got, err, x)
	}
	if x, err = c.XML(ctx, d); err != nil || !strings.Contains(x, `<virtcow:disks xmlns:virtcow="`+libvirtx.Namespace) {
		t.Fatal(err, x)
	}
	if err := c.SetMetadata(ctx, d, ""); err != nil {
		t.Fatal(err)
	}
	if x, err := c.Metadata(ctx, d); x != "" || err != nil {
		t.Fatal(x, err)
	}
}
