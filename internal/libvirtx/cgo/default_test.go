//go:build libvirt_cgo

package cgo_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/libvirtx/cgo"
)

// TestDefault goes as far as libvirt's own test driver does, in this process: domains, metadata, lifecycle events,
// storage pools. It plugs in no NBD disk, has no I/O errors and no connection that could be lost: for those there is
// the suite.
func TestDefault(t *testing.T) {
	ctx := t.Context()
	c, err := cgo.Dial(ctx, "test:///default")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v, err := c.Version(ctx); err != nil || v < 1000000 {
		t.Fatal(v, err)
	}
	d, err := c.Lookup(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	if list, err := c.Domains(ctx); err != nil || len(list) != 1 || list[0] != d {
		t.Fatal(list, err)
	}
	if byID, err := c.Lookup(ctx, d.UUID.String()); err != nil || byID != d {
		t.Fatal(byID, err)
	}
	if _, err := c.XML(ctx, libvirtx.Domain{Name: "nobody", UUID: uuid.New()}); !errors.Is(err, libvirtx.ErrNoDomain) {
		t.Fatal(err)
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
	t.Run("metadata", func(t *testing.T) { testMetadata(t, c, d) })
	t.Run("life", func(t *testing.T) { testLife(t, c, d) })
	t.Run("pools", func(t *testing.T) { testPools(t, c) })
}

func testMetadata(t *testing.T, c libvirtx.Conn, d libvirtx.Domain) {
	ctx := t.Context()
	if x, err := c.Metadata(ctx, d); x != "" || err != nil {
		t.Fatal(x, err)
	}
	if err := c.SetMetadata(ctx, d, `<disks><disk volume="v" store="/s" target="vdb"/></disks>`); err != nil {
		t.Fatal(err)
	}
	x, err := c.Metadata(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	if w, err := libvirtx.ParseWants(x); err != nil || len(w) != 1 || w[0].Volume != "v" {
		t.Fatal(x, err)
	}
	if err := c.SetMetadata(ctx, d, ""); err != nil {
		t.Fatal(err)
	}
	if x, err := c.Metadata(ctx, d); x != "" || err != nil {
		t.Fatal(x, err)
	}
}

// testLife has somebody else pause, end and start the domain.
func testLife(t *testing.T, c libvirtx.Conn, d libvirtx.Domain) {
	ctx := t.Context()
	other, err := libvirt.NewConnect("test:///default")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	dom, err := other.LookupDomainByName("test")
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Free()
	for _, step := range []struct {
		do   func() error
		what libvirtx.What
		then libvirtx.State
	}{
		{dom.Suspend, libvirtx.Suspended, libvirtx.State{Active: true, Paused: true}},
		{func() error { return c.Resume(ctx, d) }, libvirtx.Resumed, libvirtx.State{Active: true}},
		{dom.Destroy, libvirtx.Stopped, libvirtx.State{}},
		{dom.Create, libvirtx.Started, libvirtx.State{Active: true}},
	} {
		if err := step.do(); err != nil {
			t.Fatal(step.what, err)
		}
		for over := time.After(time.Minute); ; {
			select {
			case e := <-c.Events():
				if l, ok := e.(libvirtx.Lifecycle); !ok || l.Domain != d || l.What != step.what {
					continue
				}
			case <-over:
				t.Fatal("no event:", step.what)
			}
			break
		}
		if s, err := c.State(ctx, d); err != nil || s != step.then {
			t.Fatal(step.what, s, err)
		}
	}
}

func testPools(t *testing.T, c libvirtx.Conn) {
	ctx := t.Context()
	path, err := c.CreateVolume(ctx, "default-pool", "v", 1<<20)
	if err != nil || path != "/default-pool/v" {
		t.Fatal(path, err)
	}
	if _, err := c.CreateVolume(ctx, "default-pool", "v", 1<<20); !errors.Is(err, libvirtx.ErrExists) {
		t.Fatal(err)
	}
	if p, size, err := c.FindVolume(ctx, "default-pool", "v"); err != nil || p != path || size != 1<<20 {
		t.Fatal(p, size, err)
	}
	if err := c.DeleteVolume(ctx, "default-pool", "v"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.FindVolume(ctx, "default-pool", "v"); !errors.Is(err, libvirtx.ErrNoVolume) {
		t.Fatal(err)
	}
	if _, _, err := c.FindVolume(ctx, "none", "v"); !errors.Is(err, libvirtx.ErrNoPool) {
		t.Fatal(err)
	}
}

func TestDialSaysWhatIsWrong(t *testing.T) {
	for _, address := range []string{"/nonexistent/libvirt-sock", "nothing:///system"} {
		if _, err := cgo.Dial(t.Context(), address); err == nil || !strings.Contains(err.Error(), address) || strings.Contains(err.Error(), "virError") {
			t.Error(address, err)
		}
	}
}
