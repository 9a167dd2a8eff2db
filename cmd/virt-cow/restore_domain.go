//go:build !virtcow_lean

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/archive"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
	"github.com/virt-cow/virt-cow/internal/restore"
)

// Run restores it. What the guest needs is made first and in full, its definition last.
func (c *RestoreDomainCmd) Run(env *Env) error {
	o, err := c.options(env)
	if err != nil {
		return exitError{err, exitUsage}
	}
	r, err := openRestorer(env)
	if err != nil {
		return err
	}
	defer r.Close()
	a, err := openArchive(env)
	if err != nil {
		return err
	}
	defer a.Close(context.Background())
	_, m, err := details(env, a, c.Backup)
	if err != nil {
		return err
	}
	held, err := r.journal.Hold(env.Context, cmp.Or(c.As, m.Domain))
	if err != nil {
		return goesOn(err)
	}
	defer held.Close()
	if held.Version != 0 {
		if err := c.again(env, r, held); err != nil {
			return err
		}
	}
	plan, err := restore.NewPlan(env.Context, c.Backup, m, r.volumes, o)
	if err == nil {
		err = plan.Check(env.Context, r.libvirt, r.volumes)
	}
	if err == nil {
		err = mayWrite(env, plan)
	}
	if err != nil {
		return restoreError(err)
	}
	if !env.JSON {
		printPlan(env, plan, c.KeepIdentity)
	}
	if c.DryRun {
		if env.JSON {
			return printJSON(env, planJSON(plan, nil))
		}
		return nil
	}
	return c.carryOut(env, r, a, held, plan)
}

// options reads the flags.
func (c *RestoreDomainCmd) options(env *Env) (o restore.Options, err error) {
	o = restore.Options{Name: c.As, Folder: c.Folder, KeepIdentity: c.KeepIdentity, Force: c.Force, RunDir: env.RunDir}
	if o.Disks, err = placesOf("--disk", c.Disk); err != nil {
		return o, err
	}
	o.States, err = placesOf("--state", c.State)
	return o, err
}

// placesOf reads TARGET=PATH.
func placesOf(flag string, list []string) (map[string]string, error) {
	places := map[string]string{}
	for _, text := range list {
		target, path, ok := strings.Cut(text, "=")
		if !ok || target == "" || path == "" {
			return nil, fmt.Errorf("%s %s: say which disk goes where, such as vda=/srv/vm/web1.raw", flag, text)
		}
		if places[target] != "" {
			return nil, fmt.Errorf("%s: disk %s is named twice", flag, target)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		places[target] = abs
	}
	return places, nil
}

// again takes away what is left of a restore of the same guest that was cut off, if that is wanted.
func (c *RestoreDomainCmd) again(env *Env, r *restorer, held *restore.Entry) error {
	was := held.Intent
	if !c.Force {
		return exitError{fmt.Errorf("a restore of %s from backup %s was cut off, begun %s: with --force it is begun anew; `virt-cow restore clean %s` removes what it left",
			was.Domain, was.Backup, time.Unix(was.Begun, 0).Format(time.DateTime), was.Domain), exitLocked}
	}
	if c.DryRun {
		return fmt.Errorf("a restore of %s was cut off: what is left of it has to be removed before anything can be said: virt-cow restore clean %s", was.Domain, was.Domain)
	}
	u, err := held.Undo(env.Context, r.libvirt, r.volumes)
	if u != nil && !env.JSON {
		printUndone(env, was.Domain, u)
	}
	return restoreError(err)
}

// mayWrite looks at all devices before the first is written over.
func mayWrite(env *Env, plan *restore.Plan) error {
	for _, d := range plan.Disks {
		if d.Device {
			if err := mayRestoreOver(env, d.Path); err != nil {
				return fmt.Errorf("disk %s: %w", d.Target, err)
			}
		}
	}
	return nil
}

// carryOut restores the guest and tells of it.
func (c *RestoreDomainCmd) carryOut(env *Env, r *restorer, a *archive.Archive, held *restore.Entry, plan *restore.Plan) error {
	bad := 0
	h := restore.Host{Libvirt: r.libvirt, Volumes: r.volumes}
	h.Write = func(_ context.Context, d restore.Disk, path string) error {
		from, err := openDisk(env, a, c.Backup, d.Target, c.SkipBad)
		if err != nil {
			return err
		}
		defer from.Close()
		if d.Device {
			err = restoreOver(env, from, path)
		} else {
			err = fillFile(env, from, path)
		}
		bad += from.bad
		return err
	}
	h.File = func(ctx context.Context, name string) ([]byte, error) {
		b, err := a.File(ctx, c.Backup, name)
		if c.SkipBad && errors.Is(err, archive.ErrDamaged) {
			bad++
			fmt.Fprintf(env.Stderr, "%v: it is left out\n", err)
			return nil, nil
		}
		return b, err
	}
	done, err := plan.Run(env.Context, h, held)
	if err != nil {
		return restoreError(err)
	}
	if env.JSON {
		err = printJSON(env, planJSON(plan, done))
	} else {
		printRestored(env, plan, done)
	}
	if err == nil && bad > 0 {
		err = exitError{errors.New("parts of the backup are damaged in the archive: they are zeros now, or left out"), exitDegraded}
	}
	return err
}

// restorer is what a guest is restored with.
type restorer struct {
	journal restore.Journal
	libvirt libvirtx.Conn
	volumes *api.Daemon
}

func openRestorer(env *Env) (*restorer, error) {
	volumes := api.NewDaemon(env.RunDir)
	if _, err := volumes.Status(env.Context); err != nil {
		return nil, err
	}
	conn, err := dialLibvirt(env.Context, env.Config.Libvirt.Socket)
	if err != nil {
		return nil, err
	}
	return &restorer{journal: restore.JournalIn(env.Config.StateDir), libvirt: conn, volumes: volumes}, nil
}

func (r *restorer) Close() error { return r.libvirt.Close() }

// restoreError gives an error its exit code.
func restoreError(err error) error {
	switch {
	case errors.Is(err, libvirtx.ErrDomainExists), errors.Is(err, restore.ErrInUse), errors.Is(err, blockdev.ErrLocked):
		return exitError{err, exitLocked}
	}
	return daemonError(err)
}

func goesOn(err error) error {
	if errors.Is(err, restore.ErrGoesOn) {
		return exitError{err, exitLocked}
	}
	return err
}

// Run removes what the restore made, or, if it had come to its end, only the note of it.
func (c *RestoreCleanCmd) Run(env *Env) error {
	r, err := openRestorer(env)
	if err != nil {
		return err
	}
	defer r.Close()
	held, err := r.journal.Hold(env.Context, c.Domain)
	if err != nil {
		return goesOn(err)
	}
	defer held.Close()
	if held.Version == 0 {
		return fmt.Errorf("domain %s: %w", c.Domain, restore.ErrNoIntent)
	}
	u, err := held.Undo(env.Context, r.libvirt, r.volumes)
	if u != nil {
		if env.JSON {
			err = errors.Join(printJSON(env, u), err)
		} else {
			printUndone(env, c.Domain, u)
		}
	}
	return restoreError(err)
}
