package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/local"
)

// peerListener takes connections up to a limit, and notes who is at their other end.
type peerListener struct {
	*net.UnixListener
	free chan struct{}
}

// peerConn is a connection with its other end's credentials.
type peerConn struct {
	*net.UnixConn
	cred   *unix.Ucred // nil if they can't be had
	groups []int       // of the process, besides that in cred
	free   func()
}

func newPeerListener(l *net.UnixListener, limit int) *peerListener {
	return &peerListener{l, make(chan struct{}, limit)}
}

// Accept waits while there are too many connections.
func (l *peerListener) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	free := sync.OnceFunc(func() { <-l.free })
	c, err := l.AcceptUnix()
	if err != nil {
		free()
		return nil, err
	}
	p := &peerConn{UnixConn: c, free: free}
	if cred, err := local.Peer(c); err == nil {
		p.cred, p.groups = cred, local.PeerGroups(c)
	}
	return p, nil
}

func (c *peerConn) Close() error {
	c.free()
	return c.UnixConn.Close()
}

// connKey keys a request's *peerConn.
type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// onlyOurs lets in root, the daemon's own user and the control group, whatever the socket's permissions have become,
// and has the log say who asks.
func (d *Daemon) onlyOurs(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(connKey{}).(*peerConn)
		if c.cred == nil || !d.mayControl(c) {
			d.log.Warn().Str("path", r.URL.Path).Any("peer", c.cred).Msg("refused: neither root nor of the control group")
			answer(w, nil, errForbidden)
			return
		}
		log := d.log.With().Str("path", r.URL.Path).Uint32("uid", c.cred.Uid).Int32("pid", c.cred.Pid).Logger()
		next.ServeHTTP(w, r.WithContext(log.WithContext(r.Context())))
	})
}

var errForbidden = errors.New("only root and the control group may ask the virt-cow daemon: see [control] in the configuration")

func (d *Daemon) mayControl(c *peerConn) bool {
	if c.cred.Uid == 0 || int(c.cred.Uid) == os.Geteuid() {
		return true
	}
	gid := d.config.ControlGroup
	return gid > 0 && (int(c.cred.Gid) == gid || slices.Contains(c.groups, gid))
}
