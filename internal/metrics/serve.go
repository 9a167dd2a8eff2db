package metrics

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"
)

// maxConnections bounds the connections to the metrics' own listener; others wait in the kernel.
const maxConnections = 32

// Serve answers GET /metrics, and nothing else, on a TCP address of its own until ctx ends. Whoever can reach it may
// read: it has no secrets, but names of volumes and domains. An address of port 0 is logged as it turns out.
func Serve(ctx context.Context, listen string, handler http.Handler, log zerolog.Logger) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		log.Warn().Stringer("address", a).Msg("metrics can be read by whoever reaches this address")
	}
	log.Info().Stringer("address", l.Addr()).Msg("serving metrics")
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", handler)
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          stdlog.New(log, "", 0),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(netutil.LimitListener(l, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
