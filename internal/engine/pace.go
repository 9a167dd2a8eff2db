package engine

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// pace limits hydration to so many bytes a second. A new limit holds at once, for those too who wait
// because of the old one.
type pace struct {
	mu      sync.Mutex
	bytes   int64 // 0: no limit
	limiter *rate.Limiter
	changed chan struct{}
}

func newPace() *pace {
	return &pace{limiter: rate.NewLimiter(rate.Inf, hydrateCopy), changed: make(chan struct{})}
}

func (p *pace) set(bytes int64) {
	bytes = max(bytes, 0)
	p.mu.Lock()
	defer p.mu.Unlock()
	if bytes == p.bytes {
		return
	}
	limit := rate.Limit(bytes)
	if bytes == 0 {
		limit = rate.Inf
	}
	p.bytes, p.limiter = bytes, rate.NewLimiter(limit, hydrateCopy)
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pace) get() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}

// wait returns when n bytes, at most hydrateCopy, may be copied, or when the context ends.
func (p *pace) wait(ctx context.Context, n int) error {
	for {
		p.mu.Lock()
		limiter, changed := p.limiter, p.changed
		p.mu.Unlock()
		turn := limiter.ReserveN(time.Now(), n)
		delay := turn.Delay()
		if delay == 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
			return ctx.Err()
		case <-changed:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			turn.Cancel()
			return ctx.Err()
		}
	}
}
