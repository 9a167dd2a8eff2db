package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// own takes the store and its exception cache. recovered: the cache is that of an engine of this boot
// that died.
func (v *Volume) own(ctx context.Context, o Options) (recovered bool, err error) {
	leaves := v.st.Leaves()
	// Since the store was opened there was time for others, by another path or on another host.
	if err := v.st.Reread(); err != nil {
		return false, err
	}
	if v.info.ReadOnly {
		return false, v.onlyRead(o)
	}
	if owner := v.st.Header().Owner; o.Incoming != uuid.Nil && (owner == nil || owner.Host != o.Owner.Host) {
		return v.receive(o)
	}
	if h := v.st.Header(); o.Epoch != 0 && h.Epoch != o.Epoch {
		return false, fmt.Errorf("%s: %w: the guest here has it since epoch %d, it is %d now: end this guest, it must not go on with it", v.st.Name(),
			ErrMovedOn, o.Epoch, h.Epoch)
	}
	me := o.Owner
	if me.Instance = uuid.New(); me.Since == 0 {
		me.Since = time.Now().Unix()
	}
	// The cache is there before the owner record that names its instance: an owner record without its
	// cache then always means that the cache was lost. Another host's owner leaves everything as it is.
	owner := v.st.Header().Owner
	dead := isDead(v.st.Header(), o.Dead)
	if owner == nil || dead || owner.Host == me.Host && owner.Boot != me.Boot {
		if v.cache, err = createCache(o.CachePath, v.st.Header(), me.Instance, leaves); err != nil {
			return false, err
		}
	}
	resumed := false
	if dead {
		proof := *o.Dead
		proof.Boot = owner.Boot
		if err = v.st.Takeover(ctx, me, proof, o.Claiming); err == nil {
			letNotice(o.Claiming)
		}
	} else {
		resumed, err = v.st.Acquire(ctx, me, o.Claiming)
	}
	if err != nil {
		// The device may have the new owner record all the same: then its cache must be there.
		if v.cache != nil {
			refused := errors.Is(err, store.ErrOwned) || errors.Is(err, store.ErrClaimed) || errors.Is(err, store.ErrNotDead) || errors.Is(err, store.ErrGranted)
			err = errors.Join(err, v.cache.close(refused))
		}
		return false, err
	}
	if resumed {
		if recovered, err = v.recover(o, leaves); err != nil {
			return false, err
		}
	}
	v.tellOfFlushes()
	return recovered, nil
}

// letNotice waits until an owner that was declared dead and lives has looked at the header, if its guest writes: what is written
// here must not be overwritten by it.
func letNotice(how store.Claiming) {
	wait := how.Wait
	if wait == 0 {
		wait = time.Second
	}
	time.Sleep(2 * wait)
}

// isDead says whether the header's owner is the one that is proven dead.
func isDead(h *cowfmt.Header, d *store.Dead) bool {
	o := h.Owner
	return d != nil && o != nil && o.Host == d.Host && o.Instance == d.Instance && h.Epoch == d.Epoch && (d.Boot == uuid.Nil || d.Boot == o.Boot)
}

// tellOfFlushes has a failed flush noted in the exception cache, for a successor.
func (v *Volume) tellOfFlushes() {
	for _, dev := range []blockdev.Device{v.st.Device(), v.data} {
		if l, ok := dev.(*latch); ok {
			l.tell = v.cache.setFlushFailed
		}
	}
}

// flushFailed says whether a flush failed in the engine that left the exception cache; an error, unless the loss is accepted.
func (v *Volume) flushFailed(acceptLoss bool) (bool, error) {
	if atomic.LoadUint32(v.cache.flushFailed()) == 0 {
		return false, nil
	}
	if !acceptLoss {
		err := fmt.Errorf("%s: a flush failed while it was open: %w (--accept-loss goes on; check the guest's file systems)", v.st.Name(), ErrLoss)
		return true, errors.Join(err, v.cache.close(false))
	}
	return true, nil
}

// onlyRead opens the volume for reading.
func (v *Volume) onlyRead(o Options) (err error) {
	leaves := v.st.Leaves()
	// What another host wrote with its cache on may still be in its memory only.
	if err := v.st.Elsewhere(o.Owner.Host); err != nil && o.CacheMode != cowfmt.CacheOff {
		return err
	}
	if owner := v.st.Header().Owner; owner != nil && owner.Host == o.Owner.Host && owner.Boot == o.Owner.Boot {
		return fmt.Errorf("%s: its engine died in this boot: serve it for writing once before it is read", v.st.Name())
	}
	v.cache, err = createCache("", nil, uuid.Nil, leaves)
	return err
}

// recover takes over what a dead engine of this boot left in memory.
func (v *Volume) recover(o Options, leaves int64) (recovered bool, err error) {
	h := v.st.Header()
	v.cache, err = openCache(o.CachePath, h, h.Owner.Instance, leaves)
	switch {
	case errors.Is(err, errNoCache) && h.Cache == cowfmt.CacheOff: // every flag was durable before its write was acknowledged
		return false, v.startAnew(o.CachePath, leaves)
	case errors.Is(err, errNoCache) && !o.AcceptLoss:
		return false, fmt.Errorf("%s: its engine died in this boot and the exception cache %s is gone or not its own: %w (--accept-loss goes on)", v.st.Name(), o.CachePath, ErrLoss)
	case errors.Is(err, errNoCache):
		return false, v.startAnew(o.CachePath, leaves)
	case err != nil:
		return false, err
	}
	failed, err := v.flushFailed(o.AcceptLoss)
	if err != nil || !failed {
		return !failed, err
	}
	// Flags that were not committed are dropped, as a power cut would: their data may be what was lost.
	if err := v.cache.close(false); err != nil {
		return false, err
	}
	return false, v.startAnew(o.CachePath, leaves)
}

// startAnew goes on with an empty cache after a loss that was accepted. The instance is a new one, or an
// old cache that turns up somewhere would be taken for this one's.
func (v *Volume) startAnew(path string, leaves int64) (err error) {
	instance := uuid.New()
	if v.cache, err = createCache(path, v.st.Header(), instance, leaves); err != nil {
		return err
	}
	err = v.st.Update(func(h *cowfmt.Header) {
		owner := *h.Owner
		owner.Instance = instance
		h.Owner = &owner
	})
	if err != nil {
		return errors.Join(err, v.cache.close(false))
	}
	return nil
}
