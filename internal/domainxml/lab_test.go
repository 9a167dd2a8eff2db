package domainxml

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/libvirtx/rpc"
	"github.com/virt-cow/virt-cow/test/lab"
)

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// TestLibvirtTakesIt defines a rich domain and then copies of it beside it, with libvirt's own schema, and reads back what
// libvirt made of them.
func TestLibvirtTakesIt(t *testing.T) {
	h := lab.For(t, lab.Config{Log: t.Output()})
	define := func(text string) error {
		file := filepath.Join(h.Dir, "define.xml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := h.Virsh(t.Context(), "define", "--validate", file)
		return err
	}
	if err := define(rich); err != nil {
		t.Fatal(err)
	}
	c, err := rpc.Dial(t.Context(), h.LibvirtSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	secret := func(name string) string {
		d, err := c.Lookup(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := c.SecretXML(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	stored := secret("rich")
	r, err := Restore(stored, richPlan("copy"))
	if err != nil {
		t.Fatal(err)
	}
	if err := define(r.XML); err != nil {
		t.Fatalf("%v\n%s", err, r.XML)
	}
	copied := secret("copy")
	checkCopy(t, copied, r)
	for _, tag := range []string{"<mac address=", "<genid>"} {
		if a, b := line(stored, tag), line(copied, tag); a == "" || b == "" || a == b {
			t.Errorf("%s: was %q, is %q", tag, a, b)
		}
	}
	if r.Domain.UUID == richUUID || strings.Count(copied, "<mac address=") != strings.Count(stored, "<mac address=") {
		t.Error(copied)
	}

	// In the place of the original: only what must be is new.
	if _, err := h.Virsh(t.Context(), "undefine", "--nvram", "rich"); err != nil {
		t.Fatal(err)
	}
	p := richPlan("")
	p.KeepIdentity = true
	if r, err = Restore(stored, p); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Define(t.Context(), r.XML); err != nil {
		t.Fatal(err)
	}
	back := secret("rich")
	for _, tag := range []string{"<mac address=", "<uuid>", "<nvram", "port='5901'", "passwd=", "<cid "} {
		if a, b := line(stored, tag), line(back, tag); a == "" || a != b {
			t.Errorf("%s: was %q, is %q", tag, a, b)
		}
	}
	if line(stored, "<genid>") == line(back, "<genid>") {
		t.Error("the generation is the same")
	}
	if r.Domain != (libvirtx.Domain{Name: "rich", UUID: richUUID}) || r.Domain.UUID == uuid.Nil {
		t.Error(r.Domain)
	}
}

// line is the first line with a text in it.
func line(text, part string) string {
	for l := range strings.Lines(text) {
		if strings.Contains(l, part) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}
