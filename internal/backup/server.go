package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/local"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// MaxBody bounds a question to an image node, in bytes: a manifest with the guest's NVRAM and TPM state in it.
const MaxBody = 32 << 20

// Handler answers hosts' daemons, and commands.
func (n *Node) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathNodeStatus, call(n.Status))
	mux.HandleFunc("POST "+api.PathNodeReserve, call(n.reserveFor))
	mux.HandleFunc("POST "+api.PathNodeStart, call(n.Start))
	mux.HandleFunc("POST "+api.PathNodeJobs, call(n.Jobs))
	mux.HandleFunc("POST "+api.PathNodeJob, call(n.Job))
	mux.HandleFunc("POST "+api.PathNodeCancel, call(n.Cancel))
	return mux
}

// reserveFor is Reserve for a host: its address is its own.
func (n *Node) reserveFor(ctx context.Context, r api.ReserveRequest) (api.JobStatus, error) {
	host, _, err := peer.ParseAddress(r.Address, peer.DefaultPort)
	if err != nil {
		return api.JobStatus{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if names := peer.From(ctx); !names.Match(host) {
		return api.JobStatus{}, fmt.Errorf("%w: a host reserves for itself: its certificate is for %s, not for %s: set address in [migration] there", ErrForbidden, names, host)
	}
	return n.Reserve(ctx, r)
}

// call makes a handler of a function.
func call[In, Out any](f func(context.Context, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxBody))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&in); err != nil {
			answer(w, nil, fmt.Errorf("%w: %s: %w", ErrInvalid, r.URL.Path, err))
			return
		}
		zerolog.Ctx(r.Context()).Debug().Msg("asked for")
		out, err := f(r.Context(), in)
		answer(w, out, err)
	}
}

func answer(w http.ResponseWriter, out any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		status, code := http.StatusInternalServerError, ""
		switch {
		case errors.Is(err, ErrInvalid):
			status = http.StatusBadRequest
		case errors.Is(err, ErrForbidden):
			status = http.StatusForbidden
		case errors.Is(err, ErrNotFound):
			status = http.StatusNotFound
		case errors.Is(err, ErrBusy):
			status, code = http.StatusConflict, api.ErrorBusy
		case errors.Is(err, ErrState):
			status = http.StatusConflict
		}
		w.WriteHeader(status)
		out = api.Error{Message: err.Error(), Code: code}
	}
	_ = json.NewEncoder(w).Encode(out) // a client that is gone needs no answer
}

// ServeLocal answers commands of this host on NodeSocket in the run folder, and metrics to who scrapes them there, until ctx ends. Only root, and the user that this
// process runs as, may ask. The caller makes sure that no other node has the folder.
func (n *Node) ServeLocal(ctx context.Context, runDir string, metrics http.Handler) error {
	path := filepath.Join(runDir, api.NodeSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := local.Listen(ctx, path, 0o600, -1)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", n.Handler())
	mux.Handle("GET "+api.PathNodeMetrics, metrics)
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 30 * time.Second,
		MaxHeaderBytes: 16 << 10, ErrorLog: stdlog.New(n.config.Log.With().Str("part", "control API").Logger(), "", 0),
	}
	return api.Serve(ctx, s, &ours{l, n.config.Log})
}

// ours lets in who may ask, whatever the socket's permissions have become.
type ours struct {
	*net.UnixListener
	log zerolog.Logger
}

func (o *ours) Accept() (net.Conn, error) {
	for {
		c, err := o.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := local.Peer(c)
		if err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid()) {
			return c, nil
		}
		o.log.Warn().Any("peer", cred).Err(err).Msg("refused: not root")
		c.Close()
	}
}
