package master

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Samples of a master's content, taken at even distances, first and last included; see docs/FORMAT.md.
const (
	samples    = 64
	sampleSize = 4096 // bytes
)

// Identify tells how an open master will be known again.
func Identify(dev blockdev.Device) (*cowfmt.Identity, error) {
	id := &cowfmt.Identity{Size: dev.Info().Size}
	switch d := dev.(type) {
	case *volumeDevice:
		h := d.Header()
		id.Kind, id.UUID, id.Opens = cowfmt.IdentityStore, h.UUID, h.Opens
		return id, nil
	case *blockdev.File:
		if w := d.WWID(); w != "" {
			id.Kind, id.WWID = cowfmt.IdentityWWID, w
			return id, nil
		}
	}
	id.Kind = cowfmt.IdentitySamples
	var err error
	id.Digest, err = sampleDigest(dev, id.Size)
	return id, err
}

// sampleDigest is the SHA-256 of the size and of 64 samples of 4 KiB, each at a multiple of 4 KiB.
func sampleDigest(r io.ReaderAt, size int64) (digest [32]byte, err error) {
	sum := sha256.New()
	_ = binary.Write(sum, binary.LittleEndian, uint64(size))
	buf := blockdev.Alloc(sampleSize)
	defer blockdev.Free(buf)
	last := max(size-sampleSize, 0) / sampleSize
	for i := range int64(samples) {
		off := last * i / (samples - 1) * sampleSize
		part := buf[:min(sampleSize, size-off)]
		if _, err := r.ReadAt(part, off); err != nil {
			return digest, err
		}
		sum.Write(part)
	}
	return [32]byte(sum.Sum(nil)), nil
}

// check compares what was opened at an address, name, with what the clone was made of.
func check(dev blockdev.Device, name string, want *cowfmt.Identity) error {
	if size := dev.Info().Size; size != want.Size {
		return fmt.Errorf("%w: %s has %d bytes, the clone was made of %d", ErrWrong, name, size, want.Size)
	}
	got, err := Identify(dev)
	if err != nil {
		return err
	}
	if want.Kind == cowfmt.IdentitySamples && got.Kind != want.Kind {
		// A file that was moved to a LUN is the same by its content.
		got.Kind = want.Kind
		if got.Digest, err = sampleDigest(dev, want.Size); err != nil {
			return err
		}
	}
	switch {
	case got.Kind != want.Kind:
		return fmt.Errorf("%w: %s is known by %v, the clone's by %v", ErrWrong, name, got.Kind, want.Kind)
	case want.Kind == cowfmt.IdentityStore && got.UUID != want.UUID:
		return fmt.Errorf("%w: %s is store %v, not %v", ErrWrong, name, got.UUID, want.UUID)
	case want.Kind == cowfmt.IdentityStore && got.Opens != want.Opens:
		return fmt.Errorf("%w: %s was opened for writing since the clone was made", ErrWrong, name)
	case want.Kind == cowfmt.IdentityWWID && got.WWID != want.WWID:
		return fmt.Errorf("%w: %s is LUN %s, not %s", ErrWrong, name, got.WWID, want.WWID)
	case want.Kind == cowfmt.IdentitySamples && got.Digest != want.Digest:
		return wrongContent(name)
	}
	return nil
}

func wrongContent(name string) error {
	return fmt.Errorf("%w: the content of %s is not what the clone was made of", ErrWrong, name)
}

// again is check for a new connection to an NBD server, which may have come back with another image.
func again(name string, want *cowfmt.Identity) func(io.ReaderAt) error {
	return func(r io.ReaderAt) error {
		digest, err := sampleDigest(r, want.Size)
		if err == nil && digest != want.Digest {
			err = wrongContent(name)
		}
		return err
	}
}
