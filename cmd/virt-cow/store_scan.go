package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// StoreScanCmd looks for stores.
type StoreScanCmd struct {
	Paths   []string      `arg:"" optional:"" help:"Files, block devices, and folders, of which the files are looked at." type:"path"`
	Timeout time.Duration `help:"How long one of them may take to be read." default:"5s" placeholder:"TIME"`
	Worker  bool          `hidden:""`
}

// scanned is what is told of a store that was found. Sizes are bytes.
type scanned struct {
	Path      string     `json:"path"`  // the one to use
	Paths     []string   `json:"paths"` // all, Path first
	Name      string     `json:"name,omitempty"`
	UUID      string     `json:"uuid,omitempty"`
	Role      string     `json:"role,omitempty"`
	Size      int64      `json:"size,omitempty"`
	ChunkSize int64      `json:"chunkSize,omitempty"`
	Master    string     `json:"master,omitempty"` // as --master takes it
	Origin    string     `json:"origin,omitempty"` // the raw disk of a state store
	Volume    string     `json:"volume,omitempty"` // of a snapshot: UUID of its volume
	Cut       string     `json:"cut,omitempty"`    // of a snapshot
	CutLoose  bool       `json:"cutLoose,omitempty"`
	Created   *time.Time `json:"created,omitempty"`
	Owner     *ownerOf   `json:"owner,omitempty"`
	Problems  []string   `json:"problems,omitempty"` // damage that can be lived with
	Error     string     `json:"error,omitempty"`    // why it can't be used, or could not be read
}

// Run prints what was found. That something is damaged or can't be read is no failure of the scan: it is told.
func (c *StoreScanCmd) Run(env *Env) error {
	if c.Worker {
		return lookAll(env)
	}
	if len(c.Paths) == 0 {
		return exitError{fmt.Errorf("say where to look: files, devices or folders"), exitUsage}
	}
	answers, err := lookAt(env.Context, c.Paths, c.Timeout)
	if err != nil {
		return err
	}
	stores, others := gather(answers)
	for _, a := range answers {
		if a.Missing {
			fmt.Fprintf(env.Stderr, "%s: there is nothing\n", a.Path)
		}
	}
	if env.JSON {
		return printJSON(env, stores)
	}
	printScan(env, stores, others)
	return nil
}

// lookAt looks at paths, and at the files of those that are folders.
func lookAt(ctx context.Context, paths []string, timeout time.Duration) ([]looked, error) {
	crew := newCrew(timeout)
	defer crew.end()
	given := crew.look(ctx, paths)
	var files []string
	for _, a := range given {
		files = append(files, a.Files...)
	}
	inFolders := crew.look(ctx, files)
	var answers []looked
	for _, a := range given {
		answers = append(append(answers, a), inFolders[:len(a.Files)]...)
		inFolders = inFolders[len(a.Files):]
	}
	return answers, ctx.Err()
}

// gather joins the answers that are about one thing under several names.
func gather(answers []looked) (stores []scanned, others int) {
	type thing struct{ identity, uuid string }
	byThing := map[thing][]looked{}
	var order []thing
	seen := map[string]bool{}
	for _, a := range answers {
		switch {
		case seen[a.Path]:
			continue
		case a.Store == nil:
			if len(a.Files) == 0 && !a.Missing && !a.Folder {
				others++
			}
			continue
		}
		seen[a.Path] = true
		t := thing{a.Identity, a.Store.UUID}
		if a.Identity == "" {
			t.identity = a.Path
		}
		if byThing[t] == nil {
			order = append(order, t)
		}
		byThing[t] = append(byThing[t], a)
	}
	stores = []scanned{}
	for _, t := range order {
		all := byThing[t]
		slices.SortStableFunc(all, func(a, b looked) int {
			return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(a.Path, b.Path))
		})
		s := *all[0].Store
		s.Path, s.Paths = all[0].Path, nil
		for _, a := range all {
			s.Paths = append(s.Paths, a.Path)
		}
		stores = append(stores, s)
	}
	return stores, others
}

// rank orders the names of one thing: those that stay the same over a reboot first, one path of several last.
func (a looked) rank() int {
	switch {
	case a.OnPath:
		return 3
	case strings.HasPrefix(a.Path, "/dev/disk/by-id/"):
		return 0
	case strings.HasPrefix(a.Path, "/dev/mapper/"), strings.HasPrefix(a.Path, "/dev/disk/by-"):
		return 1
	}
	return 2
}

func printScan(env *Env, stores []scanned, others int) {
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	if len(stores) > 0 {
		fmt.Fprintln(w, "VOLUME\tROLE\tSIZE\tOPEN ON\tPATH")
	}
	for _, s := range stores {
		open, size := "-", "-"
		if s.Owner != nil {
			open = or(s.Owner.HostName, s.Owner.Host)
		}
		if s.Size > 0 {
			size = formatSize(s.Size)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", or(s.Name, "-"), or(s.Role, "-"), size, open, strings.Join(s.Paths, " "))
	}
	w.Flush()
	for _, s := range stores {
		for _, p := range append(s.Problems, s.Error) {
			if p != "" {
				fmt.Fprintf(env.Stdout, "%s: %s\n", s.Path, p)
			}
		}
	}
	fmt.Fprintf(env.Stdout, "%s, %s\n", count(len(stores), "store"), count(others, "other thing"))
}
