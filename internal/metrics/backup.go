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
	backupBytes    = gauge("backup_bytes", "Of the domain's last backup: size of its disks, bytes read from them, of zeros, that the archive had already, and written to it.", "domain", "kind")
	backupWrites   = gauge("backup_guest_write_seconds", "How long the guest's writes took, mean and 99th percentile, before its last backup, back to the one before, and during it.", "domain", "when", "kind")
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

// byDomain is one backup of each name: the last, where a domain was made anew under the name of another.
func byDomain(all []api.BackupStatus) map[string]*api.BackupStatus {
	last := map[string]*api.BackupStatus{}
	for i := range all {
		b := &all[i]
		if l := last[b.Domain]; l == nil || b.Begun > l.Begun {
			last[b.Domain] = b
		}
	}
	return last
}

// sendBytes shows the sizes of a backup.
func sendBytes(ch chan<- prometheus.Metric, m metric, b *api.BackupStatus) {
	for kind, n := range map[string]int64{"size": b.Size, "read": b.Read, "zero": b.Zero, "reused": b.Reused, "written": b.Written} {
		m.send(ch, float64(n), label(b.Domain), kind)
	}
}

func (c collector) sendBackups(ch chan<- prometheus.Metric) {
	for _, b := range byDomain(c.s.Backups) {
		domain := label(b.Domain)
		backupSuccess.send(ch, float64(b.LastSuccess), domain)
		for _, state := range backupStates {
			backupState.send(ch, truth(b.State == state), domain, state)
		}
		for _, grade := range grades {
			backupGrade.send(ch, truth(b.Grade == grade), domain, grade)
		}
		end := b.Ended
		if end == 0 {
			end = c.now.Unix()
		}
		backupDuration.send(ch, float64(max(0, end-b.Begun)), domain)
		backupHold.send(ch, float64(b.HeldMicros)/1e6, domain)
		sendBytes(ch, backupBytes, b)
		for when, l := range map[string]*api.WriteLatency{"before": b.WritesBefore, "during": b.WritesDuring} {
			if l != nil && l.Writes > 0 {
				backupWrites.send(ch, float64(l.MeanMicros)/1e6, domain, when, "mean")
				backupWrites.send(ch, float64(l.P99Micros)/1e6, domain, when, "p99")
			}
		}
		maybeFrozen.send(ch, truth(b.MaybeFrozen), domain)
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
