package main

import (
	"fmt"
	"reflect"
	"text/tabwriter"

	"github.com/virt-cow/virt-cow/internal/cowfmt"
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
	_, err = st.ScanTable(env.Context, func(err error) { d.Bad = append(d.Bad, err.Error()) }, nil, func(first, count int64) {
		if n := len(d.Here); n > 0 && d.Here[n-1].First+d.Here[n-1].Count == first {
			d.Here[n-1].Count += count
			return
		}
		d.Here = append(d.Here, chunkRun{first, count})
	})
	if err != nil {
		return err
	}
	if env.JSON {
		return printJSON(env, d)
	}
	d.print(env)
	return nil
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
	for _, b := range d.Bad {
		fmt.Fprintf(w, "bad: %s\n", b)
	}
}
