package inventory

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/catalogue"
)

// maxPaths is how many paths one run of the program gets: the kernel bounds the length of its arguments.
const maxPaths = 4096

// Scan looks for stores in folders and on devices, the configured ones if none are given, and wherever the
// catalogue expects one, and makes the catalogue say what it found. Nothing is dropped: what is not found is
// Missing. What contradicts itself or the catalogue is refused and changes nothing.
func (inv *Inventory) Scan(ctx context.Context, r api.ScanRequest) (api.ScanReport, error) {
	for _, path := range r.Paths {
		if !filepath.IsAbs(path) {
			return api.ScanReport{}, fmt.Errorf("%w: %s: not an absolute path", ErrInvalid, path)
		}
	}
	if err := inv.acquire(ctx, everything, "volumes are being made or deleted, or another scan is running"); err != nil {
		return api.ScanReport{}, err
	}
	defer inv.ops.Release(everything)
	ctx, cancel := context.WithTimeout(ctx, scanTimeout)
	defer cancel()
	var guests []string
	if inv.config.GuestDisks != nil {
		var err error
		if guests, err = inv.config.GuestDisks(ctx); err != nil {
			return api.ScanReport{}, fmt.Errorf("which disks guests have: %w", err)
		}
	}
	s := &scan{inv: inv, damaged: map[string]bool{}}
	for _, d := range inv.cat.Damaged() {
		s.damaged[d.Name] = true
	}
	if err := s.search(ctx, r.Paths); err != nil {
		return api.ScanReport{}, err
	}
	s.dropDisks(guests)
	s.judge()
	return s.report, s.record()
}

// scan is one run of Scan.
type scan struct {
	inv     *Inventory
	damaged map[string]bool // names of damaged records
	found   []found         // stores of volumes that can be read
	unknown []string        // paths that could not be examined
	changes []catalogue.Entry
	report  api.ScanReport
}

func (s *scan) refuse(format string, args ...any) {
	s.report.Refused = append(s.report.Refused, fmt.Sprintf(format, args...))
}

// search runs the program over all places.
func (s *scan) search(ctx context.Context, places []string) error {
	if len(places) == 0 {
		places = slices.Clone(s.inv.config.ScanFolders)
		for _, glob := range s.inv.config.ScanDevices {
			devices, err := filepath.Glob(glob)
			if err != nil {
				return fmt.Errorf("%w: scan devices %q: %w", ErrInvalid, glob, err)
			}
			places = append(places, devices...)
		}
	}
	for _, e := range s.inv.cat.All() {
		if e.Store != "" {
			places = append(places, e.Store)
		}
	}
	slices.Sort(places)
	seen := map[string]bool{}
	for batch := range slices.Chunk(slices.Compact(places), maxPaths) {
		var all []found
		if err := s.inv.program.run(ctx, &all, nil, append([]string{"store", "scan", "--"}, batch...)...); err != nil {
			return err
		}
		for _, f := range all {
			if !seen[f.Path] { // batches may overlap
				seen[f.Path] = true
				s.take(f)
			}
		}
	}
	return nil
}

func (s *scan) take(f found) {
	if !slices.Contains(f.Paths, f.Path) {
		f.Paths = append(f.Paths, f.Path)
	}
	if f.Error != "" {
		s.report.Examined++
		s.unknown = append(s.unknown, f.Paths...)
		s.refuse("%s: %s", f.Path, f.Error)
		return
	}
	for i := range s.found {
		if s.found[i].UUID == f.UUID && sameThing(s.found[i].Path, f.Path) { // in another batch, under another name
			s.found[i].Paths = append(s.found[i].Paths, f.Paths...)
			return
		}
	}
	s.report.Examined++
	if f.volume() {
		s.found = append(s.found, f)
	}
}

// dropDisks forgets stores found on what is somebody's raw disk: a guest may write there whatever it wants.
func (s *scan) dropDisks(guests []string) {
	disks := map[thing]string{}
	add := func(path string) {
		if at, ok := thingAt(path); ok && filepath.IsAbs(path) {
			disks[at] = path
		}
	}
	for _, path := range guests {
		add(path)
	}
	for _, e := range s.inv.cat.All() {
		add(e.Origin)
		add(strings.TrimPrefix(e.Master, "raw:"))
	}
	for _, f := range s.found {
		add(f.Origin)
	}
	s.found = slices.DeleteFunc(s.found, func(f found) bool {
		at, _ := thingAt(f.Path)
		disk, is := disks[at]
		if is {
			s.refuse("%s: what looks like the store of volume %s is on a raw disk that is in use as such (%s): not taken for a store", f.Path, f.Name, disk)
		}
		return is
	})
}

