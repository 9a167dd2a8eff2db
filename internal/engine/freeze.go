package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/virt-cow/virt-cow/internal/store"
)

// freezeAtOnce bounds how many leaves are in memory on their way to a frozen table.
const freezeAtOnce = 256

// errUsed says that a store is no snapshot of what a volume will hold.
var errUsed = errors.New("it holds something already: make a new one")

// isFresh refuses a snapshot store that has been one before. It knows all of the saved table then.
func (v *Volume) isFresh(ctx context.Context, s *snapshot) error {
	for leaf := range s.saved.leaves {
		err := s.saved.load(leaf)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	if s.saved.ones.Load() > 0 {
		return fmt.Errorf("%s: %w", s.path, errUsed)
	}
	if s.frozen != nil && v.table == nil {
		return fmt.Errorf("%s: it was made before the volume was cut loose: make a new one", s.path)
	}
	return nil
}

// freeze writes the clone's table into a snapshot's frozen table, durably: first all of it, then those leaves that have
// changed since. Flags only go from 0 to 1 and only this host sets any, so the number of ones in a leaf tells. Of a volume
// without a table there is nothing to freeze.
func (v *Volume) freeze(ctx context.Context, s *snapshot) error {
	if s.frozen == nil {
		return nil
	}
	s.freezing.Lock()
	defer s.freezing.Unlock()
	first := s.froze == nil
	if first {
		if v.table.off() { // another host may have set flags since they were read
			if err := v.whileOpen(func() error { return v.table.reconcile(ctx) }); err != nil {
				return err
			}
		}
		s.froze = make([]uint16, v.table.leaves)
	}
	var changed []store.Leaf
	for leaf := range v.table.leaves {
		if err := ctx.Err(); err != nil {
			return err
		}
		var flags []byte
		var ones uint16
		err := v.whileOpen(func() (err error) {
			flags, ones, err = v.table.grown(leaf, s.froze[leaf], first)
			return err
		})
		if err != nil {
			return err
		}
		if flags == nil {
			continue
		}
		s.froze[leaf] = ones
		changed = append(changed, store.Leaf{Index: leaf, Flags: flags})
		if len(changed) == freezeAtOnce {
			if err := s.store.WriteFrozen(changed); err != nil {
				return err
			}
			changed = changed[:0]
		}
	}
	return s.store.WriteFrozen(changed)
}

// whileOpen looks at the table's memory, which is there until the volume is closed.
func (v *Volume) whileOpen(look func() error) error {
	v.freezes.RLock()
	defer v.freezes.RUnlock()
	if v.closed.Load() {
		return ErrClosed
	}
	return look()
}

// grown is a leaf's flags, and how many are set, if those are more than there were; else nil. A leaf that memory does not
// know is the device's, which is read only if asked for, and leaves nothing in memory.
func (t *table) grown(leaf int64, were uint16, unread bool) (flags []byte, ones uint16, err error) {
	t.mu.Lock()
	known := atomic.LoadUint32(t.memory.state(leaf)) != leafUnread
	if known && t.count[leaf] > were {
		flags, ones = t.flags(leaf), t.count[leaf]
	}
	t.mu.Unlock()
	if known || !unread {
		return flags, ones, nil
	}
	flags = make([]byte, store.LeafFlags)
	if err := t.source(leaf, flags); err != nil {
		return nil, 0, err
	}
	for i := 0; i < len(flags); i += 8 {
		ones += uint16(bits.OnesCount64(binary.LittleEndian.Uint64(flags[i:])))
	}
	if ones == were {
		return nil, ones, nil
	}
	return flags, ones, nil
}
