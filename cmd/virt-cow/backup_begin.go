package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// run has the cut made, and follows the job unless it is not to be waited for.
func (f *BackupFlags) run(env *Env, r api.BackupRequest) error {
	d, v := api.NewDaemon(env.RunDir), newJobView(env)
	s, err := begin(env.Context, d, v, r)
	if err != nil && env.Context.Err() != nil { // the daemon ends what it has begun
		return errors.New("no longer watched; what was begun goes on: `virt-cow backup jobs`")
	}
	if err != nil {
		var r *api.RemoteError
		if errors.As(err, &r) && r.Code == http.StatusConflict && r.Reason != api.ErrorBusy {
			return err // exit code 4, no failure to a timer's unit, is for a domain that is being backed up
		}
		return daemonError(err)
	}
	if f.NoWait {
		return v.print(s)
	}
	if s, err = watchJob(env, d, v, s); err != nil {
		return err
	}
	if s.Grade == api.GradeCrash && f.Quiesce == api.QuiesceTry {
		return exitError{fmt.Errorf("backup %s of %s is of grade crash: the guest's file systems were not frozen for it; `virt-cow backup show %s` says why", s.Backup, s.Domain, s.Backup), exitDegraded}
	}
	return nil
}

// How long a cut takes before what it waits for is asked, and how often that is then.
const (
	cutSlow  = 2 * time.Second
	cutEvery = 5 * time.Second
)

// begin has the cut made, and meanwhile shows what it waits for, such as a migration's end.
func begin(ctx context.Context, d *api.Daemon, v *jobView, r api.BackupRequest) (*api.JobStatus, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		s   *api.JobStatus
		err error
	}
	made := make(chan outcome, 1)
	began := time.Now().Unix()
	go func() {
		s, err := d.Backup(ctx, r)
		made <- outcome{s, err}
	}()
	for wait := cutSlow; ; wait = cutEvery {
		select {
		case o := <-made:
			return o.s, o.err
		case <-time.After(wait):
		}
		s, err := d.Status(ctx)
		if err != nil {
			continue
		}
		if b := backupOf(s, r); b != nil && b.Begun >= began && b.State == api.JobReserved {
			if err := v.show(&api.JobStatus{Job: b.Job, Domain: b.Domain, UUID: b.UUID, State: b.State, Waits: b.Waits, Reserved: b.Begun}); err != nil {
				return nil, err
			}
		}
	}
}

// backupOf is what a daemon knows of the backup that was asked for.
func backupOf(s *api.DaemonStatus, r api.BackupRequest) *api.BackupStatus {
	domain := r.Domain
	for i := range s.Volumes {
		if r.Volume != "" && s.Volumes[i].Volume == r.Volume {
			domain = s.Volumes[i].Domain
		}
	}
	for i := range s.Backups {
		if b := &s.Backups[i]; domain != "" && (b.Domain == domain || b.UUID == domain) {
			return b
		}
	}
	return nil
}
