//go:build !virtcow_lean

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/archive"
)

// backupLine is a line of the list. Sizes are bytes.
type backupLine struct {
	ID       string    `json:"id"`
	Domain   string    `json:"domain"`
	UUID     string    `json:"uuid"`
	Host     string    `json:"host"`
	Job      string    `json:"job"`
	Grade    string    `json:"grade"`
	Time     time.Time `json:"time"` // of the cut
	Finished time.Time `json:"finished"`
	Size     int64     `json:"size"`
}

func lineOf(b archive.Backup) backupLine {
	return backupLine{b.ID, b.Domain, b.UUID, b.Host, b.Job, b.Grade, b.Time, b.Finished, b.Size}
}

// Run prints them, oldest first.
func (c *BackupListCmd) Run(env *Env) error {
	a, err := openArchive(env)
	if err != nil {
		return err
	}
	defer a.Close(env.Context)
	all, err := a.List(env.Context, archive.Filter{Domain: c.Domain})
	if err != nil {
		return err
	}
	lines := []backupLine{}
	for _, b := range all {
		lines = append(lines, lineOf(b))
	}
	if env.JSON {
		return printJSON(env, lines)
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BACKUP\tDOMAIN\tCUT\tGRADE\tSIZE\tHOST")
	for _, l := range lines {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, l.Domain, l.Time.Local().Format(time.DateTime), l.Grade, formatSize(l.Size), l.Host)
	}
	return w.Flush()
}

// shownBackup is a backup with what it holds.
type shownBackup struct {
	backupLine
	Stats    archive.Stats `json:"stats"`
	Files    []string      `json:"files"`
	Manifest api.Manifest  `json:"manifest"`
}

// Run prints it.
func (c *BackupShowCmd) Run(env *Env) error {
	a, err := openArchive(env)
	if err != nil {
		return err
	}
	defer a.Close(env.Context)
	d, m, err := details(env, a, c.Backup)
	if err != nil {
		return err
	}
	switch {
	case c.XML:
		_, err := fmt.Fprintln(env.Stdout, m.InactiveXML)
		return err
	case env.JSON:
		return printJSON(env, shownBackup{lineOf(d.Backup), d.Stats, d.Files, *m})
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "backup\t%s\ndomain\t%s (%s)\ncut\t%s on %s, guest held for %s\n", d.ID, m.Domain, m.UUID, d.Time.Local().Format(time.DateTime), m.Host,
		time.Duration(m.HeldMicros)*time.Microsecond)
	grade := m.Grade
	if m.GradeWhy != "" {
		grade += ": " + m.GradeWhy
	}
	fmt.Fprintf(w, "grade\t%s\nread\t%s, %s of zeros\nwritten\t%s, reused %s\n", grade, formatSize(d.Stats.Read), formatSize(d.Stats.Zero), formatSize(d.Stats.Written), formatSize(d.Stats.Reused))
	for _, disk := range m.Disks {
		fmt.Fprintf(w, "disk %s\t%s, volume %s at %s\n", disk.Target, formatSize(disk.Size), disk.Volume, disk.Store.Address)
		if disk.Via == "nbd" {
			fmt.Fprintf(w, "\tread over the network: %s\n", disk.Why)
		}
	}
	for _, left := range m.Left {
		fmt.Fprintf(w, "without %s\t%s\n", left.Target, left.Why)
	}
	for _, f := range d.Files {
		fmt.Fprintf(w, "file\t%s\n", f)
	}
	return w.Flush()
}

// details are what a backup holds, and its manifest.
func details(env *Env, a *archive.Archive, id string) (*archive.Details, *api.Manifest, error) {
	d, err := a.Get(env.Context, id)
	if err != nil {
		return nil, nil, err
	}
	var m api.Manifest
	if err := json.Unmarshal(d.Manifest, &m); err != nil {
		return nil, nil, fmt.Errorf("backup %s: its manifest: %w", id, err)
	}
	if m.Version != 1 {
		return nil, nil, fmt.Errorf("backup %s: its manifest has version %d, which a newer virt-cow wrote", id, m.Version)
	}
	return d, &m, nil
}

// Run reads and hashes all of it. Exit code 5 if something is damaged.
func (c *BackupVerifyCmd) Run(env *Env) error {
	a, err := openArchive(env)
	if err != nil {
		return err
	}
	defer a.Close(env.Context)
	p := newProgress(env.Stderr, "verify "+c.Backup, 0)
	report, err := a.Verify(env.Context, c.Backup, func(r archive.Report) {
		if !env.JSON {
			p.step(r.Done, r.Size)
		}
	})
	if err != nil && !errors.Is(err, archive.ErrDamaged) {
		return err
	}
	damage := []string{}
	for _, d := range report.Damage {
		damage = append(damage, d.String())
	}
	if env.JSON {
		if err := printJSON(env, struct {
			ID     string   `json:"id"`
			Size   int64    `json:"size"`
			Damage []string `json:"damage"`
		}{c.Backup, report.Size, damage}); err != nil {
			return err
		}
	} else {
		outcome := "all as it was written"
		if err != nil {
			outcome = "damaged"
		}
		p.end(report.Done, report.Size, outcome)
		for _, d := range damage {
			fmt.Fprintln(env.Stdout, d)
		}
	}
	if err != nil {
		return exitError{err, exitVerify}
	}
	return nil
}

// Run deletes it.
func (c *BackupDeleteCmd) Run(env *Env) error {
	a, err := openArchive(env)
	if err != nil {
		return err
	}
	defer a.Close(env.Context)
	d, err := a.Get(env.Context, c.Backup)
	if err != nil {
		return err
	}
	if !c.Yes {
		prompt := fmt.Sprintf("The backup of %s of %s is deleted. Type the domain's name to go on: ", d.Domain, d.Time.Local().Format(time.DateTime))
		if err := confirm(env, prompt, d.Domain); err != nil {
			return err
		}
	}
	return a.Delete(env.Context, c.Backup)
}
