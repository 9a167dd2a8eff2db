package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// How long a snapshot's store may take to be opened: as long as saving a chunk, but not less than an engine that was killed may
// hold it, until its last write has landed, nor so long that this engine would be taken for one that does not come up.
const (
	openLeast = 10 * time.Second
	openMost  = time.Minute
)

// opening is what came of an attempt to open a snapshot's store.
type opening struct {
	on    *store.Snapshot
	close func() error
	err   error
}

// openInTime opens the store of an entry, for writing. One that hangs is waited for so long; should it go on, it is closed.
func (v *Volume) openInTime(ctx context.Context, e *cowfmt.StackEntry) opening {
	limit := v.stack.openWait
	if limit == 0 {
		limit = min(max(saveTimeoutOf(e), openLeast), openMost)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s: no answer in %v", e.Locator.Address, limit))
	defer cancel()
	done := make(chan opening, 1)
	go func() { done <- v.openEntryStore(ctx, *e) }()
	select {
	case o := <-done:
		return o
	case <-ctx.Done():
	}
	go func() {
		if o := <-done; o.err == nil {
			if err := o.close(); err != nil {
				v.log.Warn().Err(err).Stringer("snapshot", e.UUID).Msg("close a snapshot that took too long to open")
			}
		}
	}()
	return opening{err: context.Cause(ctx)}
}

// openEntryStore does it, in whatever time.
func (v *Volume) openEntryStore(ctx context.Context, e cowfmt.StackEntry) (o opening) {
	if o.on, o.close, o.err = v.stack.open(ctx, e); o.err != nil {
		return o
	}
	o.err = o.on.Belongs(v.st.Header(), e)
	if o.err == nil {
		// A flag that is found set may be of an engine that was killed before its flush, and must not go with the next power
		// cut: the guest's write that it lets pass is on another device.
		o.err = o.on.Device().Flush()
	}
	if o.err != nil {
		o.err = errors.Join(o.err, o.close())
	}
	return o
}
