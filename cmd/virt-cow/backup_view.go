package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/virt-cow/virt-cow/internal/api"
)

// jobView shows a job: with --json each state it goes through, a line each; else lines for people, in place on a terminal.
type jobView struct {
	env   *Env
	bar   bool
	begin time.Time
	from  api.JobStatus // at begin: not counted into rates
	state string
	waits string
	last  time.Time
	drawn bool
}

func newJobView(env *Env, s *api.JobStatus) *jobView {
	return &jobView{env: env, bar: isTerminal(env.Stderr), begin: time.Now(), from: *s}
}

func (v *jobView) print(s *api.JobStatus) error {
	if v.env.JSON {
		return json.NewEncoder(v.env.Stdout).Encode(s)
	}
	_, err := fmt.Fprintf(v.env.Stdout, "job %s: %s\n", s.Job, s.State)
	return err
}

func (v *jobView) show(s *api.JobStatus) error {
	if v.env.JSON {
		return v.print(s)
	}
	if s.State != v.state || s.Waits != v.waits {
		v.state, v.waits = s.State, s.Waits
		text := s.State
		if s.Waits != "" {
			text += ", waits for " + s.Waits
		}
		v.line("backup of %s: %s", s.Domain, text)
		for _, d := range s.Disks {
			if d.Via == "nbd" && s.State == api.JobCopying {
				v.line("  %s is read over the network: %s", d.Target, d.Why)
			}
		}
	}
	if s.Ended != 0 {
		v.end(s)
		return nil
	}
	every := progressLine
	if v.bar {
		every = progressBar
	}
	if s.State != api.JobCopying || time.Since(v.last) < every {
		return nil
	}
	v.last = time.Now()
	if v.bar {
		fmt.Fprint(v.env.Stderr, clearLine+v.text(s))
		v.drawn = true
	} else {
		v.line("%s", v.text(s))
	}
	return nil
}

// line prints one above the bar.
func (v *jobView) line(format string, args ...any) {
	if v.drawn {
		fmt.Fprint(v.env.Stderr, clearLine)
		v.drawn = false
	}
	fmt.Fprintf(v.env.Stderr, format+"\n", args...)
}

// text: 12.3% (1 GiB of 8 GiB) in 3s, read 340 MiB/s, write 20 MiB/s, sparse 10%, reused 5%, ETA 21s.
func (v *jobView) text(s *api.JobStatus) string {
	took := time.Since(v.begin)
	speed := func(now, from int64) int64 { return int64(float64(now-from) / max(took.Seconds(), 0.001)) }
	left := "--"
	if rate := speed(s.Seen, v.from.Seen); rate > 0 {
		left = (time.Duration((s.Size-s.Seen)/rate) * time.Second).String()
	}
	return fmt.Sprintf("%s (%s of %s) in %s, read %s/s, write %s/s, sparse %s, reused %s, ETA %s", percent(s.Seen, s.Size), formatSize(s.Seen),
		formatSize(s.Size), took.Round(time.Second), formatSize(speed(s.Read, v.from.Read)), formatSize(speed(s.Written, v.from.Written)),
		percent(s.Zero, s.Size), percent(s.Reused, s.Size), left)
}

func (v *jobView) end(s *api.JobStatus) {
	if s.State != api.JobDone {
		return // the error says it
	}
	took := time.Duration(max(s.Ended-s.Started, 1)) * time.Second
	v.line("backup %s: %s in %s, %s read, %s written (sparse %s, reused %s), grade %s", s.Backup, formatSize(s.Size), took, formatSize(s.Read),
		formatSize(s.Written), percent(s.Zero, s.Size), percent(s.Reused, s.Size), s.Grade)
}

func percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", float64(part)/float64(whole)*100)
}
