package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cut"
	"github.com/virt-cow/virt-cow/internal/inventory"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/local"
	"github.com/virt-cow/virt-cow/internal/metrics"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

const (
	maxBody  = 64 << 10 // bytes of a request
	maxConns = 512      // at once; more wait
)

// listen makes the control socket. The lock on the run folder is held: what is in its place is stale.
func (d *Daemon) listen() (net.Listener, error) {
	path := filepath.Join(d.config.RunDir, api.DaemonSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := local.Listen(context.Background(), path, 0o660, cmp.Or(d.config.ControlGroup, -1))
	if err != nil {
		return nil, err
	}
	return newPeerListener(l, maxConns), nil
}

// serve answers the control API until ctx ends.
func (d *Daemon) serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler: d.onlyOurs(d.handler()), ConnContext: withConn,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: stdlog.New(d.log.With().Str("part", "control API").Logger(), "", 0),
	}
	return api.Serve(ctx, s, l)
}

func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathDaemonStatus, func(w http.ResponseWriter, r *http.Request) {
		answer(w, d.Status(r.Context()), nil)
	})
	mux.HandleFunc("POST "+api.PathDaemonAttach, call(d.Attach))
	mux.HandleFunc("POST "+api.PathDaemonDetach, call(d.Detach))
	mux.HandleFunc("POST "+api.PathDaemonHydration, call(d.Hydration))
	mux.HandleFunc("POST "+api.PathDaemonPrepare, call(d.Prepare))
	mux.HandleFunc("POST "+api.PathDaemonNotice, call(d.Notice))
	mux.Handle("GET "+api.PathDaemonMetrics, metrics.Handler(d.Status))
	mux.HandleFunc("GET "+api.PathVolumes, func(w http.ResponseWriter, r *http.Request) {
		answer(w, d.Volumes(r.Context()), nil)
	})
	mux.HandleFunc("GET "+api.PathVolume, func(w http.ResponseWriter, r *http.Request) {
		v, err := d.Volume(r.Context(), r.PathValue("name"))
		answer(w, v, err)
	})
	mux.HandleFunc("POST "+api.PathVolumes, call(d.Create))
	mux.HandleFunc("POST "+api.PathVolumesAdopt, call(d.Adopt))
	mux.HandleFunc("POST "+api.PathVolumesScan, call(d.inventory.Scan))
	mux.HandleFunc("POST "+api.PathVolumeDelete, callNamed(d.Delete))
	mux.HandleFunc("POST "+api.PathVolumeStart, callNamed(bare(d.Start)))
	mux.HandleFunc("POST "+api.PathVolumeStop, callNamed(bare(d.Stop)))
	mux.HandleFunc("POST "+api.PathVolumeCache, callNamed(d.Cache))
	mux.HandleFunc("GET "+api.PathHosts, func(w http.ResponseWriter, r *http.Request) {
		list, err := d.Hosts(r.Context())
		answer(w, list, err)
	})
	mux.HandleFunc("POST "+api.PathHostFenced, call(d.Fenced))
	mux.HandleFunc("POST "+api.PathBackup, call(d.Backup))
	mux.HandleFunc("POST "+api.PathBackupJobs, call(d.BackupJobs))
	mux.HandleFunc("POST "+api.PathBackupJob, call(d.BackupJob))
	mux.HandleFunc("POST "+api.PathBackupCancel, call(d.CancelBackup))
	mux.HandleFunc("POST "+api.PathVolumeRestart, callNamed(bare(d.Restart)))
	return mux
}

// call makes a handler of a function. Its context does not end with the client: what was begun is finished.
func call[In, Out any](f func(context.Context, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&in); err != nil {
			answer(w, nil, badRequest{fmt.Errorf("%s: %w", r.URL.Path, err)})
			return
		}
		level := zerolog.InfoLevel
		if slices.Contains(often, r.URL.Path) {
			level = zerolog.DebugLevel
		}
		zerolog.Ctx(r.Context()).WithLevel(level).Msg("asked for")
		out, err := f(context.WithoutCancel(r.Context()), in)
		answer(w, out, err)
	}
}

// often is what is asked every few seconds: as long as a grant is open, or a backup at work.
var often = []string{api.PathPeerOpen, api.PathPeerCursor, api.PathPeerPullLook, api.PathBackupJob}

// callNamed is call for a path with a volume's name in it.
func callNamed[In, Out any](f func(context.Context, string, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		call(func(ctx context.Context, in In) (Out, error) { return f(ctx, r.PathValue("name"), in) })(w, r)
	}
}

// bare is for a function that needs no more than the name.
func bare[Out any](f func(context.Context, string) (Out, error)) func(context.Context, string, struct{}) (Out, error) {
	return func(ctx context.Context, name string, _ struct{}) (Out, error) { return f(ctx, name) }
}

func answer(w http.ResponseWriter, out any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(httpStatus(err))
		out = api.Error{Message: err.Error(), Code: code(err)}
	}
	_ = json.NewEncoder(w).Encode(out) // a client that is gone needs no answer
}

// code is what a program may go by in an error.
func code(err error) string {
	var busy *busyError
	var remote *api.RemoteError
	switch {
	case errors.As(err, &busy), errors.Is(err, cut.ErrBusy):
		return api.ErrorBusy
	case errors.As(err, &remote):
		return remote.Reason
	}
	return ""
}

func httpStatus(err error) int {
	var busy *busyError
	var conflict conflictError
	var unfit unfitError
	var remote *api.RemoteError
	var b badRequest
	var n noVolumeError
	var inUse *inUseError
	var taken *takenError
	var veto *plugin.VetoError
	var runs *runsError
	switch {
	case errors.As(err, &b), errors.Is(err, inventory.ErrInvalid):
		return http.StatusBadRequest
	case errors.As(err, &n), errors.Is(err, libvirtx.ErrNoDomain), errors.Is(err, inventory.ErrNotFound):
		return http.StatusNotFound
	case errors.As(err, &remote) && remote.Code/100 == 4 && !remote.Older: // the image node's own word
		return remote.Code
	case errors.As(err, &unfit):
		return http.StatusUnprocessableEntity
	case errors.As(err, &busy), errors.As(err, &conflict), errors.Is(err, cut.ErrBusy), errors.Is(err, cut.ErrElsewhere):
		return http.StatusConflict
	case errors.As(err, &runs), errors.As(err, &inUse), errors.As(err, &taken), errors.Is(err, inventory.ErrExists),
		errors.Is(err, inventory.ErrInUse), errors.Is(err, inventory.ErrNotReady):
		return http.StatusConflict
	case errors.As(err, &veto), errors.Is(err, inventory.ErrVetoed), errors.Is(err, errForbidden), errors.Is(err, errNotYours):
		return http.StatusForbidden
	case errors.Is(err, ErrNoLibvirt), errors.Is(err, libvirtx.ErrGone):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
