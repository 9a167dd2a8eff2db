// Package hook is virt-cow's part in libvirt's qemu hook: argv and the domain's XML on standard input become at most
// one call of the daemon's control API. docs/HOOKS.md has the table of what comes out.
//
// While a hook runs libvirtd holds the domain's lock: nothing here talks to libvirt, and this package links none of its
// drivers. A domain that has none of our volumes is let through without asking anybody.
package hook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// ErrVeto says that libvirt must not go on: the hook is to exit with a code other than 0.
var ErrVeto = errors.New("refused")

// maxXML bounds the domain's XML in bytes. libvirt itself takes no more than 4 MiB.
const maxXML = 8 << 20

// noticeTimeout bounds a call nobody waits for.
const noticeTimeout = time.Second

// Call is what libvirt calls the hook with.
type Call struct {
	Domain    string // name
	Operation string // prepare, start, started, stopped, release, migrate, restore, reconnect, attach, …
	Phase     string // begin, end
}

// Config says where the daemon and the engines are.
type Config struct {
	RunDir  string        // of the daemon, absolute
	Timeout time.Duration // that a starting guest waits for its volumes at most
	Log     zerolog.Logger
}

// Run does what a call asks for. nil lets libvirt go on; an error wraps ErrVeto, is one line, and says what to do. Only
// `prepare begin` and `migrate begin` can be vetoed. `restore begin` must not be: libvirt 11.3 then says that the domain
// was started, leaves it off and deletes its saved state. When ctx ends, a call that waits is vetoed.
func Run(ctx context.Context, c Config, call Call, xml io.Reader) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	switch call.Operation + " " + call.Phase {
	case "prepare begin": // also of a restore, after `restore begin`
		dom, disks, _, err := c.named(ctx, call, xml)
		if err != nil || len(disks) == 0 {
			return err
		}
		return c.prepare(ctx, call, dom, names(disks))
	case "migrate begin":
		dom, disks, text, err := c.named(ctx, call, xml)
		if err != nil || len(disks) == 0 {
			return err
		}
		return c.migrate(ctx, dom, disks, text)
	case "started begin", "stopped end", "release end", "reconnect begin":
		if dom, disks, _, err := c.named(ctx, call, xml); err == nil && len(disks) > 0 {
			c.notice(ctx, call, dom)
		}
	}
	return nil
}

// named reads the XML and finds the disks in it that are volumes. XML that can't be read names none unless the run folder is in it:
// then it is refused.
func (c Config) named(ctx context.Context, call Call, r io.Reader) (dom libvirtx.Domain, disks []libvirtx.NamedDisk, xml []byte, err error) {
	xml, err = read(ctx, r)
	if errors.Is(err, context.Canceled) {
		return dom, nil, nil, veto("domain %s: interrupted", call.Domain)
	}
	if err == nil {
		if dom, disks, err = libvirtx.Named(xml, c.RunDir); err == nil {
			return dom, disks, xml, nil
		}
	}
	if !bytes.Contains(xml, []byte(filepath.Clean(c.RunDir)+"/")) {
		return dom, nil, nil, nil
	}
	return dom, nil, nil, veto("domain %s: which volumes of %s it names can't be read: %w", call.Domain, c.RunDir, err)
}

// read reads at most maxXML bytes, and no longer than ctx. What was read is returned with an error too.
func read(ctx context.Context, r io.Reader) ([]byte, error) {
	got := &soFar{}
	all := make(chan error, 1)
	go func() {
		n, err := io.Copy(got, io.LimitReader(r, maxXML+1))
		if err == nil && n > maxXML {
			err = fmt.Errorf("XML of more than %d MiB", maxXML>>20)
		}
		all <- err
	}()
	select {
	case err := <-all:
		return got.bytes(), err
	case <-ctx.Done():
		return got.bytes(), fmt.Errorf("standard input: %w", ctx.Err())
	}
}

// soFar is what was written to it.
type soFar struct {
	mu  sync.Mutex
	xml []byte
}

func (s *soFar) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.xml = append(s.xml, p...)
	return len(p), nil
}

func (s *soFar) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.xml)
}

// notice tells the daemon, if it is there. Whatever comes of it, libvirt goes on.
func (c Config) notice(ctx context.Context, call Call, dom libvirtx.Domain) {
	ctx, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	err := api.NewDaemon(c.RunDir).Notice(ctx, api.NoticeRequest{Domain: dom.Name, UUID: dom.UUID.String(), Operation: call.Operation})
	if err != nil {
		c.Log.Debug().Err(err).Str("domain", dom.Name).Str("operation", call.Operation).Msg("the daemon was not told")
	}
}

// maxLine bounds an error in bytes: libvirt passes it on to whoever asked.
const maxLine = 1000

// veto makes an error of one line, whatever its parts have in them.
func veto(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	var parts []string // errors that were joined
	for part := range strings.Lines(err.Error()) {
		if part = strings.Join(strings.FieldsFunc(part, func(r rune) bool { return r < ' ' || r == 0x7f }), " "); part != "" {
			parts = append(parts, part)
		}
	}
	line := strings.Join(parts, "; ")
	if len(line) > maxLine {
		line = strings.ToValidUTF8(line[:maxLine], "") + "…"
	}
	return vetoError{line, err}
}

type vetoError struct {
	line  string
	cause error
}

func (e vetoError) Error() string   { return e.line }
func (e vetoError) Unwrap() []error { return []error{ErrVeto, e.cause} }
