package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
)

// Config says which plugins are run and how.
type Config struct {
	Dir             string        // of event plugins; those of providers are in providers.d beside it
	Timeout         time.Duration // of one call of an event plugin
	ProviderTimeout time.Duration // of one call of a provider; 0: ten times Timeout
	Host            string        // name of this host; "": what the kernel says
	Version         string        // of virt-cow
	Log             zerolog.Logger
}

// maxAsking is how many calls of Ask and of providers, of each, run plugins at the same time. Others wait.
const maxAsking = 16

// maxError bounds the error in an event, in bytes.
const maxError = 4096

// Runner runs plugins. Its methods may be called at the same time.
type Runner struct {
	config    Config
	asking    chan struct{} // a place for each Ask that runs plugins
	providing chan struct{} // a place for each provider that runs
	ended     context.Context
	end       context.CancelCauseFunc // kills all that runs

	failures atomic.Uint64
	vetoes   atomic.Uint64

	mu      sync.Mutex
	closed  bool
	told    queue
	refused map[string]string // why a file is not run, as it was logged last
	calls   sync.WaitGroup    // of all that run plugins; Add under mu and while not closed
}

// New makes a Runner. Close it. Descriptors of this process that programs it runs would inherit are closed to them
// from now on.
func New(c Config) *Runner {
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	if c.ProviderTimeout <= 0 {
		c.ProviderTimeout = 10 * c.Timeout
	}
	if c.Host == "" {
		c.Host, _ = os.Hostname()
	}
	r := &Runner{
		config: c, asking: make(chan struct{}, maxAsking), providing: make(chan struct{}, maxAsking), refused: map[string]string{},
	}
	r.told.busy = map[string]bool{}
	r.ended, r.end = context.WithCancelCause(context.Background())
	if err := keepDescriptors(); err != nil {
		c.Log.Warn().Err(err).Msg("plugins may inherit open files")
	}
	return r
}

// ProvidersDir is the folder of providers beside a folder of event plugins.
func ProvidersDir(dir string) string {
	return filepath.Join(filepath.Dir(filepath.Clean(dir)), "providers.d")
}

// Failures counts the calls that did not go as they should: could not be run, took too long, wrote too much, died
// of a signal, or failed where failing has no meaning; and the events that nobody was told of.
func (r *Runner) Failures() uint64 { return r.failures.Load() }

// Vetoes counts what Ask was answered with no, or had to take for one.
func (r *Runner) Vetoes() uint64 { return r.vetoes.Load() }

// Ask asks all event plugins, in their order, whether something may be done. It returns nil if none objects, a
// *VetoError for the first that does or that gives no answer, ErrClosed, or the context's error.
func (r *Runner) Ask(ctx context.Context, e Event) error {
	leave, err := r.enter(ctx, r.asking)
	if err != nil {
		return fmt.Errorf("asking plugins: %s of volume %s: %w", e.Event, e.Volume.Name, err)
	}
	defer leave()
	ctx, stop := r.bound(ctx)
	defer stop()
	list, err := List(r.config.Dir)
	if err != nil {
		return r.veto(r.config.Dir, e, err.Error())
	}
	if len(list) == 0 {
		return nil
	}
	doc, err := r.encode(e, nil)
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.Err != nil {
			r.logRefused(p)
			if p.Off {
				continue
			}
			r.failures.Add(1)
			return r.veto(p.Name, e, p.Err.Error())
		}
		said, err := r.runEvent(ctx, p, e.Event, doc)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return fmt.Errorf("asking plugin %s: %s of volume %s: %w", p.Name, e.Event, e.Volume.Name, context.Cause(ctx))
		case exited(err) > 0:
			if said == "" {
				said = err.Error()
			}
			return r.veto(p.Name, e, said)
		default:
			r.failed(p, e.Event, err)
			return r.veto(p.Name, e, err.Error())
		}
	}
	return nil
}

func (r *Runner) veto(plugin string, e Event, reason string) error {
	r.vetoes.Add(1)
	v := &VetoError{Plugin: plugin, Event: e.Event, Volume: e.Volume.Name, Reason: reason}
	r.config.Log.Warn().Str("plugin", plugin).Str("event", e.Event).Str("volume", e.Volume.Name).Str("domain", e.Domain.Name).
		Str("reason", reason).Msg("plugin veto")
	return v
}

// enter waits for a place among those that run plugins. What it returns gives the place back.
func (r *Runner) enter(ctx context.Context, places chan struct{}) (func(), error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, ErrClosed
	}
	r.calls.Add(1)
	r.mu.Unlock()
	select {
	case places <- struct{}{}:
		return func() { <-places; r.calls.Done() }, nil
	case <-ctx.Done():
		r.calls.Done()
		return nil, context.Cause(ctx)
	case <-r.ended.Done():
		r.calls.Done()
		return nil, ErrClosed
	}
}

// bound is a context that ends with ctx or with the Runner.
func (r *Runner) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.ended, func() { cancel(ErrClosed) })
	return ctx, func() { stop(); cancel(nil) }
}

// encode makes the document plugins read.
func (r *Runner) encode(e Event, s *store) ([]byte, error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if len(e.Error) > maxError {
		e.Error = e.Error[:maxError]
	}
	id, err := uuid.NewRandom()
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(document{
		Schema: Schema, ID: id.String(), Host: r.config.Host, Version: r.config.Version, Event: e, Store: s,
	})
	return append(b, '\n'), err
}

// runEvent calls an event plugin. It returns the last line that it wrote on stderr, else on stdout.
func (r *Runner) runEvent(ctx context.Context, p Entry, event string, doc []byte) (string, error) {
	stdout, stderr := r.logLines(p, event, "stdout"), r.logLines(p, event, "stderr")
	c := call{
		plugin: p, event: event, stdin: doc, timeout: r.config.Timeout,
		stdout: output{stdout, maxOutput}, stderr: output{stderr, maxOutput},
	}
	err := c.run(ctx)
	r.endLines(p, event, stdout, stderr)
	if errors.Is(err, fs.ErrNotExist) && absent(p.File) {
		return "", nil // removed since the folder was read
	}
	if stderr.last != "" {
		return stderr.last, err
	}
	return stdout.last, err
}

func (r *Runner) logLines(p Entry, event, stream string) *lines {
	return &lines{log: func(line string) {
		r.config.Log.Info().Str("plugin", p.Name).Str("event", event).Str("stream", stream).Msg(line)
	}}
}

func (r *Runner) endLines(p Entry, event string, all ...*lines) {
	more := 0
	for _, l := range all {
		l.end()
		more += l.more
	}
	if more > 0 {
		r.config.Log.Info().Str("plugin", p.Name).Str("event", event).Int("lines", more).Msg("plugin wrote more than is logged")
	}
}

func (r *Runner) failed(p Entry, event string, err error) {
	r.failures.Add(1)
	r.config.Log.Error().Str("plugin", p.Name).Str("event", event).Err(err).Msg("plugin failed")
}

// logRefused says once why a file is not run.
func (r *Runner) logRefused(p Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if why := p.Err.Error(); r.refused[p.Name] != why {
		r.refused[p.Name] = why
		r.config.Log.Warn().Str("plugin", p.Name).Err(p.Err).Msg("plugin is not run")
	}
}

// exited is the exit code of a plugin that ended by itself, -1 for any other end.
func exited(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}
