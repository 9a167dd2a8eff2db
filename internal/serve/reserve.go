package serve

import (
	"errors"
	"fmt"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

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
	var luns []*blockdev.File
	for _, f := range files {
		if f != nil {
			luns = append(luns, f)
		}
	}
	if !isOwner(dead, h) {
		dead = nil // the engine refuses, if it must
	}
	// All of them before the first is registered with: that keeps an owner out which is not, and it may be alive.
	for _, f := range luns {
		if err := mayKeepOut(f, h.Owner, dead); err != nil {
			return fmt.Errorf("keep other hosts out: %w", advise(err))
		}
	}
	key := reserve.Key(me.Host, me.Boot)
	for _, f := range luns {
		err := reserve.Register(f, key)
		if err == nil && dead != nil {
			err = shutOut(f, key, h.Owner, dead, log)
		}
		if err != nil {
			return fmt.Errorf("keep other hosts out: %w", advise(err))
		}
	}
	return nil
}

// isOwner says whether it is the owner of now that is said to be dead.
func isOwner(dead *api.DeadOwner, h *cowfmt.Header) bool {
	o := h.Owner
	return dead != nil && o != nil && o.Host.String() == dead.Host && o.Instance.String() == dead.Instance && h.Epoch == dead.Epoch
}

// mayKeepOut says, and changes nothing, what stands against a LUN's keeping other hosts out.
func mayKeepOut(f *blockdev.File, owner *cowfmt.Owner, dead *api.DeadOwner) error {
	can, err := reserve.Supported(f)
	switch {
	case err != nil:
		return err
	case !can:
		return fmt.Errorf("%s: persistent reservations: %w", f.Info().Name, blockdev.ErrNotSupported)
	case dead == nil || dead.By != api.ByReservation:
		return nil
	}
	s, err := reserve.Read(f)
	if err == nil && !s.Registered(reserve.Key(owner.Host, owner.Boot)) {
		err = unproven(f, owner)
	}
	return err
}

// shutOut takes the registration of a dead owner away. Where there is none the LUN lets that host write no more, but what it had
// sent before may be on its way still: that is a proof of nothing, where the reservation was to be the proof.
func shutOut(f *blockdev.File, key uint64, owner *cowfmt.Owner, dead *api.DeadOwner, log zerolog.Logger) error {
	err := reserve.Preempt(f, key, reserve.Key(owner.Host, owner.Boot))
	switch {
	case err == nil:
		log.Warn().Str("host", owner.HostName).Str("lun", f.Info().Name).Msg("shut out of the LUN: its writes are refused from now on")
	case errors.Is(err, reserve.ErrNotRegistered) && dead.By != api.ByReservation:
		return nil
	case errors.Is(err, reserve.ErrNotRegistered):
		return unproven(f, owner)
	}
	return err
}

func unproven(f *blockdev.File, owner *cowfmt.Owner) error {
	return fmt.Errorf("%s: %s is %w: so it is not known whether it still writes: make sure that it is off, then: virt-cow host fenced %s",
		f.Info().Name, owner.HostName, reserve.ErrNotRegistered, owner.HostName)
}

// advise says what to do about a LUN that can't be reserved.
func advise(err error) error {
	switch {
	case errors.Is(err, blockdev.ErrNotSupported), errors.Is(err, reserve.ErrPart):
		return fmt.Errorf("%w: or set reservations = \"off\" in [engine] of the configuration, on all hosts", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: the engine needs CAP_SYS_RAWIO for reservations, and before Linux 6.5 CAP_SYS_ADMIN: "+
			"see \"Recover a host\" in docs/OPERATIONS.md", err)
	}
	return err
}
