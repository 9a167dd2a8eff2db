package main

import (
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pulse watches a guest's console log for heartbeats (`guest beat`) from outside: a guest that stands still does not know.
type pulse struct {
	quit chan struct{}
	once sync.Once
	done sync.WaitGroup

	mu   sync.Mutex
	last [256]time.Time
	long [256]time.Duration
	n    [256]int
}

const feelEvery = 500 * time.Microsecond // the error of a gap

// feel begins at the log's end. Call stop.
func feel(path string) (*pulse, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	at, err := f.Seek(0, 2)
	if err != nil {
		f.Close()
		return nil, err
	}
	p := &pulse{quit: make(chan struct{})}
	p.done.Go(func() {
		defer f.Close()
		// A thread of its own, ahead of all others where that is allowed: it does next to nothing, but must not be late.
		runtime.LockOSThread()
		unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}, 0)
		buf := make([]byte, 4096)
		for {
			select {
			case <-p.quit:
				return
			default:
			}
			n, _ := f.ReadAt(buf, at)
			at += int64(n)
			p.take(buf[:n])
			// Not time.Sleep, whose end another thread sees to.
			ts := unix.NsecToTimespec(int64(feelEvery))
			unix.Nanosleep(&ts, nil)
		}
	})
	return p, nil
}

func (p *pulse) take(b []byte) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range b {
		if p.n[c]++; p.n[c] > 1 {
			p.long[c] = max(p.long[c], now.Sub(p.last[c]))
		}
		p.last[c] = now
	}
}

// beats is how many came.
func (p *pulse) beats(c byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n[c]
}

// gap is the longest time between two, in milliseconds.
func (p *pulse) gap(c byte) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return milliseconds(p.long[c])
}

func (p *pulse) stop() {
	p.once.Do(func() { close(p.quit) })
	p.done.Wait()
}
