package catalogue

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
)

func (c *Catalogue) path(name string) string { return filepath.Join(c.dir, name+suffix) }

// Add records a new volume, durably. ErrExists if its name, UUID or store is taken.
func (c *Catalogue) Add(e Entry) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.mayAdd(e); err != nil {
		return err
	}
	return c.write(e)
}

func (c *Catalogue) mayAdd(e Entry) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if _, ok := c.byName[e.Name]; ok {
		return fmt.Errorf("%s name %s %w", c.what, e.Name, ErrExists)
	}
	if d, ok := c.damaged[e.Name]; ok {
		return fmt.Errorf("%s name %s %w by a %w", c.what, e.Name, ErrExists, d.Err)
	}
	if other, ok := c.byStore[e.Store]; ok && c.byName[other].State != Missing {
		return fmt.Errorf("store %s %w by %s %s", e.Store, ErrExists, c.what, other)
	}
	return c.free(e)
}

// Update replaces the record of a volume, durably. ErrNotFound if there is none of its name and UUID.
func (c *Catalogue) Update(e Entry) error { return c.update(e, nil) }

// Replace is Update where the record still is what it was. ErrChanged if somebody else was first.
func (c *Catalogue) Replace(was, e Entry) error { return c.update(e, &was) }

func (c *Catalogue) update(e Entry, was *Entry) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.RLock()
	old, ok := c.byName[e.Name]
	err := c.free(e)
	c.mu.RUnlock()
	switch {
	case !ok || old.UUID != e.UUID:
		err = fmt.Errorf("%w: %s, UUID %s", ErrNotFound, e.Name, e.UUID)
	case was != nil && old != *was:
		err = fmt.Errorf("%s: %w", e.Title(), ErrChanged)
	}
	if err != nil {
		return err
	}
	return c.write(e)
}

// Mend replaces a damaged record by what was found out about its volume anew.
func (c *Catalogue) Mend(e Entry) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.RLock()
	_, ok := c.damaged[e.Name]
	err := c.free(e)
	c.mu.RUnlock()
	if !ok {
		err = fmt.Errorf("%w: damaged, of name %s", ErrNotFound, e.Name)
	}
	if err != nil {
		return err
	}
	return c.write(e)
}

// write puts a record in place. After an error the old one is still there, or, if only the folder could not be
// synced, the new one is but may be gone after a power cut. Called with writing held.
func (c *Catalogue) write(e Entry) error {
	b, err := encode(e)
	if err == nil {
		err = c.holds(e)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.Title(), err)
	}
	path := c.path(e.Name)
	if err := c.fs.create(path+newSuffix, b); err != nil {
		_ = c.fs.remove(path + newSuffix) // Open does it otherwise
		return fmt.Errorf("%s: record: %w", e.Title(), err)
	}
	if err := c.fs.rename(path+newSuffix, path); err != nil {
		_ = c.fs.remove(path + newSuffix)
		return fmt.Errorf("%s: record: %w", e.Title(), err)
	}
	c.mu.Lock()
	delete(c.damaged, e.Name)
	c.index(e)
	c.mu.Unlock()
	if err := c.fs.syncDir(c.dir); err != nil {
		return fmt.Errorf("%s: record: %w", e.Title(), err)
	}
	return nil
}

// Remove forgets a volume, durably. ErrNotFound if there is none.
func (c *Catalogue) Remove(name string) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if _, err := c.ByName(name); err != nil {
		return err
	}
	if err := c.fs.remove(c.path(name)); err != nil {
		return fmt.Errorf("%s %s: record: %w", c.what, name, err)
	}
	c.mu.Lock()
	c.unindex(name)
	c.mu.Unlock()
	if err := c.fs.syncDir(c.dir); err != nil {
		return fmt.Errorf("%s %s: record: %w", c.what, name, err)
	}
	return nil
}

// ByName finds a volume. ErrNotFound, or ErrDamaged if its record can't be read.
func (c *Catalogue) ByName(name string) (Entry, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e, ok := c.byName[name]; ok {
		return e, nil
	}
	if d, ok := c.damaged[name]; ok {
		return Entry{}, d.Err
	}
	return Entry{}, fmt.Errorf("%w: %s", ErrNotFound, name)
}

// ByUUID finds the volume or snapshot with this UUID.
func (c *Catalogue) ByUUID(id string) (Entry, bool) { return c.by(c.byUUID, id) }

// ByStore finds the volume whose store has exactly this path.
func (c *Catalogue) ByStore(path string) (Entry, bool) { return c.by(c.byStore, path) }

func (c *Catalogue) by(index map[string]string, key string) (Entry, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	name, ok := index[key]
	return c.byName[name], ok
}

// All returns the volumes in the order of their names.
func (c *Catalogue) All() []Entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	all := make([]Entry, 0, len(c.byName))
	for _, e := range c.byName {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Len is how many volumes there are, damaged records included.
func (c *Catalogue) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.byName) + len(c.damaged)
}

// Damaged returns the records that can't be read, in the order of their names.
func (c *Catalogue) Damaged() []Damage {
	c.mu.RLock()
	defer c.mu.RUnlock()
	all := make([]Damage, 0, len(c.damaged))
	for _, d := range c.damaged {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b Damage) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
