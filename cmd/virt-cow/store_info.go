package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/master"
	"github.com/virt-cow/virt-cow/internal/store"
)

// StoreInfoCmd shows a store's header.
type StoreInfoCmd struct {
	Store string `arg:"" help:"Store: a file or block device." type:"path"`
}

// storeInfo is what is told of a store. Sizes and offsets are bytes.
type storeInfo struct {
	Store      string    `json:"store"`
	Name       string    `json:"name"`
	UUID       string    `json:"uuid"`
	Role       string    `json:"role"`
	Size       int64     `json:"size"`
	ChunkSize  int64     `json:"chunkSize"`
	Created    time.Time `json:"created"`
	Master     string    `json:"master,omitempty"`
	MasterKind string    `json:"masterKind,omitempty"`
	Origin     string    `json:"origin,omitempty"`     // the raw disk of a state store
	OriginWWID string    `json:"originWWID,omitempty"` // "": known by its path only
	CutLoose   bool      `json:"cutLoose"`
	Cache      string    `json:"cache"`
	Epoch      uint32    `json:"epoch"`
	Sequence   uint64    `json:"sequence"`
	Generation uint64    `json:"generation"`
	Opens      uint64    `json:"opens"`
	Owner      *ownerOf  `json:"owner,omitempty"`
	Grants     int       `json:"grants"`
	Stack      int       `json:"stack"`
	DataOffset int64     `json:"dataOffset"`
	Room       int64     `json:"room"` // what the store needs of its device
	Problems   []string  `json:"problems,omitempty"`

	Snapshot  *snapshotInfo `json:"snapshot,omitempty"`  // of a snapshot's store
	Snapshots []stackInfo   `json:"snapshots,omitempty"` // the stack, oldest first

	GrantedTo []grantInfo `json:"grantedTo,omitempty"`
	Slots     []slotOf    `json:"migrationSlots,omitempty"`
}

// grantInfo is a host that has the volume open beside the owner.
type grantInfo struct {
	ID       string    `json:"id"`
	Host     string    `json:"host"`
	HostName string    `json:"hostName"`
	Boot     string    `json:"boot"`
	Address  string    `json:"address,omitempty"`
	Slot     int       `json:"slot"`
	Since    time.Time `json:"since"`
}

// slotOf is what a host said last in a migration.
type slotOf struct {
	Slot     int        `json:"slot"`
	Host     string     `json:"host,omitempty"`
	HostName string     `json:"hostName,omitempty"`
	State    string     `json:"state,omitempty"`
	Grant    string     `json:"grant,omitempty"`
	Epoch    uint32     `json:"epoch,omitempty"`
	Time     *time.Time `json:"time,omitempty"`
	Error    string     `json:"error,omitempty"` // the slot is damaged
}

func migrationSlots(st *store.Store) (out []slotOf, err error) {
	slots, err := st.Slots()
	for _, m := range slots {
		if m.Err != nil {
			out = append(out, slotOf{Slot: m.Slot, Error: m.Err.Error()})
			continue
		}
		at := time.UnixMilli(m.Time).UTC()
		out = append(out, slotOf{
			Slot: m.Slot, Host: m.Host.String(), HostName: m.HostName, State: m.State.String(), Grant: m.Grant.String(), Epoch: m.Epoch, Time: &at,
		})
	}
	return out, err
}

type ownerOf struct {
	Host     string    `json:"host"`
	HostName string    `json:"hostName"`
	Boot     string    `json:"boot"`
	Instance string    `json:"instance"`
	Address  string    `json:"address,omitempty"`
	Since    time.Time `json:"since"`
}

func newStoreInfo(path string, h *cowfmt.Header) *storeInfo {
	i := &storeInfo{
		Store: path, Name: h.Name, UUID: h.UUID.String(), Role: h.Role.String(), Size: h.Size, ChunkSize: h.ChunkSize,
		Created: time.Unix(h.Created, 0).UTC(), CutLoose: h.CutLoose, Cache: h.Cache.String(), Epoch: h.Epoch,
		Sequence: h.Sequence, Generation: h.Generation, Opens: h.Opens, Grants: len(h.Grants), Stack: len(h.Stack),
		DataOffset: h.Layout.Data, Room: h.DataEnd(),
	}
	if h.Master != nil {
		i.Master, i.MasterKind = h.Master.Address, h.Master.Kind.String()
	}
	if h.Origin != nil && h.Role == cowfmt.RoleState {
		i.Origin = h.Origin.Address
	}
	if h.OriginIdentity != nil {
		i.OriginWWID = h.OriginIdentity.WWID
	}
	if h.Role == cowfmt.RoleSnapshot {
		i.Snapshot = &snapshotInfo{VolumeStore: h.Origin.Address, VolumeUUID: h.OriginIdentity.UUID.String(), Cut: h.Cut.String(), Frozen: h.Layout.Frozen != 0}
	}
	for _, e := range h.Stack {
		i.Snapshots = append(i.Snapshots, newStackInfo(e))
	}
	for _, g := range h.Grants {
		i.GrantedTo = append(i.GrantedTo, grantInfo{
			ID: g.ID.String(), Host: g.Host.String(), HostName: g.HostName, Boot: g.Boot.String(), Address: g.Address, Slot: int(g.Slot),
			Since: time.Unix(g.Since, 0).UTC(),
		})
	}
	if o := h.Owner; o != nil {
		i.Owner = &ownerOf{
			Host: o.Host.String(), HostName: o.HostName, Boot: o.Boot.String(), Instance: o.Instance.String(),
			Address: o.Address, Since: time.Unix(o.Since, 0).UTC(),
		}
	}
	return i
}

