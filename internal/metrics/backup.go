package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/virt-cow/virt-cow/internal/api"
)

// Of the last backup of each domain whose cut this daemon made.
var (
	backupSuccess  = gauge("backup_last_success_time_seconds", "When the domain's last backup that succeeded was done, Unix time; 0 for never.", "domain")
	backupState    = gauge("backup_state", "Which state the domain's last backup is in: 1 for one of them.", "domain", "state")
	backupGrade    = gauge("backup_grade", "What the guest had made of its disks at the last cut: 1 for one of the grades.", "domain", "grade")
	backupDuration = gauge("backup_duration_seconds", "How long the domain's last backup took, from its request to its end; so far, if it goes on.", "domain")
	backupHold     = gauge("backup_hold_seconds", "How long the guest's I/O was held for the last cut.", "domain")
	backupBytes    = gauge("backup_bytes", "Of the domain's last backup: size of its disks, bytes read from them, bytes written to the archive.", "domain", "kind")
	maybeFrozen    = gauge("backup_guest_maybe_frozen", "Whether the guest may be frozen still, as its thaw has not succeeded.", "domain")
	snapshots      = gauge("snapshots", "Snapshots that this host knows of.")
	staleSnapshots = gauge("snapshots_stale", "Snapshots whose job has ended, and that could not be removed.")
)

// backupStates and grades are all values of the labels state and grade.
var (
	backupStates = []string{
		api.JobReserved, api.JobQueued, api.JobCopying, api.JobCompleting, api.JobDone, api.JobFailed, api.JobCancelled,
	}
	grades = []string{api.GradeCrash, api.GradeFS, api.GradeApp, api.GradeOff}
)

func (c collector) sendBackups(ch chan<- prometheus.Metric) {
	for i := range c.s.Backups {
		b := &c.s.Backups[i]
		backupSuccess.send(ch, float64(b.LastSuccess), b.Domain)
		for _, state := range backupStates {
			backupState.send(ch, truth(b.State == state), b.Domain, state)
		}
		for _, grade := range grades {
			backupGrade.send(ch, truth(b.Grade == grade), b.Domain, grade)
		}
		end := b.Ended
		if end == 0 {
			end = c.now.Unix()
		}
		backupDuration.send(ch, float64(max(0, end-b.Begun)), b.Domain)
		backupHold.send(ch, float64(b.HeldMicros)/1e6, b.Domain)
		backupBytes.send(ch, float64(b.Size), b.Domain, "size")
		backupBytes.send(ch, float64(b.Read), b.Domain, "read")
		backupBytes.send(ch, float64(b.Written), b.Domain, "written")
		maybeFrozen.send(ch, truth(b.MaybeFrozen), b.Domain)
	}
	stale := 0
	for _, s := range c.s.Snapshots {
		if s.Stale {
			stale++
		}
	}
	snapshots.send(ch, float64(len(c.s.Snapshots)))
	staleSnapshots.send(ch, float64(stale))
}
