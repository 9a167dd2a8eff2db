package peer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

const (
	quiet   = time.Minute // that the same refusal of the same address is not told again
	maxTold = 64          // refusals told in that time
	longest = 400         // bytes of a refusal: parts of it are the other side's words
)

// refusals tells of who was sent away, but fills no disk for them.
type refusals struct {
	log zerolog.Logger

	mu     sync.Mutex
	told   map[string]bool // address and reason
	since  time.Time
	untold int
}

func (r *refusals) tell(from net.Addr, why string) {
	address := from.String()
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	why = why[:min(len(why), longest)]
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.told == nil || now.Sub(r.since) >= quiet {
		if r.untold > 0 {
			r.log.Warn().Int("count", r.untold).Time("since", r.since).Msg("more refused, for reasons told before or too many to tell")
		}
		r.told, r.since, r.untold = map[string]bool{}, now, 0
	}
	key := address + " " + why
	if r.told[key] || len(r.told) >= maxTold {
		r.untold++
		return
	}
	r.told[key] = true
	r.log.Warn().Str("remote", address).Str("reason", why).Msg("refused: not a host that may ask")
}

// refusal says why a handshake failed, for the log.
func (s *Server) refusal(err error) string {
	var untrusted *distrust
	var header tls.RecordHeaderError
	var remote *net.OpError
	text := err.Error()
	switch {
	case errors.As(err, &untrusted):
		return "its certificate " + text
	case errors.As(err, &header):
		return "it does not speak TLS"
	case strings.Contains(text, "didn't provide a certificate"):
		return "it shows no certificate"
	case strings.Contains(text, "unsupported versions"):
		return "it does not speak TLS 1.3"
	case errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Sprintf("it does not want this host's certificate %s, or how it is shown: it says %q; its own log says why",
			s.Identity.files.Cert, remote.Err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("it did not say who it is within %s", s.patience)
	case errors.Is(err, net.ErrClosed):
		return "too many others came before it said who it is"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "it went away before it said who it is"
	}
	return text
}
