package catalogue

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"testing"
)

// crashFS is a file system that can lose its power: it is what POSIX promises and nothing more. A file's content is
// durable once it was synced; what happens to a folder's entries is durable once the folder was synced, and until
// then any part of it may be, in any order.
type crashFS struct {
	now     map[string]*node // entries as programs see them
	durable map[string]*node // as they are after a power cut, whatever happens
	pending []entryChange    // since the last sync of the folder
	// before is called before each step that changes something.
	before func()
}

type node struct {
	content []byte
	synced  bool
}

type entryChange struct {
	path string
	to   *node // nil: removed
}

func newCrashFS() *crashFS { return &crashFS{now: map[string]*node{}, durable: map[string]*node{}} }

func (f *crashFS) step() {
	if f.before != nil {
		f.before()
	}
}

func (f *crashFS) set(path string, n *node) {
	if n == nil {
		delete(f.now, path)
	} else {
		f.now[path] = n
	}
	f.pending = append(f.pending, entryChange{path, n})
}

func (f *crashFS) list(dir string) ([]string, error) {
	var names []string
	for path := range f.now {
		names = append(names, filepath.Base(path))
	}
	return names, nil
}

func (f *crashFS) read(path string) ([]byte, error) {
	if n := f.now[path]; n != nil {
		return n.content, nil
	}
	return nil, fs.ErrNotExist
}

func (f *crashFS) create(path string, b []byte) error {
	f.step()
	n := &node{content: bytes.Clone(b)}
	f.set(path, n)
	f.step()
	n.synced = true
	return nil
}

func (f *crashFS) rename(from, to string) error {
	f.step()
	n := f.now[from]
	if n == nil {
		return fs.ErrNotExist
	}
	// One change of two entries: no file system we run on shows the half of it.
	f.now[to] = n
	delete(f.now, from)
	f.pending = append(f.pending, entryChange{to, n}, entryChange{from, nil})
	return nil
}

func (f *crashFS) remove(path string) error {
	f.step()
	if f.now[path] == nil {
		return fs.ErrNotExist
	}
	f.set(path, nil)
	return nil
}

func (f *crashFS) syncDir(string) error {
	f.step()
	f.durable = maps.Clone(f.now)
	f.pending = nil
	return nil
}

// states are all file systems that may be there after a power cut now.
func (f *crashFS) states() []*crashFS {
	var all []*crashFS
	for subset := range 1 << len(f.pending) {
		entries := maps.Clone(f.durable)
		for i, c := range f.pending {
			if subset&(1<<i) == 0 {
				continue
			}
			if c.to == nil {
				delete(entries, c.path)
			} else {
				entries[c.path] = c.to
			}
		}
		// What was not synced is there, in part, or not at all.
		for _, part := range []float64{1, 0.5, 0} {
			s := newCrashFS()
			for path, n := range entries {
				content := n.content
				if !n.synced {
					content = content[:int(part*float64(len(content)))]
				}
				s.now[path] = &node{content: content, synced: true}
			}
			s.durable = maps.Clone(s.now)
			all = append(all, s)
		}
	}
	return all
}

// A power cut before each step of a history: after it each volume is as it was before or after the step's operation,
// whole, and all others are untouched.
func TestPowerCut(t *testing.T) {
	f := newCrashFS()
	c, err := load(f, "/v", "volume")
	if err != nil {
		t.Fatal(err)
	}
	model := map[string]Entry{} // acknowledged
	var name string             // being changed
	var next *Entry             // to what; nil: removed
	checked := 0
	check := func(moment string) {
		for _, s := range f.states() {
			checked++
			again, err := load(s, "/v", "volume")
			if err != nil {
				t.Fatalf("%s: %v", moment, err)
			}
			if d := again.Damaged(); len(d) > 0 {
				t.Fatalf("%s: %v", moment, d[0].Err)
			}
			for path := range s.now {
				if filepath.Ext(path) == newSuffix {
					t.Errorf("%s: left behind: %s", moment, path)
				}
			}
			got := map[string]Entry{}
			for _, e := range again.All() {
				got[e.Name] = e
			}
			was := model
			if name != "" {
				was = maps.Clone(model)
				is, there := got[name]
				if next == nil && !there {
					delete(was, name)
				} else if next != nil && there && is == *next {
					was[name] = *next
				}
			}
			if !maps.Equal(got, was) {
				t.Fatalf("%s: found %+v\nwant %+v", moment, got, was)
			}
		}
	}
	steps := 0
	f.before = func() {
		steps++
		check(fmt.Sprintf("step %d, changing %s", steps, name))
	}
	put := func(e Entry, how func(Entry) error) {
		t.Helper()
		name, next = e.Name, &e
		if err := how(e); err != nil {
			t.Fatal(err)
		}
		model[e.Name], name = e, ""
		check("after " + e.Name)
	}
	for i := range 4 {
		e := entry(i)
		intent := Entry{Name: e.Name, UUID: e.UUID, State: Creating}
		put(intent, c.Add)
		put(e, c.Update)
	}
	for i := range 3 {
		e := entry(i)
		e.CutLoose = true
		put(e, c.Update)
		e.State = Deleting
		put(e, c.Update)
		name, next = e.Name, nil
		if err := c.Remove(e.Name); err != nil {
			t.Fatal(err)
		}
		delete(model, e.Name)
		name = ""
		check("removed")
	}
	if checked < 200 {
		t.Errorf("only %d states", checked)
	}
}

// failFS fails the nth step.
type failFS struct {
	*crashFS
	n, at int
}

func (f *failFS) fail() error {
	if f.n++; f.n == f.at {
		return fmt.Errorf("step %d: %w", f.n, fs.ErrPermission)
	}
	return nil
}

func (f *failFS) create(path string, b []byte) error {
	if err := f.fail(); err != nil {
		_ = f.crashFS.create(path, b[:len(b)/2]) // full disk
		return err
	}
	return f.crashFS.create(path, b)
}

func (f *failFS) rename(from, to string) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.crashFS.rename(from, to)
}

func (f *failFS) remove(path string) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.crashFS.remove(path)
}

func (f *failFS) syncDir(dir string) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.crashFS.syncDir(dir)
}

// Each step fails once: the error is told, memory is what is on the disk, and the next try goes through.
func TestEachStepFails(t *testing.T) {
	for at := 1; ; at++ {
		f := &failFS{crashFS: newCrashFS(), at: at}
		c, err := load(f, "/v", "volume")
		if err != nil {
			t.Fatal(err)
		}
		failures := 0
		try := func(what string, do func() error) {
			err := do()
			again, loadErr := load(f.crashFS, "/v", "volume")
			if loadErr != nil || len(again.Damaged()) > 0 {
				t.Fatalf("step %d, %s: %v, %v", at, what, loadErr, again.Damaged())
			}
			if !slices.Equal(again.All(), c.All()) {
				t.Fatalf("step %d, %s: in memory %v, on the disk %v", at, what, c.All(), again.All())
			}
			if err != nil {
				failures++
			}
		}
		e := entry(1)
		try("add", func() error { return c.Add(e) })
		if _, err := c.ByName(e.Name); err != nil {
			if err := c.Add(e); err != nil {
				t.Fatal(err)
			}
		}
		e.CutLoose = true
		try("update", func() error { return c.Update(e) })
		try("remove", func() error { return c.Remove(e.Name) })
		if f.n < at {
			if failures != 0 {
				t.Errorf("%d failures with none asked for", failures)
			}
			return
		}
		if failures != 1 {
			t.Errorf("step %d failed: %d operations told it", at, failures)
		}
	}
}
