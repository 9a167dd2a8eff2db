// Package nbd serves a volume over the network block device protocol and reads volumes others serve.
//
// The server's hot path, from a request's bytes to its reply's:
//
//	socket -> receive buffer -> parser (parse.go) -> Backend.Submit
//	  -> Request.Done -> reply queue (reply.go) -> one sendmsg for all replies of a turn
//
// A connection is one goroutine. With io_uring (reactor.go) it is locked to a thread and waits for the
// socket, for the engine's file I/O and for other goroutines with a single system call. Without
// (plain.go) it blocks in reads of the socket. Everything else is the same for both.
//
// Locks: Server.mu before conn.mu; neither is held while the backend or a logger is called, and no
// system call that can block is made under them.
//
// The protocol: doc/proto.md of github.com/NetworkBlockDevice/nbd, fixed newstyle; over TCP with TLS only (tls.go).
package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// Backend is what a server serves: the engine. Submit must not block; see blockdev.Request for its
// contract. Lengths of trims and write-zeroes go to 4 GiB - 512, those of reads and writes to 32 MiB.
// Extents may block.
type Backend interface {
	Submit(r *blockdev.Request)
	Info() blockdev.Info
	Extents(off, length int64) ([]blockdev.Extent, error)
}

// Limits keep one client from taking all there is. A zero field means its default.
type Limits struct {
	Conns     int           // open connections, default 64; more are closed at once
	Requests  int           // a connection's requests in flight or not yet sent, default 128
	Bytes     int64         // and the bytes of their data, default 64 MiB
	Handshake time.Duration // for the whole negotiation, default 10 s
	Socket    int           // bytes of the socket's send and receive buffers, default 2 MiB
}

// ErrClosed is what Serve returns after Shutdown or Close.
var ErrClosed = errors.New("nbd: server closed")

// Server serves one backend under the names Name and "" (the default export). Set the fields before the
// first call.
type Server struct {
	Name           string
	Description    string
	Backend        Backend
	Log            zerolog.Logger
	Accept         func(*net.UnixConn) error // asked before a word is said; an error closes the connection
	PreferredBlock int                       // bytes, told to clients; default 4096
	Limits         Limits
	NoRing         bool // never use io_uring

	mu        sync.Mutex
	closing   bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	ended     sync.WaitGroup // connections
	past      latencies      // of connections that ended
	ringOnce  sync.Once      // says once why there is no io_uring
}

// isTransient says whether accept may succeed later.
func isTransient(err error) bool {
	for _, e := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

func (s *Server) limits() Limits {
	l := s.Limits
	l.Conns = orDefault(l.Conns, 64)
	l.Requests = orDefault(l.Requests, 128)
	l.Bytes = orDefault(l.Bytes, 64<<20)
	l.Handshake = orDefault(l.Handshake, 10*time.Second)
	l.Socket = orDefault(l.Socket, 2<<20)
	return l
}

// Serve accepts connections on a listener of unix sockets until ctx ends, Shutdown or Close, or the
// listener fails. It closes the listener. Connections go on when ctx ends: Shutdown or Close ends them.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		l.Close()
		return ErrClosed
	}
	if s.listeners == nil {
		s.listeners = make(map[net.Listener]struct{})
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer func() {
		stop()
		l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for {
		nc, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			closing := s.closing
			s.mu.Unlock()
			switch {
			case closing:
				return ErrClosed
			case ctx.Err() != nil:
				return ctx.Err()
			case isTransient(err):
				s.Log.Warn().Err(err).Msg("nbd: accept failed, trying again")
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
				continue
			}
			return fmt.Errorf("nbd: accept on %s: %w", l.Addr(), err)
		}
		uc, ok := nc.(*net.UnixConn)
		if !ok {
			nc.Close()
			return fmt.Errorf("nbd: %s is not a unix socket, only those are served", l.Addr())
		}
		s.ServeConn(uc)
	}
}

// ServeConn serves one connection, on a goroutine of its own.
func (s *Server) ServeConn(uc *net.UnixConn) {
	c, err := s.admit(uc)
	if err != nil {
		s.Log.Warn().Err(err).Msg("nbd: connection refused")
		uc.Close()
		return
	}
	go func() {
		defer s.ended.Done()
		c.run()
		s.mu.Lock()
		delete(s.conns, c)
		c.mu.Lock()
		s.past.join(&c.latencies)
		c.mu.Unlock()
		s.mu.Unlock()
	}()
}

func (s *Server) admit(uc *net.UnixConn) (*conn, error) {
	if s.Accept != nil {
		if err := s.Accept(uc); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.limits()
	switch {
	case s.closing:
		return nil, ErrClosed
	case len(s.conns) >= l.Conns:
		return nil, fmt.Errorf("nbd: %d connections are open, the limit", len(s.conns))
	}
	if s.conns == nil {
		s.conns = make(map[*conn]struct{})
	}
	c := newConn(s, uc, l)
	s.conns[c] = struct{}{}
	s.ended.Add(1)
	return c, nil
}

// Conns returns the number of open connections.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Shutdown stops accepting and reading requests, lets those being served finish and their replies go
// out, and closes the connections. When ctx ends first it breaks those left, and returns ctx's error;
// Close then waits for them.
func (s *Server) Shutdown(ctx context.Context) error {
	s.each((*conn).drain)
	done := make(chan struct{})
	go func() {
		s.ended.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.each((*conn).abort)
		return fmt.Errorf("nbd: shutdown: %d connections had requests left: %w", s.Conns(), ctx.Err())
	}
}

// Close breaks all connections and returns when the backend is done with all their requests.
func (s *Server) Close() error {
	s.each((*conn).abort)
	s.ended.Wait()
	return nil
}

// each closes the door and applies f to every connection.
func (s *Server) each(f func(*conn)) {
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		f(c)
	}
}
