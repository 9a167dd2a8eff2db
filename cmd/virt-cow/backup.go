package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
)

// BackupCmd is about backups.
type BackupCmd struct {
	Domain BackupDomainCmd `cmd:"" help:"Back a guest up while it runs."`
	Volume BackupVolumeCmd `cmd:"" help:"Back one volume up while its guest runs."`
	Jobs   BackupJobsCmd   `cmd:"" help:"Show the image node's jobs."`
	Watch  BackupWatchCmd  `cmd:"" help:"Show how far a job is, until it ends."`
	Cancel BackupCancelCmd `cmd:"" help:"Cancel a job."`
	List   BackupListCmd   `cmd:"" help:"List the backups in the archive."`
	Show   BackupShowCmd   `cmd:"" help:"Show what a backup holds."`
	Verify BackupVerifyCmd `cmd:"" help:"Read a backup again, all of it, and check it."`
	Delete BackupDeleteCmd `cmd:"" help:"Delete a backup."`
	Serve  BackupServeCmd  `cmd:"" help:"Serve a disk of a backup over NBD, read-only."`
	Export BackupExportCmd `cmd:"" help:"Write a disk of a backup to an image file."`
}

// BackupFlags say how a backup is made.
type BackupFlags struct {
	Quiesce  string        `help:"Freeze the guest's file systems: require fails without, try goes on, off does not." enum:"require,try,off" default:"try"`
	Hooks    bool          `help:"The guest has freeze hooks for its databases: then the grade may be app."`
	OnError  string        `help:"What gives way where the guest's old data can't be saved in time: the snapshot, or the guest's write." enum:"break-snapshot,break-guest-write" default:"break-snapshot"`
	Rate     Size          `help:"Limit of copying, bytes a second; the image node's by default." placeholder:"SIZE"`
	Wait     time.Duration `help:"How long to wait for a migration to end, a day at most." default:"10m" placeholder:"TIME"`
	NoWait   bool          `help:"Return as soon as the image node has the job."`
	Folder   string        `help:"Where the snapshot's stores are made." type:"path" placeholder:"DIR"`
	Pool     string        `help:"Storage pool of libvirt that the snapshot's stores are made in." placeholder:"POOL"`
	Provider string        `help:"Plugin that makes the snapshot's stores." placeholder:"NAME"`
}

func (f *BackupFlags) request() api.BackupRequest {
	wait := int64(math.Ceil(f.Wait.Seconds()))
	if wait == 0 {
		wait = 1 // 0 would be the daemon's own patience
	}
	return api.BackupRequest{
		Quiesce: f.Quiesce, Hooks: f.Hooks, OnError: f.OnError, Rate: int64(f.Rate), WaitSeconds: wait,
		Folder: f.Folder, Pool: f.Pool, Provider: f.Provider,
	}
}

// BackupDomainCmd backs a domain up.
type BackupDomainCmd struct {
	Domain       string   `arg:"" help:"Name or UUID of the domain." complete:"domain"`
	Exclude      []string `help:"Disks to leave out, such as vdb." placeholder:"DEV"`
	LeaveForeign bool     `help:"Leave out disks that can't be backed up; else they are a reason to refuse."`
	BackupFlags
}

// Run has the cut made, and waits for the job.
func (c *BackupDomainCmd) Run(env *Env) error {
	if err := checkDomain(c.Domain); err != nil {
		return err
	}
	r := c.request()
	r.Domain, r.Exclude, r.LeaveForeign = c.Domain, c.Exclude, c.LeaveForeign
	return c.run(env, r)
}

// BackupVolumeCmd backs a volume up.
type BackupVolumeCmd struct {
	Volume string `arg:"" help:"Name of the volume." complete:"volume"`
	BackupFlags
}

// Run has the cut made, and waits for the job.
func (c *BackupVolumeCmd) Run(env *Env) error {
	if err := checkName(c.Volume); err != nil {
		return err
	}
	r := c.request()
	r.Volume = c.Volume
	return c.run(env, r)
}

// node is who knows of jobs: the image node on its own host, elsewhere the daemon, which asks it.
type node interface {
	BackupJobs(ctx context.Context) (*api.JobList, error)
	BackupJob(ctx context.Context, r api.JobRequest) (*api.JobStatus, error)
	CancelBackup(ctx context.Context, r api.JobRequest) (*api.JobStatus, error)
}

func nodeOf(env *Env) node {
	if _, err := os.Stat(filepath.Join(env.RunDir, api.NodeSocket)); err == nil {
		return api.NewNode(env.RunDir)
	}
	return api.NewDaemon(env.RunDir)
}

func checkJob(id string) error {
	if _, err := uuid.Parse(id); err != nil {
		return exitError{fmt.Errorf("%q is no job: `virt-cow backup jobs` prints those there are", id), exitUsage}
	}
	return nil
}

