package libvirtxtest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// defineUndefine: a definition is stored, replaced and removed, and what the guest has elsewhere is left.
func (r *rig) defineUndefine(t *testing.T) {
	ctx, c := t.Context(), r.conn(t)
	nvram := filepath.Join(r.h.Dir, "made_VARS.fd")
	if err := os.WriteFile(nvram, []byte("nvram"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := uuid.New()
	text := func(name string, id uuid.UUID, title string) string {
		return `<domain type='qemu'><name>` + name + `</name><uuid>` + id.String() + `</uuid><title>` + title + `</title><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>` + nvram + `</loader><nvram>` + nvram + `</nvram></os><features><acpi/></features>
<devices><graphics type='vnc' passwd='secret'/><video><model type='none'/></video></devices></domain>`
	}
	d, err := c.Define(ctx, text("made", id, "first"))
	if err != nil || d != (libvirtx.Domain{Name: "made", UUID: id}) {
		t.Fatal(d, err)
	}
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Defined})
	if s, err := c.State(ctx, d); err != nil || s.Active {
		t.Fatal("it was started:", s, err)
	}
	if _, err := c.Define(ctx, text("made", id, "second")); err != nil {
		t.Fatal(err)
	}
	if x, err := c.InactiveXML(ctx, d); err != nil || !strings.Contains(x, "<title>second</title>") || strings.Contains(x, "secret") {
		t.Fatal("not replaced, or with a secret:", err, x)
	}
	if x, err := c.SecretXML(ctx, d); err != nil || !strings.Contains(x, "<title>second</title>") || !strings.Contains(x, "passwd='secret'") {
		t.Fatal("without its secret:", err, x)
	}
	for _, other := range []string{text("made", uuid.New(), ""), text("other", id, "")} {
		if _, err := c.Define(ctx, other); !errors.Is(err, libvirtx.ErrDomainExists) || !strings.Contains(err.Error(), "made") {
			t.Error(err)
		}
	}
	if _, err := c.Define(ctx, "<domain/>"); err == nil {
		t.Error("defined nothing")
	}
	if err := c.Undefine(ctx, d); err != nil {
		t.Fatal(err)
	}
	r.sees(t, libvirtx.Lifecycle{Domain: d, What: libvirtx.Undefined})
	if _, err := os.Stat(nvram); err != nil {
		t.Error("its NVRAM went with it:", err)
	}
}
