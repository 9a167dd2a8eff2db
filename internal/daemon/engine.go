package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/launch"
	"github.com/virt-cow/virt-cow/internal/plugin"
)

// engine looks after one engine process: it is started again whenever it ends without having been asked to.
type engine struct {
	d       *Daemon
	volume  string
	client  *api.Engine
	release context.CancelFunc // ends the looking after, not the process
	ctx     context.Context
	ended   chan struct{} // closed when nothing looks after it any more: it was stopped, or never came up

	mu       sync.Mutex
	process  *launch.Process
	ready    bool
	stopping bool
	err      error         // why it is not ready
	changed  chan struct{} // closed and replaced when one of these four changes
}

// How long an engine may take to answer for the first time, which includes the wait for a killed
// predecessor's lock, and to end when asked to, which includes a flush.
const (
	engineUp   = 2 * time.Minute
	engineDown = 2 * time.Minute
)

// steady is the age at which an engine's death is no sign that its successor will die too: that one is started
// at once.
const steady = 10 * time.Second

func (d *Daemon) newEngine(volume string) *engine {
	e := &engine{
		d: d, volume: volume, client: api.NewEngine(d.controlPath(volume)),
		ended: make(chan struct{}), changed: make(chan struct{}),
	}
	e.ctx, e.release = context.WithCancel(d.root)
	return e
}

func (e *engine) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	close(e.changed)
	e.changed = make(chan struct{})
}

// pid is 0 while there is no process.
func (e *engine) pid() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.process == nil {
		return 0
	}
	return e.process.PID
}

// isReady says whether the engine answers, and if it does not, why, as far as that is known.
func (e *engine) isReady() (bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ready, e.err
}

// wait returns once the engine answers, or has ended for good.
func (e *engine) wait(ctx context.Context) error {
	for {
		e.mu.Lock()
		ready, stopping, err, changed := e.ready, e.stopping, e.err, e.changed
		e.mu.Unlock()
		switch {
		case ready:
			return nil
		case stopping && !e.hasEnded(): // somebody gave up waiting for its end
			return fmt.Errorf("engine of volume %s was asked to end and has not: it may be unable to flush, see its log", e.volume)
		case err != nil:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-e.ended:
			if _, err := e.isReady(); err != nil {
				return err
			}
			return fmt.Errorf("engine of volume %s has ended", e.volume)
		case <-changed:
		}
	}
}

// run looks after the process until it is stopped or the daemon ends; p is the process if there is one already.
// A first start that fails is not repeated here: the reconciler does that, with everything else.
func (e *engine) run(p *launch.Process, start func(context.Context) (*launch.Process, error)) {
	defer close(e.ended)
	adopted, wait := p != nil, time.Duration(0)
	for first := true; ; first = false {
		began := time.Now()
		err := e.oneLife(p, start, func() {
			if !first {
				e.d.runsAgain(e)
			}
		})
		p = nil
		if e.over() {
			e.leaveNoneBehind()
			return
		}
		e.set(func() { e.process, e.ready, e.err = nil, false, err })
		if first && !adopted && errors.Is(err, errNotUp) {
			return
		}
		if time.Since(began) > steady {
			wait = 0
		}
		wait = engineBackoff.Next(wait)
		e.d.log.Error().Err(err).Str("volume", e.volume).Dur("again_in", wait).Msg("engine is to be started again")
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

var (
	// errNotUp says that an engine ended, or was silent, before it had answered.
	errNotUp = errors.New("engine does not come up")
	// errEnded says that an engine ended that had answered.
	errEnded = errors.New("engine ended")
)

// oneLife follows one process from its start to its end.
func (e *engine) oneLife(p *launch.Process, start func(context.Context) (*launch.Process, error), up func()) error {
	var err error
	if p == nil {
		if p, err = start(e.ctx); err != nil {
			return fmt.Errorf("%w: volume %s: %w", errNotUp, e.volume, err)
		}
	}
	e.set(func() { e.process = p })
	if err := e.awaitStatus(p); err != nil {
		return err
	}
	e.set(func() { e.ready, e.err = true, nil })
	up()
	select {
	case <-p.Done():
		return fmt.Errorf("%w: volume %s, process %d: %s", errEnded, e.volume, p.PID, p.Why())
	case <-e.ctx.Done():
		return e.ctx.Err()
	}
}

// awaitStatus waits until the process answers on its control socket.
func (e *engine) awaitStatus(p *launch.Process) error {
	deadline := time.After(engineUp)
	for wait := time.Millisecond; ; wait = min(2*wait, 25*time.Millisecond) { // a migration waits for it
		ctx, cancel := context.WithTimeout(e.ctx, 5*time.Second)
		s, err := e.client.Status(ctx)
		cancel()
		switch {
		case err == nil && s.PID == p.PID:
			return nil
		case err == nil: // one that was still on its way up when nobody looked; the next start adopts it
			err = fmt.Errorf("process %d has its socket", s.PID)
		}
		select {
		case <-p.Done():
			return fmt.Errorf("%w: volume %s: %s", errNotUp, e.volume, p.Why())
		case <-e.ctx.Done():
			return e.ctx.Err()
		case <-deadline:
			p.Terminate()
			return fmt.Errorf("%w: volume %s: no answer in %s: %w", errNotUp, e.volume, engineUp, err)
		case <-time.After(wait):
		}
	}
}

// leaveNoneBehind ends a process that was started while stop was called.
func (e *engine) leaveNoneBehind() {
	e.mu.Lock()
	p, stopping := e.process, e.stopping
	e.mu.Unlock()
	if p != nil && stopping {
		p.Terminate()
		<-p.Done()
	}
}

// hasEnded says whether nothing looks after the engine any more.
func (e *engine) hasEnded() bool {
	select {
	case <-e.ended:
		return true
	default:
		return false
	}
}

// runsAgain notes that an engine was started again after it had ended without having been asked to.
func (d *Daemon) runsAgain(e *engine) {
	d.log.Info().Str("volume", e.volume).Int("pid", e.pid()).Msg("engine runs again")
	d.counters.engineRestarts.Add(1)
	if v := d.volumeNamed(e.volume); v != nil {
		d.tell(plugin.EventEngineRestarted, v, nil)
	}
	d.pokeOwner(e.volume)
}

func (e *engine) over() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stopping || e.ctx.Err() != nil
}

// stop has the process flush, close its store and end, and waits for it.
func (e *engine) stop(ctx context.Context) error {
	var p *launch.Process
	e.set(func() { e.stopping, e.ready, p = true, false, e.process })
	defer e.release()
	if p == nil { // it may be about to be started
		e.release()
		select {
		case <-e.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	asking, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err := e.client.Stop(asking); err != nil {
		p.Terminate()
	}
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(engineDown):
		return fmt.Errorf("engine of volume %s (pid %d) does not end: it may be unable to flush, see its log", e.volume, p.PID)
	}
}