// readStore opens a store for looking at it, also while an engine serves it.
func readStore(ctx context.Context, path string) (*blockdev.File, *store.Store, error) {
	dev, err := blockdev.OpenFile(ctx, path, blockdev.FileOptions{ReadOnly: true, Direct: true})
	if err != nil {
		return nil, nil, err
	}
	st, err := store.Open(dev)
	if errors.Is(err, cowfmt.ErrNotStore) {
		err = fmt.Errorf("%s: %w: there is no header on it", path, cowfmt.ErrNotStore)
	}
	if err != nil {
		return nil, nil, errors.Join(err, dev.Close())
	}
	return dev, st, nil
}

// Run prints the header.
func (c *StoreInfoCmd) Run(env *Env) error {
	dev, st, err := readStore(env.Context, c.Store)
	if err != nil {
		return err
	}
	defer dev.Close()
	i := newStoreInfo(c.Store, st.Header())
	for n, problem := range st.Problems() {
		if problem != nil {
			i.Problems = append(i.Problems, fmt.Sprintf("header copy %d: %v", n, problem))
		}
	}
	if i.Slots, err = migrationSlots(st); err != nil {
		return err
	}
	if i.Snapshot != nil {
		if err := i.Snapshot.count(env, st); err != nil {
			return err
		}
	}
	if env.JSON {
		return printJSON(env, i)
	}
	return i.print(env.Stdout, dev.IsBlockDevice())
}

func (i *storeInfo) print(w io.Writer, block bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("volume", "%s", i.Name)
	line("uuid", "%s", i.UUID)
	line("role", "%s", i.Role)
	line("size", "%s (%d bytes)", formatSize(i.Size), i.Size)
	line("chunk", "%s", formatSize(i.ChunkSize))
	line("created", "%s", i.Created.Local().Format(time.RFC3339))
	switch {
	case i.Snapshot != nil:
		i.Snapshot.print(line, i)
	case i.Origin != "":
		line("raw disk", "%s (%s)", i.Origin, or(i.OriginWWID, "known by its path only"))
	case i.CutLoose:
		line("master", "none: cut loose")
	case i.Master == "":
		line("master", "none: empty behind what was written")
	default:
		line("master", "%s (%s)", i.Master, i.MasterKind)
	}
	switch {
	case i.Snapshot != nil: // its volume's
	case i.Owner == nil:
		line("owner", "none: closed")
	default:
		line("owner", "%s since %s", i.Owner.HostName, i.Owner.Since.Local().Format(time.RFC3339))
	}
	line("cache", "%s", i.Cache)
	line("epoch", "%d, sequence %d, generation %d, opened %s", i.Epoch, i.Sequence, i.Generation, count(i.Opens, "time"))
	if i.Grants+i.Stack > 0 {
		line("shared", "%d grants, %d snapshots and trackers", i.Grants, i.Stack)
	}
	for _, e := range i.Snapshots {
		line(e.Kind, "%s", e.text())
	}
	for _, g := range i.GrantedTo {
		line("granted", "to %s since %s, boot %s, slot %d", or(g.HostName, g.Host), g.Since.Local().Format(time.RFC3339), g.Boot, g.Slot)
	}
	for _, m := range i.Slots {
		if m.Error != "" {
			line("slot", "%d: damaged: %s", m.Slot, m.Error)
			continue
		}
		line("slot", "%d: %s is %s since %s", m.Slot, or(m.HostName, m.Host), m.State, m.Time.Local().Format(time.RFC3339))
	}
	if i.Origin == "" {
		line("data", "at %d, %s in all", i.DataOffset, formatSize(i.Room))
	}
	for _, p := range i.Problems {
		line("damaged", "%s", p)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if i.Origin != "" {
		fmt.Fprintf(w, "\nWithout virt-cow, while no engine serves it, use the raw disk as it is.\n")
	}
	if i.CutLoose {
		fmt.Fprintf(w, "\nIts data area is a plain raw disk. Without virt-cow, while no engine serves it:\n%s", i.plain(block))
	}
	return nil
}

// plain tells three ways to the data area without virt-cow.
func (i *storeInfo) plain(block bool) string {
	var b, xmlPath strings.Builder
	_ = xml.EscapeText(&xmlPath, []byte(i.Store))
	path := master.Quote(i.Store)
	fmt.Fprintf(&b, "  losetup --find --show --offset %d --sizelimit %d %s\n", i.DataOffset, i.Size, path)
	if block {
		fmt.Fprintf(&b, "  dmsetup create %s --table '0 %d linear %s %d'\n", i.Name, i.Size/blockdev.SectorSize, i.Store, i.DataOffset/blockdev.SectorSize)
	} else {
		fmt.Fprintf(&b, "  dmsetup create %s --table \"0 %d linear $(losetup --find --show %s) %d\"\n", i.Name, i.Size/blockdev.SectorSize, path, i.DataOffset/blockdev.SectorSize)
	}
	kind, attr := "file", "file"
	if block {
		kind, attr = "block", "dev"
	}
	fmt.Fprintf(&b, "  <disk type='%s' device='disk'><driver name='qemu' type='raw' cache='none'/>"+
		"<source %s='%s'><slices><slice type='storage' offset='%d' size='%d'/></slices></source><target dev='vdb' bus='virtio'/></disk>\n",
		kind, attr, &xmlPath, i.DataOffset, i.Size)
	return b.String()
}
