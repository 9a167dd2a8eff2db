package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/handover"
)

// drainWait bounds the wait for requests to leave the target where a hand-over or a cache switch needs it.
const drainWait = 60 * time.Second

// errGiven is what a guest gets that still runs where its volume no longer is.
var errGiven = fmt.Errorf("volume was handed over to another host: %w", unix.EIO)

// rulesOf is what the gate does in a state of a hand-over. FLUSH passes in all of them: where nothing may be written it
// flushes the device and writes nothing; QEMU at the source sends one late.
func rulesOf(s handover.State) (r rules, refusal error) {
	switch {
	case s.MayWrite():
		return rules{}, nil
	case s == handover.Yield:
		return rules{reading: hold, writing: hold}, nil
	case s == handover.Given:
		return rules{reading: refuse, writing: refuse}, errGiven
	}
	return rules{writing: hold}, nil
}

// guard makes the gate do what a state asks for.
func (v *Volume) guard(s handover.State) {
	r, refusal := rulesOf(s)
	if s.MayWrite() {
		v.quiet.Store(false)
	}
	v.setRules(r, refusal)
	if !s.MayWrite() {
		v.quiet.Store(true)
	}
}

func (v *Volume) setRules(r rules, refusal error) {
	g := &v.gate
	g.mu.Lock()
	if v.lost.Load() == nil {
		g.rules, g.refusal = r, refusal
	}
	s := g.sort()
	g.mu.Unlock()
	v.letGo(s)
}

// drainWriters holds writers and waits until none is inside. What it did before is for the caller to restore.
func (v *Volume) drainWriters() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainWait)
	defer cancel()
	g := &v.gate
	g.mu.Lock()
	if g.rules[writing] == pass {
		g.rules[writing] = hold
	}
	d := g.await([classes]bool{writing: true})
	g.mu.Unlock()
	select {
	case <-d.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: its writes took more than %v to end", v.info.Name, drainWait)
	}
}

// undrain lets writers in again, in a state that lets them.
func (v *Volume) undrain() { v.guard(v.moving.now()) }

// waiting is how many requests a hand-over holds, and since when the oldest waits.
func (v *Volume) waiting() (n int, oldest time.Time) {
	g := &v.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, h := range g.held {
		if g.rules[classOf(h.r.Op)] != hold {
			continue
		}
		if n++; n == 1 {
			oldest = h.at
		}
	}
	return n, oldest
}

// refuseHeld refuses the writes a hand-over holds that came before a moment.
func (v *Volume) refuseHeld(before time.Time, err error) (n int) {
	g := &v.gate
	g.mu.Lock()
	var s sorted
	still := g.held[:0]
	for _, h := range g.held {
		if c := classOf(h.r.Op); c == writing && g.rules[c] == hold && h.at.Before(before) {
			s.refused, s.refusal = append(s.refused, h.r), err
		} else {
			still = append(still, h)
		}
	}
	clear(g.held[len(still):])
	g.held = still
	g.mu.Unlock()
	v.letGo(s)
	return len(s.refused)
}

// shutOut ends the volume's life here if its LUN has refused a write because another host took this one's registration away.
func (v *Volume) shutOut(err error) {
	if errors.Is(err, unix.EBADE) {
		v.lose(fmt.Errorf("the LUN refuses this host's writes: another host has shut it out by a persistent reservation: %w", err))
	}
}

// lose ends the volume's life here: another host has taken its store. All that comes fails, and nothing is written.
func (v *Volume) lose(err error) {
	err = fmt.Errorf("%w (%w)", err, unix.EIO)
	if !v.lost.CompareAndSwap(nil, &err) {
		return
	}
	v.quiet.Store(true)
	v.log.Error().Err(err).Msg("the volume is lost to this host: every request fails from now on")
	g := &v.gate
	g.mu.Lock()
	g.rules, g.refusal = rules{refuse, refuse, refuse}, err
	s := g.sort()
	g.mu.Unlock()
	v.letGo(s)
	v.moving.wake()
}
