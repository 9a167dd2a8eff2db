//go:build !virtcow_lean

package main

import (
	"cmp"
	"fmt"

	"github.com/virt-cow/virt-cow/internal/restore"
)

// restoredJSON is what a guest's restore is to do, or has done. Sizes are bytes.
type restoredJSON struct {
	Backup string         `json:"backup"`
	Domain string         `json:"domain"`
	UUID   string         `json:"uuid"`
	Disks  []restoredDisk `json:"disks"`
	NVRAM  string         `json:"nvram,omitempty"` // path, if the backup has it
	TPM    string         `json:"tpm,omitempty"`   // folder
	// Left out of the backup, taken out of the definition, not in the definition, in common with the original.
	Left     []string `json:"left,omitempty"`
	Dropped  []string `json:"dropped,omitempty"`
	Unplaced []string `json:"unplaced,omitempty"`
	Shared   []string `json:"shared,omitempty"`
	Restored bool     `json:"restored"` // false with --dry-run
}

type restoredDisk struct {
	Target string `json:"target"`
	Size   int64  `json:"size"`
	Path   string `json:"path"` // of the raw disk
	Over   bool   `json:"over"` // something was there
	Volume string `json:"volume"`
	UUID   string `json:"uuid,omitempty"`  // of the volume
	Store  string `json:"store,omitempty"` // its state store
}

func planJSON(p *restore.Plan, done *restore.Done) restoredJSON {
	j := restoredJSON{
		Backup: p.Backup, Domain: p.Domain.Name, UUID: p.Domain.UUID.String(), Disks: []restoredDisk{}, Unplaced: p.Unplaced, Shared: p.Shared, Restored: done != nil,
	}
	for _, d := range p.Disks {
		disk := restoredDisk{Target: d.Target, Size: d.Size, Path: d.Path, Over: d.There, Volume: d.Volume, Store: d.State}
		if done != nil {
			v := done.Volumes[d.Target]
			disk.UUID, disk.Store = v.UUID, v.Store
		}
		j.Disks = append(j.Disks, disk)
	}
	for _, name := range p.State {
		if place, _ := p.Places.Of(name); place == p.Places.NVRAM {
			j.NVRAM = place
		} else {
			j.TPM = place
		}
	}
	for _, l := range p.Left {
		j.Left = append(j.Left, l.Target+": "+l.Why)
	}
	for _, d := range p.Dropped {
		j.Dropped = append(j.Dropped, d.Target+": "+cmp.Or(d.Source, "volume "+d.Volume))
	}
	return j
}

// printPlan shows what is about to be done.
func printPlan(env *Env, p *restore.Plan, same bool) {
	j := planJSON(p, nil)
	line := func(format string, args ...any) { fmt.Fprintf(env.Stderr, format+"\n", args...) }
	line("backup %s is restored as domain %s (%s):", j.Backup, j.Domain, j.UUID)
	if same {
		line("  it keeps its identity: no other host may have this guest, or its copy, too")
	}
	for _, d := range j.Disks {
		over := ""
		if d.Over {
			over = ", over what is there"
		}
		line("  disk %s, %s, to %s%s, volume %s", d.Target, formatSize(d.Size), d.Path, over, d.Volume)
	}
	if j.NVRAM != "" {
		line("  NVRAM to %s", j.NVRAM)
	}
	if j.TPM != "" {
		line("  TPM state to %s", j.TPM)
	}
	for _, l := range j.Left {
		line("  not in the backup: %s", l)
	}
	for _, l := range j.Dropped {
		line("  taken out of the definition, as it was not restored: %s", l)
	}
	for _, l := range j.Unplaced {
		line("  the definition has no disk %s: its volume is restored, `virt-cow attach` gives it to the guest", l)
	}
	for _, l := range j.Shared {
		line("  the same as the original's, see to it before both run: %s", l)
	}
}

func printRestored(env *Env, p *restore.Plan, done *restore.Done) {
	for _, d := range p.Disks {
		v := done.Volumes[d.Target]
		fmt.Fprintf(env.Stdout, "disk %s: volume %s, the raw disk %s, state store %s\n", d.Target, v.Name, d.Path, v.Store)
	}
	fmt.Fprintf(env.Stdout, "domain %s is restored: virsh start %s\n", p.Domain.Name, p.Domain.Name)
}

// printUndone tells what became of a restore that was cut off.
func printUndone(env *Env, domain string, u *restore.Undone) {
	if u.Finished {
		fmt.Fprintf(env.Stderr, "the restore of %s had come to its end: the domain is defined\n", domain)
	}
	for _, what := range u.Removed {
		fmt.Fprintf(env.Stderr, "removed: %s\n", what)
	}
	for _, what := range u.Left {
		fmt.Fprintf(env.Stderr, "left: %s\n", what)
	}
}
