//go:build !virtcow_lean

package main

import (
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/archive"
)

// Run makes it. One that is there already stays, and is an error.
func (c *ArchiveCreateCmd) Run(env *Env) error {
	where, err := archiveConfig(env)
	if err != nil {
		return err
	}
	if err := archive.Create(env.Context, where); err != nil {
		return err
	}
	fmt.Fprintf(env.Stderr, "archive %s is made. Keep a copy of %s elsewhere: without it nobody ever reads a backup again.\n", where.URI, where.PassphraseFile)
	return nil
}

// Run says how many backups are there.
func (c *ArchiveCheckCmd) Run(env *Env) error {
	a, err := openArchive(env)
	if err != nil {
		return err
	}
	defer a.Close(env.Context)
	began := time.Now()
	all, err := a.List(env.Context, archive.Filter{})
	if err != nil {
		return err
	}
	if env.JSON {
		return printJSON(env, struct {
			URI     string `json:"uri"`
			Backups int    `json:"backups"`
		}{env.Config.Archive.URI, len(all)})
	}
	fmt.Fprintf(env.Stdout, "archive %s: %s, listed in %s\n", env.Config.Archive.URI, count(len(all), "backup"), time.Since(began).Round(time.Millisecond))
	return nil
}

// Run maintains it.
func (c *ArchiveMaintainCmd) Run(env *Env) error {
	a, err := openArchive(env)
	if err != nil {
		return err
	}
	defer a.Close(env.Context)
	how := archive.UpkeepDue
	if c.Full {
		how = archive.UpkeepFull
	}
	began := time.Now()
	done, err := a.Maintain(env.Context, how, c.TakeOver)
	switch {
	case err != nil:
		return err
	case done == archive.UpkeepNone:
		fmt.Fprintln(env.Stderr, "nothing is due: --full does all of it now")
	default:
		fmt.Fprintf(env.Stderr, "archive maintained, %s, in %s\n", done, time.Since(began).Round(100*time.Millisecond))
	}
	return nil
}
