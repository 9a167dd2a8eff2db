package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
)

// What others may keep busy. Strangers, who have not shown yet who they are, have a few places of their own: they can't
// take those of hosts, and who has been one for longest goes when there is no place left.
const (
	maxStrangers = 64
	maxHosts     = 256              // connections
	maxHeader    = 16 << 10         // bytes
	maxBody      = 64 << 10         // bytes of a question, unless a Server has more
	patience     = 10 * time.Second // for a handshake, a header, and to take an answer; three times that for a whole question
)

// Server answers other hosts.
type Server struct {
	Identity *Identity
	Hosts    []Host // that may ask
	Handler  http.Handler
	Section  string // of the configuration, that Hosts is from; "" for migration
	MaxBody  int64  // bytes of a question; 0: 64 KiB
	Log      zerolog.Logger

	patience time.Duration // for tests; 0: patience
}

// ListenAndServe serves at an address, as ParseListen has it, until ctx ends. With no address, or no hosts that may ask, it
// says so in the log, opens no port and returns nil at once.
func (s *Server) ListenAndServe(ctx context.Context, listen string) error {
	switch {
	case listen == "":
		s.Log.Info().Msg("other hosts can't ask: listen is empty in [migration] of the configuration")
		return nil
	case len(s.Hosts) == 0:
		s.Log.Info().Msg("other hosts can't ask: for live migration add them in [migration] of the configuration, " +
			`such as hosts = ["*.hv.example.com"]`)
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listen for other hosts: %w: change listen in [migration] of the configuration", err)
	}
	return s.Serve(ctx, l)
}

// Serve serves a listener, and closes it, until ctx ends; then questions that are being answered have a few seconds.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if s.patience == 0 {
		s.patience = patience
	}
	refused := &refusals{log: s.Log}
	h := &http.Server{
		Handler: s.handler(), MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: s.patience, ReadTimeout: 3 * s.patience, IdleTimeout: 3 * s.patience,
		ErrorLog: stdlog.New(s.Log.With().Str("part", "other hosts").Logger(), "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return With(ctx, c.(*known).names)
		},
	}
	d := newDoor(l, s, refused)
	s.Log.Info().Stringer("address", l.Addr()).Msg("listening for other hosts")
	defer d.wait()
	return api.Serve(ctx, h, d)
}

// handler bounds a question, and has the log say who asks.
func (s *Server) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log := s.Log.With().Stringer("host", From(r.Context())).Str("remote", r.RemoteAddr).Str("path", r.URL.Path).Logger()
		log.Debug().Msg("asked by another host") // what it was asked is logged by who answers
		r.Body = http.MaxBytesReader(w, r.Body, cmp.Or(s.MaxBody, maxBody))
		s.Handler.ServeHTTP(w, r.WithContext(log.WithContext(r.Context())))
	})
}

// believed says whether a host with these names may ask.
func (s *Server) believed(n Names) error {
	for _, h := range s.Hosts {
		if h.Has(n) {
			return nil
		}
	}
	if len(s.Hosts) == 0 {
		return distrustf("is for %s, but no host may ask: add it to hosts in [%s] of the configuration", n, cmp.Or(s.Section, "migration"))
	}
	return distrustf("is for %s, which is not among hosts in [%s] of the configuration: add it if it may ask", n, cmp.Or(s.Section, "migration"))
}

// errFull is why a host is sent away that has, with others, too many connections.
var errFull = errors.New("there are too many connections of other hosts")
