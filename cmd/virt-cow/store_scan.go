package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
)

// StoreScanCmd looks for stores.
type StoreScanCmd struct {
	Paths   []string      `arg:"" help:"Files, block devices, and folders: of these the files in them." type:"path"`
	Timeout time.Duration `help:"How long one file or device may take to answer." default:"10s" placeholder:"TIME"`
}

// scanned is a store, or what is left of one. Sizes are bytes.
type scanned struct {
	Path      string     `json:"path"`
	Paths     []string   `json:"paths"` // all names it was found under, Path among them
	Name      string     `json:"name,omitempty"`
	UUID      string     `json:"uuid,omitempty"`
	Role      string     `json:"role,omitempty"`
	Size      int64      `json:"size,omitempty"`
	ChunkSize int64      `json:"chunkSize,omitempty"`
	Master    string     `json:"master,omitempty"` // raw:PATH, store:PATH or an NBD URI
	Origin    string     `json:"origin,omitempty"`
	CutLoose  bool       `json:"cutLoose,omitempty"`
	Created   *time.Time `json:"created,omitempty"`
	Owner     *ownerOf   `json:"owner,omitempty"`
	Error     string     `json:"error,omitempty"` // why it can't be read
}

// maxLooking is how many files and devices are looked at at once: most of the time is spent waiting for them.
const maxLooking = 16

// Run prints the stores that were found. A device that does not answer in time is told of and holds nothing up.
func (c *StoreScanCmd) Run(env *Env) error {
	places, err := placesOf(c.Paths, func(err error) { env.Log.Warn().Err(err).Msg("not looked at") })
	if err != nil {
		return err
	}
	out := make([]*scanned, len(places))
	var wg sync.WaitGroup
	free := make(chan struct{}, maxLooking)
	for i, p := range places {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			out[i] = c.look(env.Context, p)
		})
	}
	wg.Wait()
	out = slices.DeleteFunc(out, func(s *scanned) bool { return s == nil })
	if env.JSON {
		return printJSON(env, out)
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STORE\tVOLUME\tROLE\tSIZE\tOPEN ON")
	for _, s := range out {
		if s.Error == "" {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Path, s.Name, s.Role, formatSize(s.Size), s.Owner.name())
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range out {
		if s.Error != "" {
			fmt.Fprintln(env.Stdout, s.Error)
		}
	}
	fmt.Fprintf(env.Stdout, "%s, %s\n", count(len(places), "place"), count(len(out), "store"))
	return nil
}

func (o *ownerOf) name() string {
	if o == nil {
		return "-"
	}
	return or(o.HostName, o.Host)
}

// place is a file or device by all the names it was met under, the best one first.
type place []string

// placesOf lists what is to be looked at: each file and each device once. missing is told of paths that do not exist.
func placesOf(paths []string, missing func(error)) ([]place, error) {
	type identity struct{ dev, ino, rdev uint64 }
	seen := map[identity]int{}
	var places []place
	add := func(path string) error {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		var id identity
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if st.Size < cowfmt.MetadataSize || st.Size%cowfmt.SectorSize != 0 {
				return nil // no store is like that
			}
			id = identity{dev: uint64(st.Dev), ino: st.Ino}
		case unix.S_IFBLK:
			id = identity{rdev: uint64(st.Rdev)}
		default:
			return nil
		}
		if i, known := seen[id]; known {
			if !slices.Contains(places[i], path) {
				places[i] = append(places[i], path)
			}
			return nil
		}
		seen[id] = len(places)
		places = append(places, place{path})
		return nil
	}
	for _, path := range paths {
		entries, err := os.ReadDir(path)
		if errors.Is(err, unix.ENOTDIR) {
			err = add(path)
		}
		for _, e := range entries {
			// A link leads out of the folder, and a name with a dot is of a file that is being made.
			if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
				err = errors.Join(err, gone(add(filepath.Join(path, e.Name()))))
			}
		}
		if errors.Is(err, os.ErrNotExist) {
			missing(err)
		} else if err != nil {
			return nil, err
		}
	}
	for _, p := range places {
		slices.SortStableFunc(p, func(a, b string) int { return rank(a) - rank(b) })
	}
	return places, nil
}

// gone takes a file that went away while its folder was read for none.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// rank puts the names of a device first that stay the same from one boot to the next.
func rank(path string) int {
	return slices.IndexFunc([]string{"/dev/disk/by-id/", "/dev/mapper/", "/dev/disk/", ""}, func(prefix string) bool {
		return strings.HasPrefix(path, prefix)
	})
}

// look reads one header, nil if there is none. A disk that hangs keeps its goroutine, not the others.
func (c *StoreScanCmd) look(ctx context.Context, p place) *scanned {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	done := make(chan *scanned, 1)
	go func() { done <- examine(ctx, p) }()
	select {
	case s := <-done:
		return s
	case <-ctx.Done():
		return &scanned{Path: p[0], Paths: p, Error: fmt.Sprintf("%s: did not answer: %v", p[0], ctx.Err())}
	}
}

func examine(ctx context.Context, p place) *scanned {
	dev, st, err := readStore(ctx, p[0])
	if errors.Is(err, cowfmt.ErrNotStore) {
		return nil
	}
	s := &scanned{Path: p[0], Paths: p}
	if err != nil {
		s.Error = err.Error()
		return s
	}
	defer dev.Close()
	h := st.Header()
	i := newStoreInfo(p[0], h)
	s.Name, s.UUID, s.Role, s.Size, s.ChunkSize = i.Name, i.UUID, i.Role, i.Size, i.ChunkSize
	s.Origin, s.CutLoose, s.Created, s.Owner = i.Origin, i.CutLoose, &i.Created, i.Owner
	if h.Master != nil {
		s.Master = masterArg(*h.Master)
	}
	return s
}

// masterArg writes a master as --master takes it.
func masterArg(l cowfmt.Locator) string {
	if l.Kind == cowfmt.LocatorNBD {
		return l.Address // a URI
	}
	return l.Kind.String() + ":" + l.Address
}
