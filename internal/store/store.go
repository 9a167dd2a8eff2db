// Package store is a store on a device: the two copies of its header, its owner, and its exception table
// in leaves. What the bytes mean is cowfmt's business; what the flags are for is the engine's.
//
// A header is written to both copies, a flush after each: so both are the same but for the moment of a
// write, and one damaged copy costs nothing. The copy that is not known to be good is written first, so
// that at any moment at least one whole header is on the device.
package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

var (
	// ErrTruncated says that the device ends before the store does.
	ErrTruncated = errors.New("store is truncated")
	// ErrOwned says that another host has the store open, or had it open when it died.
	ErrOwned = errors.New("store is open on another host")
)

// Store is an open store. Its methods may be called at the same time.
type Store struct {
	dev    blockdev.Device
	header atomic.Pointer[cowfmt.Header] // never changed once it is here: Update puts a new one

	mu       sync.Mutex // held while the header is written
	good     [2]bool    // copy is on the device, whole, as far as is known
	sequence uint64     // the highest used, by failed writes too
	problem  [2]error   // what was wrong with a copy at Open
	mine     bool       // nobody else writes the header
	claiming Claiming   // as of Acquire
}

// Peek reads the header of the store on dev, and what is wrong with its copies. It does not check that the device has
// room for the store.
func Peek(dev blockdev.Device) (cowfmt.Choice, error) {
	info := dev.Info()
	var copies [2][]byte
	var unread [2]error
	for i, off := range cowfmt.HeaderOffsets {
		buf := blockdev.Alloc(cowfmt.HeaderSize)
		defer blockdev.Free(buf)
		if info.Size < off+cowfmt.HeaderSize {
			clear(buf) // no magic there
		} else if _, unread[i] = dev.ReadAt(buf, off); unread[i] != nil {
			continue
		}
		copies[i] = buf
	}
	choice, err := cowfmt.Choose(copies)
	if err != nil {
		return choice, errors.Join(append(unread[:], fmt.Errorf("%s: %w", info.Name, err))...)
	}
	return choice, nil
}

// Fits returns ErrTruncated, or what else is wrong, where a device can't hold the store its header describes.
func Fits(info blockdev.Info, h *cowfmt.Header) error {
	if end := h.DataEnd(); info.Size < end {
		return fmt.Errorf("%s: %w: it has %d bytes, its header says %d", info.Name, ErrTruncated, info.Size, end)
	}
	if h.Layout.Data%int64(info.BlockSize) != 0 || h.ChunkSize%int64(info.BlockSize) != 0 {
		return fmt.Errorf("%s: chunks of %d bytes on a device with sectors of %d", info.Name, h.ChunkSize, info.BlockSize)
	}
	return nil
}

// Open reads the store on dev. The device stays the caller's to close.
func Open(dev blockdev.Device) (*Store, error) {
	choice, err := Peek(dev)
	if err != nil {
		return nil, err
	}
	h := choice.Header
	if err := Fits(dev.Info(), h); err != nil {
		return nil, err
	}
	s := &Store{dev: dev, sequence: h.Sequence, problem: choice.Problem}
	for i := range s.good {
		s.good[i] = choice.Problem[i] == nil
	}
	s.header.Store(h)
	return s, nil
}

// Header is the header as it was last read or written. It is shared: don't change it.
func (s *Store) Header() *cowfmt.Header { return s.header.Load() }

// Device is what the store is on.
func (s *Store) Device() blockdev.Device { return s.dev }

// Name is the device's name, for error messages.
func (s *Store) Name() string { return s.dev.Info().Name }

// Problems tells what was wrong with each header copy when the store was opened; the next header write
// mends it.
func (s *Store) Problems() [2]error { return s.problem }

// Data is the data area, rounded up to whole chunks: a chunk's place there is its place in the volume.
func (s *Store) Data() (*blockdev.Section, error) {
	h := s.Header()
	return blockdev.NewSection(s.dev, h.Layout.Data, h.DataEnd()-h.Layout.Data)
}

// Reread takes over what the owner, another host, has written to the header since it was read. For the
// owner itself it does nothing.
func (s *Store) Reread() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mine {
		return nil
	}
	now, err := Open(s.dev)
	if err != nil {
		return err
	}
	if now.Header().UUID != s.Header().UUID {
		return fmt.Errorf("%s: is another store now, %v, not %v", s.Name(), now.Header().UUID, s.Header().UUID)
	}
	if now.sequence > s.sequence {
		s.sequence, s.good = now.sequence, now.good
		s.header.Store(now.Header())
	}
	return nil
}

// Update changes the header durably: change gets a copy, and what it makes of it is on the device when
// Update returns nil. After an error the device holds the old or the new header, whole.
func (s *Store) Update(change func(h *cowfmt.Header)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.Header().Clone()
	change(next)
	s.sequence++
	next.Sequence = s.sequence
	encoded, err := next.Encode()
	if err != nil {
		return fmt.Errorf("%s: header: %w", s.Name(), err)
	}
	first := 0
	if s.good[0] && !s.good[1] {
		first = 1
	}
	for _, i := range [2]int{first, 1 - first} {
		s.good[i] = false
		if err := writeHeader(s.dev, i, encoded); err != nil {
			return err
		}
		s.good[i] = true
	}
	s.header.Store(next)
	return nil
}

func writeHeader(dev blockdev.Device, i int, encoded []byte) error {
	if _, err := dev.WriteAt(encoded, cowfmt.HeaderOffsets[i]); err != nil {
		return fmt.Errorf("write header copy %d: %w", i, err)
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("write header copy %d: %w", i, err)
	}
	return nil
}
