package inventory

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/virt-cow/virt-cow/internal/catalogue"
)

// judge decides what changes, store by store and then volume by volume.
func (s *scan) judge() {
	byName, byUUID := map[string][]*found{}, map[string][]*found{}
	for i := range s.found {
		f := &s.found[i]
		byUUID[f.UUID] = append(byUUID[f.UUID], f)
		if f.volume() {
			byName[f.Name] = append(byName[f.Name], f)
		}
	}
	twins := map[*found]bool{}
	s.refuseTwins(twins, byUUID, "the same UUID, one may be a copy of the other")
	for name, group := range byName {
		if !slices.ContainsFunc(group, func(f *found) bool { return f.UUID != group[0].UUID }) { // told already, if there are several
			delete(byName, name)
		}
	}
	s.refuseTwins(twins, byName, "the same name")
	for i := range s.found {
		if f := &s.found[i]; !twins[f] {
			s.judgeStore(f)
		}
	}
	for _, e := range s.inv.all() {
		if e.State == catalogue.Ready && len(byUUID[e.UUID]) == 0 {
			s.judgeMissing(e)
		}
	}
}

// refuseTwins refuses stores that share what must be a volume's own. One that is where the catalogue says stays.
func (s *scan) refuseTwins(twins map[*found]bool, groups map[string][]*found, share string) {
	keys := make([]string, 0, len(groups))
	for key := range groups {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		group := groups[key]
		if len(group) < 2 {
			continue
		}
		var places []string
		for _, f := range group {
			places = append(places, f.Path)
			twins[f] = !s.atHome(f)
		}
		s.refuse("%s: the stores %s have %s: take all but one away, and scan again", group[0].title(), strings.Join(places, " and "), share)
	}
}

// atHome says whether a store is where the catalogue has it.
func (s *scan) atHome(f *found) bool {
	e, ok := s.inv.byUUID(f.UUID)
	return ok && f.into(e).Name == e.Name && slices.Contains(f.Paths, e.Store)
}

func (s *scan) judgeStore(f *found) {
	old, known := s.inv.byUUID(f.UUID)
	if !known {
		s.judgeNew(f)
		return
	}
	e := f.into(old)
	e.State, e.Error = catalogue.Ready, ""
	switch {
	case old.State == catalogue.Creating || old.State == catalogue.Deleting:
		return // Recover's
	case old.Name != e.Name || old.Snapshot() != e.Snapshot():
		s.refuse("%s: its header says %s, the catalogue says that UUID %s is %s", f.Path, f.title(), f.UUID, old.Title())
		return
	case slices.Contains(f.Paths, old.Store):
	case slices.Contains(s.unknown, old.Store):
		s.refuse("%s: found at %s, but whether it still is at %s can't be found out", f.title(), f.Path, old.Store)
		return
	default: // the old path was examined, and does not have it
		e.Store = s.inv.devices.best(f.Paths)
		if err := s.inv.devices.stable(e.Store); err != nil {
			s.refuse("%s: %v", f.title(), err)
			return
		}
		s.report.Moved = append(s.report.Moved, reported(e))
	}
	if old.State == catalogue.Missing && e.Store == old.Store {
		s.report.Found = append(s.report.Found, reported(e))
	}
	if e != old {
		s.changes = append(s.changes, e)
	}
}

// judgeNew takes a store that the catalogue does not know.
func (s *scan) judgeNew(f *found) {
	e := f.into(catalogue.Entry{State: catalogue.Ready, Store: s.inv.devices.best(f.Paths)})
	if err := cmp.Or(notReserved(e.Name), s.inv.devices.stable(e.Store)); err != nil {
		s.refuse("%s: %v", f.title(), err)
		return
	}
	if old, err := s.inv.of(e).ByName(e.Name); err == nil {
		s.refuse("%s: a store of volume %s, but the catalogue has another of this name at %s", f.Path, f.Name, old.Store)
		return
	}
	s.report.Found = append(s.report.Found, reported(e))
	s.changes = append(s.changes, e)
}

func (s *scan) judgeMissing(e catalogue.Entry) {
	if slices.Contains(s.unknown, e.Store) {
		return // there is something that can't be read: already reported
	}
	e.State = catalogue.Missing
	e.Error = "a scan did not find its store at " + e.Store
	s.report.Missing = append(s.report.Missing, reported(e))
	s.changes = append(s.changes, e)
}

// reported is how a report names a volume, or a snapshot.
func reported(e catalogue.Entry) string {
	if e.Snapshot() {
		return e.Title()
	}
	return e.Name
}

// record writes the changes. A failed one does not keep the others from being written.
func (s *scan) record() error {
	var errs []error
	for _, e := range s.inOrder() {
		_, known := s.inv.byUUID(e.UUID)
		switch cat := s.inv.of(e); {
		case known:
			errs = append(errs, cat.Update(e))
		case s.damaged[e.Name]:
			errs = append(errs, cat.Mend(e))
		default:
			errs = append(errs, cat.Add(e))
		}
	}
	for _, names := range [][]string{s.report.Found, s.report.Moved, s.report.Missing} {
		slices.Sort(names)
	}
	return errors.Join(errs...)
}

// inOrder puts moves away from a path before what is new there.
func (s *scan) inOrder() []catalogue.Entry {
	order := func(e catalogue.Entry) int {
		if _, known := s.inv.byUUID(e.UUID); known {
			return 0
		}
		return 1
	}
	return slices.SortedStableFunc(slices.Values(s.changes), func(a, b catalogue.Entry) int { return order(a) - order(b) })
}
