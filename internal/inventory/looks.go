package inventory

import (
	"sync"
	"time"
)

// looks are looks at paths that nobody waits for longer than lookWait: one on a file system that hangs must hold up no
// volume but its own. Such a path costs one goroutine and one thread, however often it is asked for.
type looks struct {
	mu    sync.Mutex
	going map[string]*look
	at    func(path string) (thing, bool) // thingAt, but in tests
}

// look is a call of thingAt that has not returned.
type look struct {
	began time.Time
	done  chan struct{}
	at    thing
	is    bool
}

const lookWait = 2 * time.Second

// thingAt is false too for what can't be found out in time.
func (l *looks) thingAt(path string) (thing, bool) {
	l.mu.Lock()
	x := l.going[path]
	if x == nil {
		x = &look{began: time.Now(), done: make(chan struct{})}
		if l.going == nil {
			l.going = map[string]*look{}
		}
		l.going[path] = x
		at := l.at
		if at == nil {
			at = thingAt
		}
		go func() {
			x.at, x.is = at(path)
			close(x.done)
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.going, path)
		}()
	}
	l.mu.Unlock()
	select {
	case <-x.done:
		return x.at, x.is
	case <-time.After(lookWait - time.Since(x.began)): // at once, for one that hangs already
		return thing{}, false
	}
}

// sameThing is sameThing for paths of which one may hang.
func (l *looks) sameThing(a, b string) bool {
	if a == b {
		return true
	}
	ta, ok := l.thingAt(a)
	if !ok {
		return false
	}
	tb, ok := l.thingAt(b)
	return ok && ta == tb
}
