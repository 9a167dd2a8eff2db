package libvirtxtest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// proxy stands between a driver and libvirtd, and can slip packets in to its first connection, the one with the events.
type proxy struct {
	path string
	mu   sync.Mutex
	to   net.Conn // the first client

	asked atomic.Int64 // bytes, by the first client
}

func newProxy(t *testing.T, libvirtd string) *proxy {
	t.Helper()
	p := &proxy{path: filepath.Join(t.TempDir(), "libvirt")}
	l, err := net.Listen("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			asked := new(atomic.Int64)
			if p.to == nil {
				p.to, asked = client, &p.asked
			}
			p.mu.Unlock()
			go p.serve(client, libvirtd, asked)
		}
	}()
	return p
}

func (p *proxy) serve(client net.Conn, libvirtd string, asked *atomic.Int64) {
	defer client.Close()
	server, err := net.Dial("unix", libvirtd)
	if err != nil {
		return
	}
	go func() {
		io.Copy(server, io.TeeReader(client, counter{asked}))
		server.Close()
	}()
	p.pass(client, server)
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// pass passes packets on, whole.
func (p *proxy) pass(client io.Writer, server io.Reader) {
	for {
		var length uint32
		if err := binary.Read(server, binary.BigEndian, &length); err != nil {
			return
		}
		b := binary.BigEndian.AppendUint32(nil, length)
		b = append(b, make([]byte, length-4)...)
		if _, err := io.ReadFull(server, b[4:]); err != nil {
			return
		}
		p.mu.Lock()
		_, err := client.Write(b)
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (p *proxy) send(b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.to.Write(b)
	return err
}

// removalFailed is libvirt's packet of that event.
func removalFailed(callback uint32, d libvirtx.Domain, alias string) []byte {
	const program, procedure, message = 0x20008086, 367, 2
	text := func(b []byte, s string) []byte {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
		return append(b, make([]byte, -len(s)&3)...)
	}
	b := make([]byte, 4)
	for _, v := range []uint32{program, 1, procedure, message, 0, 0, callback} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	b = append(text(b, d.Name), d.UUID[:]...)
	b = text(binary.BigEndian.AppendUint32(b, 1), alias)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// injected: an event no guest here can be made to send, no call beside the events, and a packet that is none.
func (r *rig) injected(t *testing.T) {
	ctx := t.Context()
	p := newProxy(t, r.h.LibvirtSocket())
	c, err := r.dial(ctx, p.path, patient)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	set := p.asked.Load()
	want := libvirtx.DeviceRemovalFailed{Domain: libvirtx.Domain{Name: "someone", UUID: uuid.New()}, Alias: "ua-virt-cow-a"}
	for callback := range uint32(4096) { // libvirtd numbered them: only one is this event's
		if err := p.send(removalFailed(callback, want.Domain, want.Alias)); err != nil {
			t.Fatal(err)
		}
	}
	if got := <-c.Events(); got != want {
		t.Fatalf("%+v", got)
	}
	if _, err := c.Version(ctx); err != nil {
		t.Fatal(err)
	}
	// A client that goes while it has subscriptions and a call under way can crash libvirtd.
	if asked := p.asked.Load(); asked != set {
		t.Fatalf("%d bytes were asked on the connection with the events since it was set up", asked-set)
	}
	if err := p.send([]byte{0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8}); err != nil {
		t.Fatal(err)
	}
	for range c.Events() { // until it is closed
	}
	if _, err := c.Version(ctx); !errors.Is(err, libvirtx.ErrGone) {
		t.Fatal(err)
	}
}
