package engine

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/virt-cow/virt-cow/internal/store"
)

// refresh reads a leaf from the device and takes over the ones in it: with the cache off another host
// may have set them.
func (t *table) refresh(leaf int64) error {
	if !t.st.LeafReady(leaf) { // as far as the header was read
		if err := t.st.Reread(); err != nil {
			return err
		}
	}
	return t.read(leaf)
}

// reconcile makes this host's knowledge of all leaves that it read while the cache was off good again: it takes over the ones
// that another host has set meanwhile, and finds those that are in this host's memory only, to be committed. Nobody else may
// be writing the table.
func (t *table) reconcile(ctx context.Context) error {
	t.mu.Lock()
	t.outdated++
	t.mu.Unlock()
	var reads errgroup.Group
	reads.SetLimit(reconcileAtOnce)
	for leaf := range t.leaves {
		if atomic.LoadUint32(t.memory.state(leaf)) == leafUnread {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		reads.Go(func() error {
			var flags [store.LeafFlags]byte
			if err := t.st.ReadLeaf(leaf, flags[:]); err != nil {
				return err
			}
			t.mu.Lock()
			defer t.mu.Unlock()
			if err := t.merge(leaf, flags[:]); err != nil {
				return err
			}
			if _, going := t.going[leaf]; !going && !bytes.Equal(t.flags(leaf), flags[:]) {
				t.dirty[leaf] = struct{}{}
				t.countUnsaved()
			}
			return nil
		})
	}
	return errors.Join(reads.Wait(), ctx.Err())
}

// reconcileAtOnce bounds how many leaves are read at a time.
const reconcileAtOnce = 16
