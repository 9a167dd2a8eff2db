package inventory

import (
	"context"
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
	for _, d := range append(inv.cat.Damaged(), inv.cat.Snapshots().Damaged()...) {
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
	found   []found         // stores of volumes and snapshots that can be read
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
	for _, e := range s.inv.all() {
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
	s.found = append(s.found, f)
}

// dropDisks forgets stores found on what is somebody's raw disk: a guest may write there whatever it wants. What is no guest's disk,
// but only an origin or a master by what a header says, is not believed to be one against the catalogue: that header may be forged.
func (s *scan) dropDisks(guests []string) {
	owned, named := map[thing]string{}, map[thing]string{}
	add := func(disks map[thing]string, path string) {
		if at, ok := thingAt(path); ok && filepath.IsAbs(path) {
			disks[at] = path
		}
	}
	for _, path := range guests {
		add(owned, path)
	}
	for _, e := range s.inv.all() {
		add(named, e.Origin)
		add(named, strings.TrimPrefix(e.Master, "raw:"))
	}
	for _, f := range s.found {
		add(named, f.Origin)
	}
	s.found = slices.DeleteFunc(s.found, func(f found) bool {
		at, _ := thingAt(f.Path)
		disk, is := owned[at]
		if !is && !s.atHome(&f) {
			disk, is = named[at]
		}
		if is {
			s.refuse("%s: what looks like the store of %s is on a raw disk that is in use as such (%s): not taken for a store", f.Path, f.title(), disk)
		}
		return is
	})
}
