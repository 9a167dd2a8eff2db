package nbd

import (
	"fmt"

	"github.com/virt-cow/virt-cow/internal/blockdev"
)

// deviceReads is how many reads of a device are under way at once.
const deviceReads = 16

// device is a Backend that only reads.
type device struct {
	blockdev.Device
	slots chan struct{}
}

// ReadOnly makes a Backend of a device that is only to be read. The device's Info must say so.
func ReadOnly(d blockdev.Device) (Backend, error) {
	if !d.Info().ReadOnly {
		return nil, fmt.Errorf("%s: is not read-only", d.Info().Name)
	}
	return &device{d, make(chan struct{}, deviceReads)}, nil
}

// Submit implements Backend.
func (d *device) Submit(r *blockdev.Request) {
	r.Detached = true
	go func() {
		d.slots <- struct{}{}
		err := d.serve(r)
		<-d.slots
		r.Done(r, err)
	}()
}

func (d *device) serve(r *blockdev.Request) error {
	switch r.Op {
	case blockdev.OpRead:
		_, err := d.ReadAt(r.Buf, r.Off)
		return err
	case blockdev.OpFlush:
		return nil
	}
	return fmt.Errorf("%s: %v: %w", d.Info().Name, r.Op, blockdev.ErrReadOnly)
}
