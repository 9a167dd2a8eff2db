package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
)

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
