package libvirtx

import (
	"context"
	"time"

	"github.com/rs/zerolog"
)

// Handler is told of a connection's life and of its events, one call at a time.
type Handler interface {
	// Connected gets a new connection, subscribed already: list now. It must not block on events.
	Connected(c Conn)
	Event(e Event)
	// Disconnected says that the last connection is gone, or, before the first, that there is none, and why.
	Disconnected(err error)
}

// Backoff is how long Keep waits between two attempts: from Min, doubled up to Max.
type Backoff struct{ Min, Max time.Duration }

// Next is the wait after one of length d.
func (b Backoff) Next(d time.Duration) time.Duration { return min(max(2*d, b.Min), b.Max) }

// Keep holds a connection until ctx ends: dials, hands it to h, passes events on, and begins again when it
// is lost. Waits grow for as long as no connection lives longer than the longest of them.
func Keep(ctx context.Context, dial func(context.Context) (Conn, error), h Handler, b Backoff, log zerolog.Logger) {
	said := ""
	for wait := time.Duration(0); ; wait = b.Next(wait) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		dialCtx, cancel := context.WithTimeout(ctx, CallTimeout)
		c, err := dial(dialCtx)
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			if err.Error() != said {
				log.Warn().Err(err).Msg("no connection to libvirt, trying on")
				said = err.Error()
			}
			h.Disconnected(err)
			continue
		}
		log.Info().Msg("connected to libvirt")
		said = ""
		since := time.Now()
		h.Connected(c)
		serveEvents(ctx, c, h)
		c.Close()
		err = c.Err()
		if ctx.Err() == nil {
			log.Warn().Err(err).Msg("connection to libvirt lost")
		}
		h.Disconnected(err)
		if time.Since(since) > b.Max {
			wait = 0
		}
	}
}

func serveEvents(ctx context.Context, c Conn, h Handler) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-c.Events():
			if !ok {
				return
			}
			h.Event(e)
		}
	}
}
