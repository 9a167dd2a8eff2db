package hook

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/rs/zerolog"
)

// TestLinksNoLibvirt: a hook that calls libvirt waits for itself, and one that is linked to it would cost every start.
func TestLinksNoLibvirt(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "/internal/libvirtx\n") {
		t.Fatalf("this test would not see what the hook links:\n%s", out)
	}
	for pkg := range strings.Lines(string(out)) {
		for _, driver := range []string{"github.com/digitalocean/go-libvirt", "libvirt.org/go/libvirt\n", "/internal/libvirtx/"} {
			if strings.Contains(pkg, driver) {
				t.Errorf("the hook links %s", pkg)
			}
		}
	}
}

// What can't be read is refused where it may be ours and could start without its volumes, and only there.
func TestXMLThatCannotBeRead(t *testing.T) {
	const socket = `<disk type='network'><source protocol='nbd'><host transport='unix' socket='/run/vc/a.sock'/></source></disk>`
	ours := `<domain><name>g</name><uuid>4dea22b3-1d52-48f3-a516-782e98ab3fa0</uuid><devices>` + socket
	text := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
	never, closeNever := io.Pipe()
	defer closeNever.Close()
	for _, c := range []struct {
		name string
		xml  func() io.Reader
		veto string // "" for none
	}{
		{"nothing", text(""), ""},
		{"a few bytes", text("\x00\xff<"), ""},
		{"half of a foreign domain", text(`<domain><name>g</na`), ""},
		{"half of a domain of ours", text(ours), "can't be read"},
		{"another document", text("<network>" + socket + "</network>"), "can't be read"},
		{"no name", text("<domain><devices>" + socket + "</devices></domain>"), "can't be read"},
		{"too long", text(ours + strings.Repeat(" ", maxXML)), "more than 8 MiB"},
		{"too long, foreign", text(strings.Repeat(" ", maxXML+1)), ""},
		{"endless, foreign", func() io.Reader { return endless{} }, ""},
		{"lost halfway", func() io.Reader { return io.MultiReader(text(ours)(), iotest.ErrReader(io.ErrUnexpectedEOF)) }, "unexpected EOF"},
		{"never", func() io.Reader { return never }, ""},
	} {
		for _, operation := range []string{"prepare", "restore", "migrate", "started", "reconnect"} {
			conf := Config{RunDir: "/run/vc", Timeout: time.Minute, Log: zerolog.Nop()}
			if c.name == "never" {
				conf.Timeout = 50 * time.Millisecond
			}
			err := Run(t.Context(), conf, Call{"g", operation, "begin"}, c.xml())
			if want := c.veto; want == "" || operation != "prepare" && operation != "migrate" {
				if err != nil {
					t.Errorf("%s, %s: %v", operation, c.name, err)
				}
			} else if !errors.Is(err, ErrVeto) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "domain g") {
				t.Errorf("%s, %s: want a veto with %q, got %v", operation, c.name, want, err)
			}
		}
	}
}

// A domain of ours whose XML has no end is not let through once the time is over.
func TestXMLWithoutEnd(t *testing.T) {
	for _, operation := range []string{"prepare", "migrate"} {
		late := lateContext{t.Context(), make(chan struct{})}
		stop := make(chan struct{})
		defer close(stop)
		then := readFunc(func([]byte) (int, error) {
			close(late.done)
			<-stop
			return 0, io.EOF
		})
		conf := Config{RunDir: "/run/vc", Timeout: time.Hour, Log: zerolog.Nop()}
		err := Run(late, conf, Call{"g", operation, "begin"}, io.MultiReader(strings.NewReader("<domain>/run/vc/a.sock"), then))
		if !errors.Is(err, ErrVeto) || !strings.Contains(err.Error(), "can't be read") {
			t.Errorf("%s: %v", operation, err)
		}
	}
}

// lateContext is over in time once done is closed.
type lateContext struct {
	context.Context
	done chan struct{}
}

func (l lateContext) Done() <-chan struct{} { return l.done }

func (l lateContext) Err() error {
	select {
	case <-l.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '<'
	}
	return len(p), nil
}

func TestInterruptedWhileReading(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, w := io.Pipe()
	defer w.Close()
	conf := Config{RunDir: "/run/vc", Timeout: time.Hour, Log: zerolog.Nop()}
	if err := Run(ctx, conf, Call{"g", "prepare", "begin"}, r); !errors.Is(err, ErrVeto) || !strings.Contains(err.Error(), "interrupted") {
		t.Error(err)
	}
	if err := Run(ctx, conf, Call{"g", "reconnect", "begin"}, r); err != nil {
		t.Error(err)
	}
}

// FuzzRun: whatever is on standard input, a call that cannot be vetoed is not, one that can is in one line only if the run
// folder is named, and nothing panics.
func FuzzRun(f *testing.F) {
	f.Add("prepare begin", `<domain><name>g</name><devices><disk type='network'><source protocol='nbd'><host transport='unix' socket='/none/vc/a.sock'/></source></disk></devices></domain>`)
	f.Add("migrate begin", `<domain><name>g</name><!-- /none/vc/ nbd --><devices><disk/></devices>`)
	f.Add("reconnect begin", "<domain>\n/none/vc/\xff")
	f.Fuzz(func(t *testing.T, call, xml string) {
		operation, phase, _ := strings.Cut(call, " ")
		conf := Config{RunDir: "/none/vc", Timeout: time.Millisecond, Log: zerolog.Nop()}
		err := Run(t.Context(), conf, Call{"g\n", operation, phase}, strings.NewReader(xml))
		switch {
		case err == nil:
		case !errors.Is(err, ErrVeto) || strings.ContainsAny(err.Error(), "\n\r\x00") || len(err.Error()) > maxLine+4:
			t.Errorf("not one line: %q", err)
		case !strings.Contains(xml, "vc") && !strings.Contains(xml, "&#"):
			t.Errorf("a foreign domain was refused: %v", err)
		case call != "prepare begin" && call != "migrate begin":
			t.Errorf("%q was refused: %v", call, err)
		}
	})
}
