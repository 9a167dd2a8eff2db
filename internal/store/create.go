package store

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Params say what store to make. Sizes are bytes.
type Params struct {
	Name           string
	UUID           uuid.UUID // zero for a new one
	Role           cowfmt.Role
	Size           int64 // of the volume
	ChunkSize      int64
	Master         *cowfmt.Locator
	MasterIdentity *cowfmt.Identity
	Origin         *cowfmt.Locator // of a state store
	OriginIdentity *cowfmt.Identity
	Now            time.Time
}

// NewHeader is the header of a fresh store, not yet on a device; its DataEnd is the room it needs.
func NewHeader(p Params) (*cowfmt.Header, error) {
	h, err := freshHeader(p)
	if err != nil {
		return nil, err
	}
	return h, h.Validate()
}

func freshHeader(p Params) (*cowfmt.Header, error) {
	layout, err := cowfmt.NewLayout(p.Role, p.Size, p.ChunkSize)
	if err != nil {
		return nil, err
	}
	if p.UUID == uuid.Nil {
		p.UUID = uuid.New()
	}
	return &cowfmt.Header{
		UUID: p.UUID, Name: p.Name, Role: p.Role, Size: p.Size, ChunkSize: p.ChunkSize, Layout: layout,
		Created: p.Now.Unix(), Epoch: 1, Sequence: 1, Generation: 1, Cache: cowfmt.CacheOn, TableEpoch: 1,
		Master: p.Master, MasterIdentity: p.MasterIdentity, Origin: p.Origin, OriginIdentity: p.OriginIdentity,
	}, nil
}

// Create puts a fresh store on dev, over whatever was there. Neither table nor data are written: no group
// of the table counts before it was initialised, no chunk before its flag. Until Create returns nil the
// device holds no store. Not for a snapshot store: see CreateSnapshot.
func Create(dev blockdev.Device, h *cowfmt.Header) error {
	if h.Role == cowfmt.RoleSnapshot {
		return fmt.Errorf("%s: %w: make %v as a snapshot store", dev.Info().Name, cowfmt.ErrInvalid, h)
	}
	return create(dev, h, func() error { return nil })
}

// create puts a store on dev; tables writes what must be there before its header is.
func create(dev blockdev.Device, h *cowfmt.Header, tables func() error) error {
	if err := HasRoom(dev.Info(), h); err != nil {
		return err
	}
	encoded, err := h.Encode()
	if err != nil {
		return err
	}
	// Claims and half a header of an earlier store must not mix with this one's.
	if err := zero(dev, 0, cowfmt.MetadataSize); err != nil {
		return err
	}
	if err := dev.Flush(); err != nil {
		return err
	}
	if err := tables(); err != nil {
		return err
	}
	for i := range cowfmt.HeaderOffsets {
		if err := writeHeader(dev, i, encoded); err != nil {
			return err
		}
	}
	return nil
}

// HasRoom says whether a device is large enough for a store that is to be made.
func HasRoom(info blockdev.Info, h *cowfmt.Header) error {
	if need := h.DataEnd(); info.Size < need {
		return fmt.Errorf("%s: has %d bytes, a store for %d bytes needs %d", info.Name, info.Size, h.Size, need)
	}
	return nil
}

// zero writes zeros: unlike a discard it is believed.
func zero(dev blockdev.Device, off, length int64) error {
	buf := blockdev.Alloc(int(length))
	defer blockdev.Free(buf)
	clear(buf)
	_, err := dev.WriteAt(buf, off)
	return err
}
