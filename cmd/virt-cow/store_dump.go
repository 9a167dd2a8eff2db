package main

import (
	"fmt"
	"reflect"
	"text/tabwriter"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/store"
)

// StoreDumpCmd prints all of a store but its data.
type StoreDumpCmd struct {
	Store string `arg:"" help:"Store: a file or block device." type:"path"`
}

// chunkRun is a run of chunks that are in the store.
type chunkRun struct {
	First int64 `json:"first"`
	Count int64 `json:"count"`
}

type dump struct {
	Header *cowfmt.Header `json:"header"`
	Here   []chunkRun     `json:"here"`
	Frozen []chunkRun     `json:"frozen,omitempty"` // of a snapshot: what was the clone's own at the cut
	Slots  []slotOf       `json:"migrationSlots,omitempty"`
	Bad    []string       `json:"bad,omitempty"`
}

// Run prints the header field by field, and the table as runs of chunks that are in the store.
func (c *StoreDumpCmd) Run(env *Env) error {
	dev, st, err := readStore(env.Context, c.Store)
	if err != nil {
		return err
	}
	defer dev.Close()
	d := dump{Header: st.Header(), Here: []chunkRun{}}
	if d.Slots, err = migrationSlots(st); err != nil {
		return err
	}
	for n, problem := range st.Problems() {
		if problem != nil {
			d.Bad = append(d.Bad, fmt.Sprintf("header copy %d: %v", n, problem))
		}
	}
	bad := func(err error) { d.Bad = append(d.Bad, err.Error()) }
	if _, err = st.ScanTable(env.Context, bad, nil, collect(&d.Here)); err != nil {
		return err
	}
	if st.Header().Layout.Frozen != 0 {
		s, err := store.OpenSnapshot(dev)
		if err != nil {
			return err
		}
		if _, err := s.ScanFrozen(env.Context, bad, nil, collect(&d.Frozen)); err != nil {
			return err
		}
	}
	if env.JSON {
		return printJSON(env, d)
	}
	d.print(env)
	return nil
}

// collect joins runs that are neighbours.
func collect(runs *[]chunkRun) func(first, count int64) {
	return func(first, count int64) {
		if n := len(*runs); n > 0 && (*runs)[n-1].First+(*runs)[n-1].Count == first {
			(*runs)[n-1].Count += count
			return
		}
		*runs = append(*runs, chunkRun{first, count})
	}
}

func (d *dump) print(env *Env) {
	h, w := d.Header, env.Stdout
	fmt.Fprintln(w, "header:")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fields := reflect.ValueOf(*h)
	for i := range fields.NumField() {
		fmt.Fprintf(t, "  %s\t%v\n", fields.Type().Field(i).Name, fields.Field(i).Interface())
	}
	_ = t.Flush()
	for _, m := range d.Slots {
		fmt.Fprintf(w, "migration slot %d: %s\n", m.Slot, or(m.Error, fmt.Sprintf("%s, host %s %s, grant %s, epoch %d", m.State, m.Host, m.HostName, m.Grant, m.Epoch)))
	}
	if h.TableSectors() > 0 {
		fmt.Fprintf(w, "table: %s, runs of those in the store:\n", count(uint64(h.Chunks()), "chunk"))
	}
	for _, r := range d.Here {
		fmt.Fprintf(w, "  %d +%d\n", r.First, r.Count)
	}
	if h.Layout.Frozen != 0 {
		fmt.Fprintln(w, "frozen table, runs of those that were the clone's own:")
	}
	for _, r := range d.Frozen {
		fmt.Fprintf(w, "  %d +%d\n", r.First, r.Count)
	}
	for _, b := range d.Bad {
		fmt.Fprintf(w, "bad: %s\n", b)
	}
}
