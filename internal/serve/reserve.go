package serve

import (
	"errors"
	"fmt"

	"github.com/rs/zerolog"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/blockdev/reserve"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// keepOut registers this host with the LUNs of a volume, so that the LUN lets no stranger write, and shuts out an owner that is to
// be taken over from. The volume's lock on this host is held: no other engine of this host has these LUNs open, so that a
// host which was shut out before lets nothing in again but itself, which reads the header next. Nobody unregisters at the end: the
// reservation would end with its holder.
func keepOut(files []*blockdev.File, h *cowfmt.Header, me cowfmt.Owner, dead *api.DeadOwner, log zerolog.Logger) error {
	key := reserve.Key(me.Host, me.Boot)
	for _, f := range files {
		if f == nil {
			continue
		}
		can, err := reserve.Supported(f)
		if err == nil && !can {
			err = fmt.Errorf("%s: it knows no persistent reservations: set reservations = \"off\" in [engine] of the configuration", f.Info().Name)
		}
		if err == nil {
			err = reserve.Register(f, key)
		}
		if err == nil {
			err = shutOut(f, key, h, dead, log)
		}
		if err != nil {
			return fmt.Errorf("keep other hosts out: %w", err)
		}
	}
	return nil
}

// shutOut takes the registration of a dead owner away. Where there is none the LUN lets that host write no more, but what it had
// sent before may be on its way still: that is a proof of nothing, where the reservation was to be the proof.
func shutOut(f *blockdev.File, key uint64, h *cowfmt.Header, dead *api.DeadOwner, log zerolog.Logger) error {
	o := h.Owner
	if dead == nil || o == nil || o.Host.String() != dead.Host || o.Instance.String() != dead.Instance || h.Epoch != dead.Epoch {
		return nil // the engine refuses, if it must
	}
	err := reserve.Preempt(f, key, reserve.Key(o.Host, o.Boot))
	if errors.Is(err, reserve.ErrNotRegistered) && dead.By != api.ByReservation {
		return nil
	}
	if errors.Is(err, reserve.ErrNotRegistered) {
		return fmt.Errorf("%w: so it is not known whether %s still writes: make sure that it is off, then: virt-cow host fenced %s", err, o.HostName, o.HostName)
	}
	if err == nil {
		log.Warn().Str("host", o.HostName).Str("lun", f.Info().Name).Msg("shut out of the LUN: its writes are refused from now on")
	}
	return err
}
