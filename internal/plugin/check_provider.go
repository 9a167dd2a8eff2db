package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"
)

// cleanup bounds the deletion of what a check made.
const cleanup = 5 * time.Minute

// provider exercises a provider with stores of scratch names, which it deletes whatever happens.
func (k *checker) provider(ctx context.Context) {
	p := &Provider{name: k.entry.Name, path: k.entry.File, runner: k.runner}
	name, other := scratch(), scratch()
	defer k.clean(ctx, p, name, other)

	c, err := p.Capabilities(ctx)
	if err == nil {
		k.report("capabilities", nil, fmt.Sprintf("schema %d, %q", c.Schema, c.Description))
	} else {
		k.report("capabilities", err, "")
	}
	k.refuses(ctx, "an unknown operation", "no-such-operation", k.document(Event{Event: "no-such-operation"}, &store{Name: name}))
	for _, what := range slices.Sorted(maps.Keys(garbage)) {
		k.refuses(ctx, what, OperationCreate, garbage[what])
	}
	k.missing(ctx, p, "resolve of what is not there", name)

	start := time.Now()
	path, err := p.Create(ctx, name, k.config.Size)
	k.report("create", err, path+", "+took(start))
	if err != nil {
		return
	}
	k.report("what it made is there and large enough", large(path, k.config.Size), "")
	k.same("create again: the same path", path, func() (string, error) { return p.Create(ctx, name, k.config.Size) })
	k.same("resolve: the same path", path, func() (string, error) { return p.Resolve(ctx, name) })
	k.same("resolve, a later schema with more fields: the same path", path, func() (string, error) {
		return k.futureResolve(ctx, name)
	})
	k.larger(ctx, p, name)
	k.otherPath(ctx, p, name, path)
	k.together(ctx, p, other)
	k.report("delete", p.Delete(ctx, name, path), "")
	k.report("delete again", p.Delete(ctx, name, path), "")
	k.missing(ctx, p, "resolve after delete", name)
	k.killed(ctx, p, name)
}

// refuses wants an exit code other than 0.
func (k *checker) refuses(ctx context.Context, what, operation string, doc []byte) {
	_, said, err := k.call(ctx, operation, doc, k.runner.config.ProviderTimeout)
	switch {
	case exited(err) > 0:
		err = nil
	case err == nil:
		err = errors.New("exit 0: it claims to have done something")
	}
	k.report(what+": refused", err, said)
}

func (k *checker) missing(ctx context.Context, p *Provider, what, name string) {
	path, err := p.Resolve(ctx, name)
	switch {
	case errors.Is(err, ErrNotFound):
		err = nil
	case err == nil:
		err = fmt.Errorf("it says that it is %s", path)
	}
	k.report(what+`: {"missing":true}`, err, "")
}

func (k *checker) same(what, path string, do func() (string, error)) {
	got, err := do()
	if err == nil && got != path {
		err = fmt.Errorf("it is %s now, and was %s", got, path)
	}
	k.report(what, err, "")
}

func (k *checker) futureResolve(ctx context.Context, name string) (string, error) {
	doc := k.future(Event{Event: OperationResolve}, &store{Name: name})
	out, said, err := k.call(ctx, OperationResolve, doc, k.runner.config.ProviderTimeout)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, said)
	}
	a, err := parseAnswer(out)
	if err != nil {
		return "", err
	}
	return a.Path, nil
}

// larger wants that a store which exists is not passed off as a larger one.
func (k *checker) larger(ctx context.Context, p *Provider, name string) {
	path, err := p.Create(ctx, name, 2*k.config.Size)
	detail := "refused"
	if err == nil {
		detail, err = "grown", large(path, 2*k.config.Size)
	} else if errors.Is(err, ErrProvider) {
		err = nil
	}
	k.report("create of twice the size: refused, or grown", err, detail)
}

// otherPath wants that in doubt nothing is deleted.
func (k *checker) otherPath(ctx context.Context, p *Provider, name, path string) {
	err := p.Delete(ctx, name, path+"-another")
	if err == nil {
		err = errors.New("it deleted, or said so, although the path is another one's")
	} else if errors.Is(err, ErrProvider) {
		_, err = p.Resolve(ctx, name)
	}
	k.report("delete with a path that is not the store's: refused", err, "")
}

// together wants one store from two calls at the same time.
func (k *checker) together(ctx context.Context, p *Provider, name string) {
	var paths [2]string
	var errs [2]error
	var wg sync.WaitGroup
	for i := range paths {
		wg.Go(func() { paths[i], errs[i] = p.Create(ctx, name, k.config.Size) })
	}
	wg.Wait()
	err := cmp.Or(errs[:]...)
	if err == nil && paths[0] != paths[1] {
		err = fmt.Errorf("%s and %s", paths[0], paths[1])
	}
	k.report("create of one name twice at the same time: the same path", err, "")
}

// killed kills a create half-way, and wants that it can be repeated.
func (k *checker) killed(ctx context.Context, p *Provider, name string) {
	k.call(ctx, OperationCreate, k.document(Event{Event: OperationCreate}, &store{Name: name, Size: k.config.Size}), soon)
	path, err := p.Create(ctx, name, k.config.Size)
	if err == nil {
		err = large(path, k.config.Size)
	}
	k.report("create after one that was killed half-way", err, path)
}

// clean deletes all the same what a cancelled check has made.
func (k *checker) clean(ctx context.Context, p *Provider, names ...string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	var errs []error
	for _, name := range names {
		path, err := p.Resolve(ctx, name)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err == nil {
			err = p.Delete(ctx, name, path)
		}
		if err == nil {
			if _, err = p.Resolve(ctx, name); err == nil {
				err = errors.New("it is still there")
			} else if errors.Is(err, ErrNotFound) {
				continue
			}
		}
		errs = append(errs, fmt.Errorf("delete %s by hand: %w", name, err))
	}
	k.report("nothing is left behind", errors.Join(errs...), "")
}

// large wants a file or device of at least size bytes.
func large(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	have, err := f.Seek(0, io.SeekEnd)
	if err == nil && have < size {
		err = fmt.Errorf("%s has %d bytes, fewer than %d", path, have, size)
	}
	return err
}
