package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-cow/virt-cow/internal/api"
)

// jobView shows a job: with --json each state it goes through, a line each; else lines for people, in place on a terminal.
type jobView struct {
	env   *Env
	bar   bool
	pace  pace
	state string
	waits string
	last  time.Time // that progress was shown
	at    float64   // percent then
	drawn bool
}

func newJobView(env *Env) *jobView {
	return &jobView{env: env, bar: isTerminal(env.Stderr)}
}

// jobEvent is a line of --json.
type jobEvent struct {
	*api.JobStatus
	Progress *jobProgress `json:"progress,omitempty"` // while it is copied, and once it is done
}

func (v *jobView) print(s *api.JobStatus) error {
	if v.env.JSON {
		return json.NewEncoder(v.env.Stdout).Encode(jobEvent{JobStatus: s})
	}
	_, err := fmt.Fprintf(v.env.Stdout, "job %s: %s\n", s.Job, s.State)
	return err
}

// phases are the states of a job that has not ended, for people.
var phases = map[string]string{
	api.JobReserved: "the cut is being made", api.JobQueued: "queued", api.JobCopying: "copying",
	api.JobCompleting: "all is copied; its owners are asked whether it is as of the cut",
}

// Off a terminal progress is shown once a percent, but neither more often than progressLine nor more seldom than this.
const progressSeldom = time.Minute

func (v *jobView) show(s *api.JobStatus) error {
	now := time.Now()
	v.pace.add(now, s)
	if v.env.JSON {
		e := jobEvent{JobStatus: s}
		if s.State == api.JobCopying || s.State == api.JobCompleting || s.State == api.JobDone {
			e.Progress = v.pace.progress(s)
		}
		return json.NewEncoder(v.env.Stdout).Encode(e)
	}
	v.phase(s)
	if s.Ended != 0 {
		v.end(s)
		return nil
	}
	if s.State != api.JobCopying {
		return nil
	}
	p := v.pace.progress(s)
	since := now.Sub(v.last)
	switch {
	case v.bar && since >= progressBar:
		fmt.Fprint(v.env.Stderr, clearLine+v.fit(p.text(s, now)))
		v.drawn = true
	case !v.bar && since >= progressLine && (p.Percent-v.at >= 1 || since >= progressSeldom):
		v.line("%s", p.text(s, now))
	default:
		return nil
	}
	v.last, v.at = now, p.Percent
	return nil
}

// phase tells of a new state, or of something else to wait for.
func (v *jobView) phase(s *api.JobStatus) {
	if s.State == v.state && s.Waits == v.waits {
		return
	}
	begun := s.State == api.JobCopying && v.state != api.JobCopying
	v.state, v.waits = s.State, s.Waits
	text, known := phases[s.State]
	if !known {
		text = s.State
	}
	if s.Waits != "" {
		text += ", waits for " + s.Waits
	}
	v.line("backup of %s: %s", s.Domain, text)
	if !begun {
		return
	}
	v.last, v.at = time.Now(), 0
	v.line("  cut made: guest held for %s, grade %s", held(s), grade(s.Grade, s.GradeWhy))
	for _, d := range s.Disks {
		how := ""
		if d.Via == "nbd" {
			how = ", read over the network: " + d.Why
		}
		v.line("  %s: %s, volume %s%s", d.Target, formatSize(d.Size), d.Volume, how)
	}
}

func held(s *api.JobStatus) time.Duration {
	return (time.Duration(s.Held) * time.Microsecond).Round(100 * time.Microsecond)
}

// grade is a grade, and why it is no better.
func grade(grade, why string) string {
	return grade + strings.TrimSuffix(": "+why, ": ")
}

// line prints one above the bar.
func (v *jobView) line(format string, args ...any) {
	if v.drawn {
		fmt.Fprint(v.env.Stderr, clearLine)
		v.drawn = false
	}
	fmt.Fprintf(v.env.Stderr, format+"\n", args...)
}

// fit cuts a line so that it stays one on the terminal: a longer one could not be taken away again.
func (v *jobView) fit(line string) string {
	f, ok := v.env.Stderr.(*os.File)
	if !ok {
		return line
	}
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || w.Col == 0 || len(line) < int(w.Col) {
		return line
	}
	return line[:w.Col-1]
}

// end is the summary. Of a job that failed the error follows.
func (v *jobView) end(s *api.JobStatus) {
	took := time.Duration(max(s.Ended-s.Started, 1)) * time.Second
	if s.State != api.JobDone {
		if s.Started != 0 {
			v.line("  after %s, %s of %s were copied; nothing of it is kept", took, formatSize(s.Seen), formatSize(s.Size))
		}
		return
	}
	rate := func(n int64) string { return formatSize(int64(float64(n)/took.Seconds())) + "/s" }
	v.line("backup %s of %s", s.Backup, s.Domain)
	v.line("  disks     %s, %s: %s read, %s sparse (%s), %s reused (%s), %s written to the archive", count(len(s.Disks), "disk"), formatSize(s.Size),
		formatSize(s.Read), formatSize(s.Zero), percent(s.Zero, s.Size), formatSize(s.Reused), percent(s.Reused, s.Size), formatSize(s.Written))
	v.line("  time      %s for the cut, %s for copying; read %s, write %s", time.Duration(max(s.Started-s.Reserved, 0))*time.Second, took, rate(s.Read), rate(s.Written))
	v.line("  guest     held for %s; grade %s", held(s), grade(s.Grade, s.GradeWhy))
	if fill := fills(s); fill != nil {
		v.line("  snapshots %s full at the end", strings.Join(fill, ", "))
	}
}

// fills are how full the snapshots' stores are, as far as that is known.
func fills(s *api.JobStatus) (out []string) {
	for _, d := range s.Disks {
		if d.Saved != nil {
			out = append(out, d.Target+" "+percent(*d.Saved, d.Size))
		}
	}
	return out
}

func percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", float64(part)/float64(whole)*100)
}
