package api

import (
	"context"
	"net"
	"net/http"
	"time"
)

// grace is how long requests that are being answered have when the server is to end.
const grace = 5 * time.Second

// Serve serves a listener, and closes it, until ctx ends; that is no error.
func Serve(ctx context.Context, s *http.Server, l net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		l.Close()
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if s.Shutdown(last) != nil {
		s.Close()
	}
	return nil
}