// judge decides what changes, store by store and then volume by volume.
func (s *scan) judge() {
	byName, byUUID := map[string][]*found{}, map[string][]*found{}
	for i := range s.found {
		f := &s.found[i]
		byName[f.Name], byUUID[f.UUID] = append(byName[f.Name], f), append(byUUID[f.UUID], f)
	}
	twins := map[*found]bool{}
	s.refuseTwins(twins, byUUID, "the same UUID, one may be a copy of the other")
	for name, group := range byName {
		if len(byUUID[group[0].UUID]) == len(group) { // told already, if there are several
			delete(byName, name)
		}
	}
	s.refuseTwins(twins, byName, "the same name")
	for i := range s.found {
		if f := &s.found[i]; !twins[f] {
			s.judgeStore(f)
		}
	}
	for _, e := range s.inv.cat.All() {
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
		s.refuse("volume %s: the stores %s have %s: take all but one away, and scan again", group[0].Name, strings.Join(places, " and "), share)
	}
}

// atHome says whether a store is where the catalogue has it.
func (s *scan) atHome(f *found) bool {
	e, ok := s.inv.cat.ByUUID(f.UUID)
	return ok && e.Name == f.Name && slices.Contains(f.Paths, e.Store)
}

func (s *scan) judgeStore(f *found) {
	old, known := s.inv.cat.ByUUID(f.UUID)
	if !known {
		s.judgeNew(f)
		return
	}
	e := f.into(old)
	e.State, e.Error = catalogue.Ready, ""
	switch {
	case old.State == catalogue.Creating || old.State == catalogue.Deleting:
		return // Recover's
	case old.Name != f.Name:
		s.refuse("%s: its header says volume %s, the catalogue says that UUID %s is volume %s", f.Path, f.Name, f.UUID, old.Name)
		return
	case slices.Contains(f.Paths, old.Store):
	case slices.Contains(s.unknown, old.Store):
		s.refuse("volume %s: found at %s, but whether it still is at %s can't be found out", f.Name, f.Path, old.Store)
		return
	default: // the old path was examined, and does not have it
		e.Store = s.inv.devices.best(f.Paths)
		if err := s.inv.devices.stable(e.Store); err != nil {
			s.refuse("volume %s: %v", f.Name, err)
			return
		}
		s.report.Moved = append(s.report.Moved, f.Name)
	}
	if old.State == catalogue.Missing && e.Store == old.Store {
		s.report.Found = append(s.report.Found, f.Name)
	}
	if e != old {
		s.changes = append(s.changes, e)
	}
}

// judgeNew takes a store that the catalogue does not know.
func (s *scan) judgeNew(f *found) {
	e := f.into(catalogue.Entry{State: catalogue.Ready, Store: s.inv.devices.best(f.Paths)})
	if err := s.inv.devices.stable(e.Store); err != nil {
		s.refuse("volume %s: %v", f.Name, err)
		return
	}
	if old, err := s.inv.cat.ByName(f.Name); err == nil {
		s.refuse("%s: a store of volume %s, but the catalogue has another of this name at %s", f.Path, f.Name, old.Store)
		return
	}
	s.report.Found = append(s.report.Found, f.Name)
	s.changes = append(s.changes, e)
}

func (s *scan) judgeMissing(e catalogue.Entry) {
	if slices.Contains(s.unknown, e.Store) {
		return // there is something that can't be read: already reported
	}
	e.State = catalogue.Missing
	e.Error = "a scan did not find its store at " + e.Store
	s.report.Missing = append(s.report.Missing, e.Name)
	s.changes = append(s.changes, e)
}

// record writes the changes. A failed one does not keep the others from being written.
func (s *scan) record() error {
	var errs []error
	for _, e := range s.inOrder() {
		_, known := s.inv.cat.ByUUID(e.UUID)
		switch {
		case known:
			errs = append(errs, s.inv.cat.Update(e))
		case s.damaged[e.Name]:
			errs = append(errs, s.inv.cat.Mend(e))
		default:
			errs = append(errs, s.inv.cat.Add(e))
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
		if _, known := s.inv.cat.ByUUID(e.UUID); known {
			return 0
		}
		return 1
	}
	return slices.SortedStableFunc(slices.Values(s.changes), func(a, b catalogue.Entry) int { return order(a) - order(b) })
}
