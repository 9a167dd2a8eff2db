package daemon

import (
	"context"
	"os"

	"github.com/virt-cow/virt-cow/internal/api"
)

// closeTries is how many engines are started to close a store that the one before them did not.
const closeTries = 2

// closeVolume stops a volume's engine and makes sure that the store was closed: an engine that is killed while it ends
// leaves what it acknowledged, and had not flushed, to its exception cache, which a reboot takes away. Its successor
// goes on with that, and closes. The caller holds v.op.
func (d *Daemon) closeVolume(ctx context.Context, v *volume, e *engine) error {
	err := e.stop(ctx)
	for tries := 0; err == nil && d.leftOpen(v); tries++ {
		if tries == closeTries {
			// The guest has it no more, so there is nothing to hold up: the cache stays, and doctor tells of it.
			d.log.Error().Str("volume", v.name).Msg("store is not closed: its engines ended before that, see their log and virt-cow doctor")
			return nil
		}
		d.log.Warn().Str("volume", v.name).Msg("engine ended without closing its store: starting another one to do that")
		e = d.beginEngine(v)
		if up := e.wait(ctx); up != nil && d.leftOpen(v) { // it may have found that another host has the store, and left nothing
			d.log.Error().Err(up).Str("volume", v.name).Msg("engine to close the store")
		}
		err = e.stop(ctx)
	}
	return err
}

// leftOpen says whether a volume that has no engine any more has an exception cache still.
func (d *Daemon) leftOpen(v *volume) bool {
	d.mu.Lock()
	id := v.uuid
	d.mu.Unlock()
	if id == "" {
		return false
	}
	_, err := os.Stat(api.CachePath(d.config.RunDir, id))
	return err == nil
}
