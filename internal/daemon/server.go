package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// maxBody bounds a request in bytes.
const maxBody = 64 << 10

// serve answers the control API until ctx ends. Whoever may open the socket may do everything: it is for root
// and its group.
func (d *Daemon) serve(ctx context.Context) error {
	path := filepath.Join(d.config.RunDir, api.DaemonSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return err
	}
	s := &http.Server{Handler: d.handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if s.Shutdown(grace) != nil {
		s.Close()
	}
	return nil
}

func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathDaemonStatus, func(w http.ResponseWriter, r *http.Request) {
		answer(w, d.Status(r.Context()), nil)
	})
	mux.HandleFunc("POST "+api.PathDaemonAttach, call(d.Attach))
	mux.HandleFunc("POST "+api.PathDaemonDetach, call(d.Detach))
	mux.HandleFunc("POST "+api.PathDaemonHydration, call(d.Hydration))
	return mux
}

// call makes a handler of a function. Its context does not end with the client: what was begun is finished.
func call[In, Out any](f func(context.Context, In) (*Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&in); err != nil {
			answer(w, nil, badRequest{fmt.Errorf("%s: %w", r.URL.Path, err)})
			return
		}
		out, err := f(context.WithoutCancel(r.Context()), in)
		answer(w, out, err)
	}
}

func answer(w http.ResponseWriter, out any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(httpStatus(err))
		out = api.Error{Message: err.Error()}
	}
	json.NewEncoder(w).Encode(out)
}

func httpStatus(err error) int {
	var b badRequest
	var n noVolumeError
	var inUse *inUseError
	var taken *takenError
	switch {
	case errors.As(err, &b):
		return http.StatusBadRequest
	case errors.As(err, &n), errors.Is(err, libvirtx.ErrNoDomain):
		return http.StatusNotFound
	case errors.As(err, &inUse), errors.As(err, &taken):
		return http.StatusConflict
	case errors.Is(err, ErrNoLibvirt), errors.Is(err, libvirtx.ErrGone):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
