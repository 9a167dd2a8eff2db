// Package store is a store on a device: the two copies of its header, its owner, and its exception table
// in leaves. What the bytes mean is cowfmt's business; what the flags are for is the engine's.
//
// A header is written to both copies, a flush after each: so both are the same but for the moment of a
// write, and one damaged copy costs nothing. The copy that is not known to be good is written first, so
// that at any moment at least one whole header is on the device.
package store

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

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

	table sync.Mutex // held while the table is written; taken before mu

	mu       sync.Mutex // held while the header is written
	good     [2]bool    // copy is on the device, whole, as far as is known
	sequence uint64     // the highest used, by failed writes too
	epoch    uint32     // the highest used, by failed writes too
	problem  [2]error   // what was wrong with a copy at Open
	standing standing
	grant    cowfmt.Grant // of a receiver
	moved    error        // ErrEpoch, for good
	half     time.Time    // when a hand-over was first seen in one copy only
	claiming Claiming     // as of Acquire

	slots    sync.Mutex // held while a migration slot is written
	numbered map[int]uint64
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
	s := &Store{dev: dev, problem: choice.Problem}
	s.adopt(choice)
	return s, nil
}

// adopt makes a header that was read the one to go by.
func (s *Store) adopt(c cowfmt.Choice) {
	h := c.Header
	s.sequence, s.epoch = max(s.sequence, h.Sequence), max(s.epoch, h.Epoch)
	for i := range s.good {
		s.good[i] = c.Problem[i] == nil
	}
	s.header.Store(h)
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
	return dataArea(s.dev, s.Header())
}

func dataArea(dev blockdev.Device, h *cowfmt.Header) (*blockdev.Section, error) {
	return blockdev.NewSection(dev, h.Layout.Data, h.DataEnd()-h.Layout.Data)
}

// Reread takes over what the owner, another host, has written to the header since it was read. For the
// owner itself it does nothing.
func (s *Store) Reread() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.standing == holder {
		return nil
	}
	_, err := s.reread()
	return err
}

// reread reads the header, and adopts it if it is newer. Called with mu held.
func (s *Store) reread() (cowfmt.Choice, error) {
	now, err := s.peek()
	if err == nil {
		err = Fits(s.dev.Info(), now.Header)
	}
	if err != nil {
		return now, err
	}
	switch h := s.Header(); {
	case newer(now.Header.Epoch, now.Header.Sequence, h):
		s.adopt(now)
	case now.Header.Epoch == h.Epoch && now.Header.Sequence == h.Sequence:
		for i := range s.good {
			s.good[i] = now.Problem[i] == nil
		}
	}
	return now, nil
}

// peek reads the header of this very store. While its owner writes it, both copies may be found half written, one
// after the other: that passes.
func (s *Store) peek() (now cowfmt.Choice, err error) {
	for range peeks {
		if now, err = Peek(s.dev); !errors.Is(err, cowfmt.ErrCorrupt) {
			break
		}
	}
	if err != nil {
		return now, err
	}
	if now.Header.UUID != s.Header().UUID {
		return now, fmt.Errorf("%s: is another store now, %v, not %v", s.Name(), now.Header.UUID, s.Header().UUID)
	}
	return now, nil
}

const peeks = 3

// newer says whether epoch and sequence are of a later header than h.
func newer(epoch uint32, sequence uint64, h *cowfmt.Header) bool {
	return cmp.Or(cmp.Compare(epoch, h.Epoch), cmp.Compare(sequence, h.Sequence)) > 0
}

// Update changes the header durably: change gets a copy, and what it makes of it is on the device when
// Update returns nil. After an error the device holds the old or the new header, whole. Only the owner may, or, while
// nobody owns the store, whoever has it to himself: else ErrNotOwner, or ErrEpoch where another host took it.
func (s *Store) Update(change func(h *cowfmt.Header)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayUpdate(); err != nil {
		return err
	}
	return s.update(change)
}

// change is Update without asking who this is. Called without mu.
func (s *Store) change(change func(h *cowfmt.Header)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.update(change)
}

// update writes the header. Called with mu held. An epoch that a failed write may have brought to the device is not
// gone back behind: the next header must be the one that is chosen.
func (s *Store) update(change func(h *cowfmt.Header)) error {
	next := s.Header().Clone()
	change(next)
	next.Epoch = max(next.Epoch, s.epoch)
	s.sequence++
	next.Sequence = s.sequence
	encoded, err := next.Encode()
	if err != nil {
		return fmt.Errorf("%s: header: %w", s.Name(), err)
	}
	s.epoch = next.Epoch
	// One that takes the store over begins at the copy that the old owner, if it lives after all, writes last: so they
	// can't go one behind the other over both copies.
	first := 0
	if s.good[0] && (!s.good[1] || s.standing != holder && s.Header().Owner != nil) {
		first = 1
	}
	for n, i := range [2]int{first, 1 - first} {
		if n == 1 {
			if err := s.overtaken(i, next); err != nil {
				return err
			}
		}
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
