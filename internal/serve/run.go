package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/nbd"
)

// drainWait bounds the wait for clients' requests at the end; the volume is closed cleanly all the same.
const drainWait = 10 * time.Second

// ControlPath is where the control API of the engine with this NBD socket is.
func ControlPath(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".ctl" }

// Run serves a volume until the context ends or the control API says stop, then flushes and closes it.
// ready, if not nil, is called once clients can connect.
func Run(ctx context.Context, c Config, log zerolog.Logger, ready func(*engine.Volume)) error {
	if c.Control == "" {
		c.Control = ControlPath(c.Socket)
	}
	// Before anything else: a live engine on these sockets is told at once, not after the wait for its lock.
	for _, path := range []string{c.Socket, c.Control} {
		if err := removeStale(path); err != nil {
			return err
		}
	}
	o, err := open(ctx, c, log)
	if err != nil {
		return err
	}
	err = o.run(ctx, c, log, ready)
	if cerr := o.close(); cerr != nil {
		return errors.Join(err, fmt.Errorf("close %s: %w", c.Store, cerr))
	}
	return err
}

func (o *opened) run(ctx context.Context, c Config, log zerolog.Logger, ready func(*engine.Volume)) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	server := &nbd.Server{Name: o.volume.Info().Name, Backend: o.volume, Log: log}
	nbdListener, err := listen(c.Socket)
	if err != nil {
		return err
	}
	defer nbdListener.Close()
	controlListener, err := listen(c.Control)
	if err != nil {
		return err
	}
	control := &http.Server{
		Handler:           newControl(o.volume, server, c, func() { stop(nil) }),
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
	}
	defer control.Close()
	go func() {
		if err := control.Serve(controlListener); !errors.Is(err, http.ErrServerClosed) {
			stop(fmt.Errorf("control socket %s: %w", c.Control, err))
		}
	}()
	o.volume.SetHydrationRate(c.Rate)
	if c.Hydrate {
		if err := o.volume.StartHydration(); err != nil {
			return err
		}
	}
	go func() {
		if err := server.Serve(ctx, nbdListener); err != nil && ctx.Err() == nil {
			stop(fmt.Errorf("NBD socket %s: %w", c.Socket, err))
		}
	}()
	log.Info().Str("volume", o.volume.Info().Name).Str("socket", c.Socket).Str("target", o.volume.Target()).Msg("serving")
	if ready != nil {
		ready(o.volume)
	}
	<-ctx.Done()
	draining, cancel := context.WithTimeout(context.Background(), drainWait)
	defer cancel()
	if err := server.Shutdown(draining); err != nil {
		log.Warn().Err(err).Msg("clients cut off")
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// listen makes a unix socket that QEMU's group may use.
func listen(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// removeStale removes what a dead engine left; a socket that answers, or another kind of file, is
// somebody's.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s: exists and is not a socket", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("%s: %w", path, errInUse)
	}
	return os.Remove(path)
}