// BackupJobsCmd lists jobs.
type BackupJobsCmd struct {
	Domain string `arg:"" optional:"" help:"Only this domain's." complete:"domain"`
	All    bool   `help:"Also those that ended more than a week ago."`
}

// Run prints them, youngest first.
func (c *BackupJobsCmd) Run(env *Env) error {
	list, err := nodeOf(env).BackupJobs(env.Context)
	if err != nil {
		return daemonError(err)
	}
	jobs := []api.JobStatus{}
	for _, j := range list.Jobs {
		old := j.Ended != 0 && time.Since(time.Unix(j.Ended, 0)) > 7*24*time.Hour
		if (c.Domain == "" || c.Domain == j.Domain || c.Domain == j.UUID) && (c.All || !old) {
			jobs = append(jobs, j)
		}
	}
	if env.JSON {
		return printJSON(env, api.JobList{Jobs: jobs})
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "JOB\tDOMAIN\tSTATE\tBEGUN\tSIZE\tDONE\tBACKUP")
	for _, j := range jobs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", j.Job, j.Domain, j.State, time.Unix(j.Reserved, 0).Format(time.DateTime),
			formatSize(j.Size), percent(j.Done, j.Size), or(j.Backup, "-"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, j := range jobs {
		if why := or(j.Error, j.Waits); why != "" {
			fmt.Fprintf(env.Stdout, "%s: %s\n", j.Job, why)
		}
	}
	return nil
}

// BackupWatchCmd follows a job.
type BackupWatchCmd struct {
	Job string `arg:"" help:"The job's UUID."`
}

// Run follows it. The exit code is 1 if it does not come to be done.
func (c *BackupWatchCmd) Run(env *Env) error {
	if err := checkJob(c.Job); err != nil {
		return err
	}
	n := nodeOf(env)
	s, err := n.BackupJob(env.Context, api.JobRequest{Job: c.Job})
	if err != nil {
		return daemonError(err)
	}
	_, err = watchJob(env, n, newJobView(env), s)
	return err
}

// BackupCancelCmd cancels a job.
type BackupCancelCmd struct {
	Job string `arg:"" help:"The job's UUID."`
}

// cancelPatience is how long a job that is cancelled may take to end. What it has to clean up in the archive takes a minute at most.
const cancelPatience = 2 * time.Minute

// Run waits until the job has ended: exit code 1 if it was done before, or if it hangs.
func (c *BackupCancelCmd) Run(env *Env) error {
	if err := checkJob(c.Job); err != nil {
		return err
	}
	n := nodeOf(env)
	s, err := n.CancelBackup(env.Context, api.JobRequest{Job: c.Job})
	for late := time.Now().Add(cancelPatience); err == nil && s.Ended == 0 && env.Context.Err() == nil; {
		if time.Now().After(late) {
			return fmt.Errorf("job %s is cancelled, but has not ended yet: %s", c.Job, or(s.Waits, "it is "+s.State))
		}
		s, err = n.BackupJob(env.Context, api.JobRequest{Job: c.Job, Changed: s.Changed})
	}
	switch {
	case err != nil:
		return daemonError(err)
	case s.State != api.JobCancelled:
		return fmt.Errorf("job %s is %s: there is nothing to cancel", c.Job, s.State)
	case env.JSON:
		return printJSON(env, s)
	}
	return nil
}

// jobGone is how long an image node that once answered may be away, as while it is upgraded.
const jobGone = 10 * time.Minute

// watchJob follows a job to its end.
func watchJob(env *Env, n node, v *jobView, s *api.JobStatus) (*api.JobStatus, error) {
	answered := time.Now()
	for {
		if err := v.show(s); err != nil {
			return s, err
		}
		if s.Ended != 0 {
			break
		}
		next, err := n.BackupJob(env.Context, api.JobRequest{Job: s.Job, Changed: s.Changed})
		switch {
		case env.Context.Err() != nil:
			return s, fmt.Errorf("no longer watched; the job goes on: `virt-cow backup watch %s`", s.Job)
		case err == nil:
			s, answered = next, time.Now()
			continue
		case errors.Is(err, context.DeadlineExceeded):
		default:
			var refused *api.RemoteError
			if errors.As(err, &refused) && refused.Code < 500 || time.Since(answered) > jobGone {
				return s, daemonError(err)
			}
		}
		select {
		case <-time.After(time.Second):
		case <-env.Context.Done():
		}
	}
	if s.State != api.JobDone {
		return s, fmt.Errorf("backup of %s %s%s", s.Domain, s.State, strings.TrimSuffix(": "+s.Error, ": "))
	}
	return s, nil
}
