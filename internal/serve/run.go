package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/engine"
	"github.com/virt-cow/virt-cow/internal/nbd"
)

// Who may use the sockets: QEMU's group is to have the disk, but nobody except root the controls.
const (
	nbdMode     = 0o660
	controlMode = 0o600
)

// drainWait bounds the wait for clients' requests at the end; the volume is closed cleanly all the same.
const drainWait = 10 * time.Second

// What clients of the control socket may keep busy: connections at once, more wait; and how long each may take to say
// what it wants, and to read the answer, so that they don't wait for long.
const (
	controlConns    = 256
	controlPatience = 5 * time.Second
)

// Run serves a volume until the context ends or the control API says stop, then flushes and closes it.
// ready, if not nil, is called once clients can connect.
func Run(ctx context.Context, c Config, log zerolog.Logger, ready func(*engine.Volume)) error {
	if c.Control == "" {
		c.Control = api.ControlPath(c.Socket)
	}
	// Before anything else: what is wrong with the sockets is told at once, not after the wait for a lock.
	if err := c.checkSockets(); err != nil {
		return err
	}
	if err := checkPeer(c.Client); err != nil {
		return err
	}
	tell(log, "STATUS=opening "+c.Store)
	o, err := open(ctx, c, log)
	if err != nil {
		return err
	}
	return o.serve(ctx, c, log, ready)
}

// serve runs what is open, and closes it.
func (o *opened) serve(ctx context.Context, c Config, log zerolog.Logger, ready func(*engine.Volume)) error {
	err := o.run(ctx, c, log, ready)
	if err != nil && !o.leave { // perhaps before it served anybody: Close would wait for another host without bound
		o.await(log)
	}
	if cerr := o.close(); cerr != nil {
		return errors.Join(err, fmt.Errorf("close %s: %w", c.Store, cerr))
	}
	return err
}

func (o *opened) run(ctx context.Context, c Config, log zerolog.Logger, ready func(*engine.Volume)) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	gate := new(gatekeeper)
	gate.client.Store(c.Client)
	server := &nbd.Server{Name: o.volume.Info().Name, Backend: o.volume, Log: log, Accept: gate.accept}
	gid, err := groupID(c.Group)
	if err != nil {
		return err
	}
	nbdListener, err := listen(c.Socket, nbdMode, gid)
	if err != nil {
		return err
	}
	defer nbdListener.Close()
	controlListener, err := listen(c.Control, controlMode, -1)
	if err != nil {
		return err
	}
	defer controlListener.Close()
	o.volume.SetClients(server.Conns)
	answers := newControl(o.volume, server, gate, c, func() {
		o.volume.BeginClose()
		go func() {
			<-o.volume.MayClose()
			stop(nil)
		}()
	})
	control := &http.Server{
		Handler:           answers.handler(),
		ReadHeaderTimeout: controlPatience, ReadTimeout: controlPatience, IdleTimeout: controlPatience, MaxHeaderBytes: 16 << 10,
	}
	defer control.Close()
	go func() {
		if err := control.Serve(netutil.LimitListener(controlListener, controlConns)); !errors.Is(err, http.ErrServerClosed) {
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
		// Not by ctx: clients are served until the volume may be closed.
		if err := server.Serve(context.WithoutCancel(ctx), nbdListener); err != nil && ctx.Err() == nil {
			stop(fmt.Errorf("NBD socket %s: %w", c.Socket, err))
		}
	}()
	log.Info().Str("volume", o.volume.Info().Name).Str("socket", c.Socket).Str("target", o.volume.Target()).Msg("serving")
	if ready != nil {
		ready(o.volume)
	}
	tell(log, fmt.Sprintf("%s\nSTATUS=serving volume %s from %s", daemon.SdNotifyReady, o.volume.Info().Name, c.Store))
	<-ctx.Done()
	tell(log, daemon.SdNotifyStopping+"\nSTATUS=flushing and closing "+c.Store)
	answers.end()
	o.await(log)
	draining, cancel := context.WithTimeout(context.Background(), drainWait)
	defer cancel()
	defer func() {
		// The answer to a stop still has to go out.
		answering, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = control.Shutdown(answering)
	}()
	if err := server.Shutdown(draining); err != nil {
		log.Warn().Err(err).Msg("clients cut off")
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// handoverWait bounds the wait, when the process is told to end, for another host to let go of the volume or to take it over. A
// control API's stop waits for as long as it takes.
var handoverWait = 20 * time.Second

// await waits until the volume may be closed.
func (o *opened) await(log zerolog.Logger) {
	o.volume.BeginClose()
	select {
	case <-o.volume.MayClose():
		return
	case <-time.After(handoverWait):
	}
	o.leave = true
	e := log.Warn()
	if h := o.volume.Handover(); h != nil {
		e = e.Stringer("grant", h.Grant).Stringer("state", h.State).Str("peer", h.Peer)
	}
	e.Msgf("not closed within %v, since another host has the volume open: the process ends and leaves store and exception cache as they are; "+
		"the volume's next engine on this host goes on with it", handoverWait)
}

// tell tells systemd, if that started this process, so that its unit is ready when clients can connect.
func tell(log zerolog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn().Err(err).Msg("systemd can't be told")
	}
}
