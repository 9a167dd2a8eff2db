package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxStrangers are the clients of ServeTLS that have not shown yet who they are: who has been one for longest goes.
const maxStrangers = 16

// gate is a server's side of TLS. The server itself reads and writes descriptors: so what has passed the gate is handed to it
// through a pair of sockets.
type gate struct {
	server *Server
	config *tls.Config

	mu        sync.Mutex
	strangers []net.Conn
}

// ServeTLS is Serve for a TCP listener. A client must begin TLS (NBD_OPT_STARTTLS) before it is told anything; who may is for the
// configuration to say.
func (s *Server) ServeTLS(ctx context.Context, l net.Listener, config *tls.Config) error {
	g := &gate{server: s, config: config}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && isTransient(err):
			s.Log.Warn().Err(err).Msg("nbd: accept failed, trying again")
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("nbd: accept on %s: %w", l.Addr(), err)
		}
		g.enter(c)
		go g.admit(c)
	}
}

// enter gives a stranger a place.
func (g *gate) enter(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.strangers) == maxStrangers {
		g.strangers[0].Close()
		g.strangers = slices.Delete(g.strangers, 0, 1)
	}
	g.strangers = append(g.strangers, c)
}

func (g *gate) leave(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.strangers, c); i >= 0 {
		g.strangers = slices.Delete(g.strangers, i, i+1)
	}
}

// admit serves one client, as long as it lasts.
func (g *gate) admit(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(g.server.limits().Handshake))
	secure, flags, err := g.handshake(c)
	g.leave(c)
	if err == nil {
		c.SetDeadline(time.Time{})
		err = g.pass(secure, flags)
	}
	if err != nil && !errors.Is(err, errAborted) {
		g.server.Log.Warn().Err(err).Stringer("remote", c.RemoteAddr()).Msg("nbd: client sent away")
	}
}

// handshake goes on until the client has begun TLS, and has shown who it is.
func (g *gate) handshake(c net.Conn) (*tls.Conn, uint32, error) {
	flags, err := greet(c)
	if err != nil {
		return nil, 0, err
	}
	for range maxOptions {
		opt, data, err := readOption(c)
		if err != nil {
			return nil, 0, fmt.Errorf("handshake: %w", err)
		}
		switch {
		case opt == optStartTLS && len(data) == 0:
			if err := writeReply(c, opt, repAck, nil); err != nil {
				return nil, 0, err
			}
			secure := tls.Server(c, g.config)
			if err := secure.Handshake(); err != nil {
				return nil, 0, fmt.Errorf("handshake: TLS: %w", err)
			}
			return secure, flags, nil
		case opt == optStartTLS:
			err = writeReply(c, opt, repErrInvalid, []byte("TLS has no data"))
		case opt == optAbort:
			writeReply(c, opt, repAck, nil) // the client may be gone already
			return nil, 0, errAborted
		case opt == optExportName: // the protocol has no answer
			return nil, 0, errors.New("handshake: it does not begin TLS")
		default:
			err = writeReply(c, opt, repErrTLSReqd, []byte("begin TLS first"))
		}
		if err != nil {
			return nil, 0, fmt.Errorf("handshake: %w", err)
		}
	}
	return nil, 0, fmt.Errorf("handshake: more than %d options", maxOptions)
}

// passBuffer is how much goes through at once, bytes; passTimeout how long a client may take to take it.
const (
	passBuffer  = 256 << 10
	passTimeout = time.Minute
)

// pass hands a client to the server, and carries what they say to each other until one of them ends it.
func (g *gate) pass(client *tls.Conn, flags uint32) error {
	inner, served, err := socketPair()
	if err != nil {
		return err
	}
	defer inner.Close()
	g.server.ServeConn(served)
	// The server's greeting was said already, and answered.
	inner.SetDeadline(time.Now().Add(g.server.limits().Handshake))
	var hello [18]byte
	if _, err := io.ReadFull(inner, hello[:]); err != nil {
		return nil // refused, which the server has told of
	}
	if _, err := inner.Write([]byte{byte(flags >> 24), byte(flags >> 16), byte(flags >> 8), byte(flags)}); err != nil {
		return err
	}
	inner.SetDeadline(time.Time{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(inner, client)
		inner.CloseWrite()
	}()
	carry(timely{client}, inner)
	client.Close()
	inner.Close()
	<-done
	return nil
}

// carry copies until either side ends. Neither side's own way of copying is used: their buffers are small.
func carry(to io.Writer, from io.Reader) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, passBuffer))
}

// timely gives up on a client that takes nothing.
type timely struct{ *tls.Conn }

func (t timely) Write(b []byte) (int, error) {
	t.SetWriteDeadline(time.Now().Add(passTimeout))
	return t.Conn.Write(b)
}

func socketPair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("nbd: %w", err)
	}
	if a, err = unixConn(fds[0]); err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	if b, err = unixConn(fds[1]); err != nil {
		a.Close()
		return nil, nil, err
	}
	return a, b, nil
}

func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "pair")
	defer f.Close() // the connection has a descriptor of its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	return c.(*net.UnixConn), nil
}
