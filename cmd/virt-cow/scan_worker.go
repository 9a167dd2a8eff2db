package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// A read of a LUN whose paths are all gone may never return, and no signal ends the process that made it, nor lets its
// parent exit as long as that is one process. So the looking is done by workers, processes of their own: one that
// does not answer in time is left to itself.

// looked is what a worker says of one path.
type looked struct {
	Path     string   `json:"path"`
	Folder   bool     `json:"folder,omitempty"`
	Files    []string `json:"files,omitempty"` // of a folder
	Missing  bool     `json:"missing,omitempty"`
	Store    *scanned `json:"store,omitempty"` // nil: there is none
	Identity string   `json:"identity,omitempty"`
	OnPath   bool     `json:"onPath,omitempty"` // of a multipath device
}

// lookAll is a worker: a path a line in, as JSON, an answer a line out.
func lookAll(env *Env) error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(env.Stdout)
	for {
		var path string
		if err := in.Decode(&path); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(look(env.Context, path)); err != nil {
			return err
		}
	}
}

// look never writes, and needs no lock: a store may be looked at while it is served.
func look(ctx context.Context, path string) looked {
	a := looked{Path: path}
	broken := func(err error) looked {
		a.Store = &scanned{Error: err.Error()}
		return a
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		a.Missing = true
		return a
	case err != nil:
		return broken(err)
	case st.IsDir():
		a.Folder = true
		entries, err := os.ReadDir(path)
		if err != nil {
			return broken(err)
		}
		for _, e := range entries {
			// Links may lead anywhere, and hidden files are those of a `store create` that is not done.
			if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
				a.Files = append(a.Files, filepath.Join(path, e.Name()))
			}
		}
		return a
	case !st.Mode().IsRegular() && st.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice,
		st.Mode().IsRegular() && st.Size() < cowfmt.MetadataSize, st.Mode().IsRegular() && st.Size()%blockdev.SectorSize != 0:
		return a // nothing a store can be on
	}
	dev, err := blockdev.OpenFile(ctx, path, blockdev.FileOptions{ReadOnly: true, Direct: true})
	if errors.Is(err, unix.ENOMEDIUM) || errors.Is(err, unix.ENXIO) {
		return a // an empty drive
	}
	if err != nil {
		return broken(err)
	}
	defer dev.Close()
	a.Identity, a.OnPath = dev.Identity()
	choice, err := store.Peek(dev)
	if errors.Is(err, cowfmt.ErrNotStore) {
		return a
	}
	if err != nil {
		return broken(err)
	}
	a.Store = newScanned(choice)
	if err := store.Fits(dev.Info(), choice.Header); err != nil {
		a.Store.Error = err.Error()
	}
	return a
}

func newScanned(choice cowfmt.Choice) *scanned {
	h := choice.Header
	i := newStoreInfo("", h)
	s := &scanned{
		Name: i.Name, UUID: i.UUID, Role: i.Role, Size: i.Size, ChunkSize: i.ChunkSize, Origin: i.Origin, CutLoose: i.CutLoose,
		Created: &i.Created, Owner: i.Owner,
	}
	if i.Snapshot != nil {
		s.Volume, s.Cut = i.Snapshot.VolumeUUID, i.Snapshot.Cut
	}
	if h.Master != nil {
		s.Master = masterArg(*h.Master)
	}
	for n, problem := range choice.Problem {
		if problem != nil {
			s.Problems = append(s.Problems, fmt.Sprintf("header copy %d: %v", n, problem))
		}
	}
	return s
}

// masterArg writes a master as --master takes it.
func masterArg(l cowfmt.Locator) string {
	if l.Kind == cowfmt.LocatorRaw || l.Kind == cowfmt.LocatorStore {
		return l.Kind.String() + ":" + l.Address
	}
	return l.Address // a URI
}

// crew are the workers.
type crew struct {
	timeout time.Duration
	mu      sync.Mutex
	idle    []*worker
}

const maxWorkers = 8

type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newCrew(timeout time.Duration) *crew { return &crew{timeout: timeout} }

// look has all paths looked at, and answers in their order.
func (c *crew) look(ctx context.Context, paths []string) []looked {
	answers := make([]looked, len(paths))
	next := make(chan int)
	var all sync.WaitGroup
	for range min(maxWorkers, len(paths)) {
		all.Go(func() {
			for i := range next {
				answers[i] = c.ask(ctx, paths[i])
			}
		})
	}
	for i := range paths {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	all.Wait()
	return answers
}

// ask has one path looked at.
func (c *crew) ask(ctx context.Context, path string) looked {
	failed := func(err error) looked { return looked{Path: path, Store: &scanned{Error: err.Error()}} }
	w, err := c.take()
	if err != nil {
		return failed(err)
	}
	type result struct {
		a   looked
		err error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		if r.err = json.NewEncoder(w.in).Encode(path); r.err == nil {
			var line []byte
			if line, r.err = w.out.ReadBytes('\n'); r.err == nil {
				r.err = json.Unmarshal(line, &r.a)
			}
		}
		done <- r
	}()
	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	select {
	case r := <-done:
		if r.err != nil {
			w.leave()
			return failed(fmt.Errorf("looking at it failed: %w", r.err))
		}
		c.mu.Lock()
		c.idle = append(c.idle, w)
		c.mu.Unlock()
		return r.a
	case <-timer.C:
		w.leave()
		return failed(fmt.Errorf("can't be read: no answer in %s", c.timeout))
	case <-ctx.Done():
		w.leave()
		return failed(ctx.Err())
	}
}

// take finds a worker that is idle, or starts one.
func (c *crew) take() (*worker, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.idle); n > 0 {
		w := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return w, nil
	}
	w := &worker{cmd: exec.Command("/proc/self/exe", "store", "scan", "--worker")}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	w.out = bufio.NewReader(out)
	return w, w.cmd.Start()
}

// leave gives a worker up that may hang. It is not waited for: it may never end.
func (w *worker) leave() {
	_ = w.cmd.Process.Kill()
	_ = w.in.Close()
	_ = w.cmd.Process.Release()
}

// end lets the idle ones go.
func (c *crew) end() {
	for _, w := range c.idle {
		_ = w.in.Close()
		_ = w.cmd.Wait()
	}
}
