package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// cutLooseDrain bounds the wait for the guest's requests to leave the old target.
const cutLooseDrain = 30 * time.Second

// cutLoose ends a clone whose every chunk is in the store: the flags are made durable, then the header
// says that neither they nor the master are needed, then the linear target takes over. A power cut
// between any two leaves a clone that reads the same.
func (v *Volume) cutLoose(ctx context.Context) error {
	c, ok := v.without().(*clone)
	if !ok {
		return nil
	}
	if err := v.commit.commit(c.table); err != nil {
		return fmt.Errorf("cut loose %s: %w", v.info.Name, err)
	}
	err := v.st.Update(func(h *cowfmt.Header) { h.CutLoose, h.Master, h.MasterIdentity = true, nil, nil })
	if err != nil {
		return fmt.Errorf("cut loose %s: %w", v.info.Name, err)
	}
	for {
		s, err := v.suspend(ctx, cutLooseDrain, false)
		if err == nil {
			err = s.resume(func() {
				v.remap(func() { v.inner = &linear{size: c.size, data: c.data, inflight: new(inflight), commit: c.commit} })
			})
		}
		switch {
		case err == nil:
			if err := v.closeMaster(); err != nil {
				v.log.Warn().Err(err).Msg("close the master")
			}
			return nil
		case errors.Is(err, ErrClosed), ctx.Err() != nil:
			return err
		}
		// Somebody else's suspension, or requests that take their time: the clone serves meanwhile.
		if !sleep(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

func (v *Volume) closeMaster() error {
	v.masterMu.Lock()
	defer v.masterMu.Unlock()
	if v.master == nil {
		return nil
	}
	err := v.master.Close()
	v.master = nil
	return err
}
