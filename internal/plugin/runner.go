package plugin

import (
	"context"
	"encoding/json"
	"os"
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
