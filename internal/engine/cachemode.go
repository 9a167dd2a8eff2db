package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// # The exception cache, off and on
//
// The header says it first when the cache goes on, last when it goes off: where it says off every flag was durable before
// its write was acknowledged, so that an exception cache which is missing then is no loss.
//
// off: from here on zeros are read again and new flags are durable before their write is acknowledged; writes that began
// before are drained; what they left in memory is committed; header. Reads that began before may end later: they
// overlap with whatever another host then writes.
//
// on: nobody else writes any more. What memory has of leaves is compared with the device, since another host may have
// set flags in them, and a leaf that is just being read is read again; header; zeros are trusted. Every request looks at the
// mode before it looks at the table.

// CacheMode says whether the exception cache is on.
func (v *Volume) CacheMode() cowfmt.CacheMode { return cowfmt.CacheMode(v.mode.Load()) }

// CacheSince is when the cache was switched last, zero if not since it was opened.
func (v *Volume) CacheSince() time.Time {
	if at := v.switched.Load(); at != 0 {
		return time.Unix(at, 0)
	}
	return time.Time{}
}

// SetCache switches the exception cache while the guest goes on; it returns once the header says so, durably. Off stops
// hydration, on lets it go on as it was wanted. On is refused with ErrGranted while another host has the volume open:
// it will be on once that is over.
func (v *Volume) SetCache(ctx context.Context, mode cowfmt.CacheMode) error {
	if v.info.ReadOnly {
		return fmt.Errorf("%s: the exception cache of a volume that is only read can't be switched", v.info.Name)
	}
	return v.moving.call(ctx, func() error {
		if err := v.moving.undivided("switch the exception cache of"); err != nil {
			if v.moving.granted() {
				v.moving.want(mode)
			}
			if mode == cowfmt.CacheOff && v.CacheMode() == cowfmt.CacheOff {
				return nil // it is, and will stay so
			}
			return err
		}
		v.moving.want(mode)
		if mode == cowfmt.CacheOff {
			return v.cacheOff()
		}
		return v.cacheOn(ctx)
	})
}

func (v *Volume) setMode(m cowfmt.CacheMode) {
	v.mode.Store(uint32(m))
	if v.table != nil {
		v.table.mode.Store(uint32(m))
	}
}

func (v *Volume) switchedTo(m cowfmt.CacheMode) {
	v.switched.Store(time.Now().Unix())
	v.log.Info().Str("cache", m.String()).Msg("exception cache switched")
}

// cacheOff switches the cache off. After an error from the header it is off all the same: the device may say so already.
func (v *Volume) cacheOff() error {
	if v.CacheMode() == cowfmt.CacheOff && v.st.Header().Cache == cowfmt.CacheOff {
		return nil
	}
	was := v.CacheMode()
	v.setMode(cowfmt.CacheOff)
	v.haltHydration() // it can't begin again
	err := v.drainWriters()
	if err == nil {
		v.undrain()
		err = v.commit.commit(v.table)
	} else {
		v.undrain()
	}
	if err != nil {
		v.setMode(was)
		v.resumeHydration()
		return fmt.Errorf("exception cache off: %w", err)
	}
	if err := v.st.SetCache(cowfmt.CacheOff); err != nil {
		return fmt.Errorf("exception cache off: %w", err)
	}
	if was != cowfmt.CacheOff {
		v.switchedTo(cowfmt.CacheOff)
	}
	return nil
}

// cacheOn switches the cache on; this host is the owner, and alone.
func (v *Volume) cacheOn(ctx context.Context) error {
	if v.CacheMode() != cowfmt.CacheOn || v.st.Header().Cache != cowfmt.CacheOn {
		if v.table != nil && !staleTable {
			if err := v.table.reconcile(ctx); err != nil {
				return fmt.Errorf("exception cache on: %w", err)
			}
		}
		if err := v.st.SetCache(cowfmt.CacheOn); err != nil {
			return fmt.Errorf("exception cache on: %w", err)
		}
		was := v.CacheMode()
		v.setMode(cowfmt.CacheOn)
		if was != cowfmt.CacheOn {
			v.switchedTo(cowfmt.CacheOn)
		}
	}
	v.resumeHydration()
	return nil
}
