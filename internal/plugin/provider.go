package plugin

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// Provider makes, finds and deletes stores with a site's own commands. Its methods return ErrProvider with what the
// provider said last, and may be repeated: create of what exists, and delete of what does not, succeed.
type Provider struct {
	name   string
	path   string // as it is in the folder
	runner *Runner
}

// Provider finds a provider by its name, the name of its file. It returns ErrNoProvider or ErrRefused.
func (r *Runner) Provider(name string) (*Provider, error) {
	if err := validName(name); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoProvider, err)
	}
	return r.ProviderAt(filepath.Join(ProvidersDir(r.config.Dir), name))
}

// ProviderAt is the provider at an absolute path, wherever that is.
func (r *Runner) ProviderAt(path string) (*Provider, error) {
	p := &Provider{name: filepath.Base(path), path: path, runner: r}
	_, err := p.entry()
	return p, err
}

// entry checks the file anew: it may have been changed since.
func (p *Provider) entry() (Entry, error) {
	e := examine(p.path)
	if absent(p.path) {
		return e, fmt.Errorf("%w: %s: install it as %s", ErrNoProvider, p.name, p.path)
	}
	return e, e.Err
}

// Create makes a store for a volume and returns its path. It has at least size bytes, which is checked by what the
// provider says only.
func (p *Provider) Create(ctx context.Context, name string, size int64) (string, error) {
	if size <= 0 {
		return "", fmt.Errorf("provider %s: create %s: a size of %d bytes", p.name, name, size)
	}
	a, err := p.call(ctx, OperationCreate, &store{Name: name, Size: size})
	if err != nil {
		return "", err
	}
	if err = checkPath(a.Path); err == nil && a.Size < size {
		err = fmt.Errorf("asked for %d bytes it made %d", size, a.Size)
	}
	if err != nil {
		return "", p.wrong(OperationCreate, name, err)
	}
	return a.Path, nil
}

// Delete deletes the store of a volume, which Create or Resolve said is at path.
func (p *Provider) Delete(ctx context.Context, name, path string) error {
	_, err := p.call(ctx, OperationDelete, &store{Name: name, Path: path})
	return err
}

// Resolve finds the store of a volume. It returns ErrNotFound if the provider knows that there is none.
func (p *Provider) Resolve(ctx context.Context, name string) (string, error) {
	a, err := p.call(ctx, OperationResolve, &store{Name: name})
	if err != nil {
		return "", err
	}
	if a.Missing {
		return "", fmt.Errorf("provider %s: resolve %s: %w", p.name, name, ErrNotFound)
	}
	if err := checkPath(a.Path); err != nil {
		return "", p.wrong(OperationResolve, name, err)
	}
	return a.Path, nil
}

// Capabilities asks a provider what it is.
func (p *Provider) Capabilities(ctx context.Context) (*Capabilities, error) {
	a, err := p.call(ctx, OperationCapabilities, nil)
	if err != nil {
		return nil, err
	}
	switch {
	case a.Kind != "provider":
		return nil, p.wrong(OperationCapabilities, "", fmt.Errorf("its kind is %q, not provider", a.Kind))
	case a.Schema < Schema:
		return nil, p.wrong(OperationCapabilities, "", fmt.Errorf("it knows schema %d, not %d", a.Schema, Schema))
	}
	return &Capabilities{Schema: a.Schema, Description: printable([]byte(a.Description))}, nil
}

// wrong counts and wraps what went wrong.
func (p *Provider) wrong(operation, name string, err error) error {
	p.runner.failed(Entry{Name: p.name}, operation, err)
	return fmt.Errorf("%w: %s: %w", ErrProvider, p.what(operation, name), err)
}

func (p *Provider) what(operation, name string) string {
	return strings.TrimSpace(p.name + ": " + operation + " " + name)
}

// call runs one operation; s is nil for one of none.
func (p *Provider) call(ctx context.Context, operation string, s *store) (*answer, error) {
	name := ""
	if s != nil {
		name = s.Name
		if err := cowfmt.ValidName(name); err != nil {
			return nil, fmt.Errorf("provider %s: %s: %w", p.name, operation, err)
		}
	}
	r := p.runner
	leave, err := r.enter(ctx, r.providing)
	if err != nil {
		return nil, fmt.Errorf("provider %s: %w", p.what(operation, name), err)
	}
	defer leave()
	ctx, stop := r.bound(ctx)
	defer stop()
	e, err := p.entry()
	if err != nil {
		return nil, fmt.Errorf("provider %s: %w", p.what(operation, name), err)
	}
	doc, err := r.encode(Event{Event: operation}, s)
	if err != nil {
		return nil, err
	}
	var stdout bytes.Buffer
	stderr := r.logLines(e, operation, "stderr")
	c := call{
		plugin: e, event: operation, stdin: doc, timeout: r.config.ProviderTimeout,
		stdout: output{&stdout, maxAnswer}, stderr: output{stderr, maxOutput},
	}
	err = c.run(ctx)
	r.endLines(e, operation, stderr)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("provider %s: %w", p.what(operation, name), context.Cause(ctx))
	}
	if exited(err) > 0 && stderr.last != "" {
		err = fmt.Errorf("%s (%w)", stderr.last, err)
	}
	if err != nil {
		return nil, p.wrong(operation, name, err)
	}
	if operation == OperationDelete && len(bytes.TrimSpace(stdout.Bytes())) == 0 {
		return &answer{}, nil // there is nothing to say
	}
	a, err := parseAnswer(stdout.Bytes())
	if err != nil {
		return nil, p.wrong(operation, name, err)
	}
	return a, nil
}
