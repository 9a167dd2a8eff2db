package main

import (
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/archive"
)

// ArchiveCmd is about the archive.
type ArchiveCmd struct {
	Create   ArchiveCreateCmd   `cmd:"" help:"Make the archive that the configuration names."`
	Check    ArchiveCheckCmd    `cmd:"" help:"Open the archive, and say what is wrong if that fails."`
	Maintain ArchiveMaintainCmd `cmd:"" help:"Give back the room of what no backup has any more."`
}

// ArchiveCreateCmd makes the archive.
type ArchiveCreateCmd struct{}

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

// ArchiveCheckCmd opens the archive.
type ArchiveCheckCmd struct{}

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

// ArchiveMaintainCmd maintains the archive.
type ArchiveMaintainCmd struct {
	Full     bool `help:"Give back room too, whatever the schedule says."`
	TakeOver bool `help:"Do it though another host did so far: that one must not do it any more."`
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
	return a.Maintain(env.Context, how, c.TakeOver)
}
