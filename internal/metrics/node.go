package metrics

import (
	"context"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/virt-cow/virt-cow/internal/api"
)

// Of an image node. Domains are those it remembers a job of.
var (
	nodeJobs    = gauge("node_jobs", "Jobs that the image node remembers, by state.", "state")
	nodeWaiting = gauge("node_jobs_waiting", "Jobs that wait for an archive, a disk or a volume's owner.")

	nodeSuccess  = gauge("node_backup_last_success_time_seconds", "When the domain's last backup that succeeded was done, Unix time; 0 for never.", "domain")
	nodeFailed   = gauge("node_backup_failed", "Whether the domain's last backup failed.", "domain")
	nodeGrade    = gauge("node_backup_grade", "What the guest had made of its disks at the last cut: 1 for one of the grades.", "domain", "grade")
	nodeDuration = gauge("node_backup_duration_seconds", "How long the domain's last backup took, from its request to its end; so far, if it goes on.", "domain")
	nodeHold     = gauge("node_backup_hold_seconds", "How long the guest's I/O was held for the last cut.", "domain")
	nodeBytes    = gauge("node_backup_bytes", "Of the domain's last backup: size of its disks, bytes read from them, of zeros, that the archive had already, and written to it.", "domain", "kind")
	nodeDone     = gauge("node_backup_done_ratio", "Which part of the domain's disks is copied, from 0 to 1; only of a backup that goes on.", "domain")
	nodeFill     = gauge("node_backup_snapshot_fill_ratio", "How full the domain's fullest snapshot is, from 0 to 1; only of a backup that goes on.", "domain")

	archiveUp         = gauge("node_archive_up", "Whether the archive could be opened when that was last tried, every ten minutes at least.")
	archiveSeen       = gauge("node_archive_seen_time_seconds", "When the archive was opened last, Unix time; 0 for not since the start.")
	archiveOwned      = gauge("node_archive_maintenance_owner", "Whether this host does the archive's maintenance.")
	archiveMaintained = gauge("node_archive_maintenance_time_seconds", "When maintenance was done last, Unix time; 0 for not since the start.")
	archiveFailed     = gauge("node_archive_maintenance_failed", "Whether the last maintenance of the archive failed.")
)

// NodeHandler is Handler for an image node.
func NodeHandler(status func(context.Context) *api.NodeStatus) http.Handler {
	return handler(func(ctx context.Context) prometheus.Collector {
		if s := status(ctx); s != nil {
			return nodeCollector{s, time.Now()}
		}
		return nil
	})
}

// nodeCollector shows one status of an image node, as it was now.
type nodeCollector struct {
	s   *api.NodeStatus
	now time.Time
}

// Describe lists all there can be.
func (c nodeCollector) Describe(ch chan<- *prometheus.Desc) { collector{}.Describe(ch) }

// Collect shows the node, its archive and each domain.
func (c nodeCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.s
	buildInfo.send(ch, 1, label(s.Version), runtime.Version())
	startTime.send(ch, float64(s.Started))
	for _, state := range backupStates {
		nodeJobs.send(ch, float64(s.Jobs[state]), state)
	}
	waiting, shown := 0, map[string]bool{}
	for i := range s.Running {
		j := &s.Running[i]
		if j.Waits != "" {
			waiting++
		}
		if !shown[j.Domain] {
			shown[j.Domain] = true
			sendRunning(ch, j)
		}
	}
	nodeWaiting.send(ch, float64(waiting))
	for _, b := range byDomain(s.Backups) {
		c.sendBackup(ch, b)
	}
	a := &s.Archive
	archiveUp.send(ch, truth(a.Up))
	archiveSeen.send(ch, float64(a.Seen))
	archiveOwned.send(ch, truth(!a.NotOurs))
	archiveMaintained.send(ch, float64(a.Maintained))
	archiveFailed.send(ch, truth(a.MaintenanceError != ""))
}

func (c nodeCollector) sendBackup(ch chan<- prometheus.Metric, b *api.BackupStatus) {
	domain := label(b.Domain)
	nodeSuccess.send(ch, float64(b.LastSuccess), domain)
	nodeFailed.send(ch, truth(b.State == api.JobFailed), domain)
	for _, grade := range grades {
		nodeGrade.send(ch, truth(b.Grade == grade), domain, grade)
	}
	end := b.Ended
	if end == 0 {
		end = c.now.Unix()
	}
	nodeDuration.send(ch, float64(max(0, end-b.Begun)), domain)
	nodeHold.send(ch, float64(b.HeldMicros)/1e6, domain)
	sendBytes(ch, nodeBytes, b)
}

func sendRunning(ch chan<- prometheus.Metric, j *api.JobStatus) {
	if j.Size > 0 {
		nodeDone.send(ch, float64(j.Seen)/float64(j.Size), label(j.Domain))
	}
	fill, known := 0.0, false
	for _, d := range j.Disks {
		if d.Saved != nil && d.Size > 0 {
			fill, known = max(fill, float64(*d.Saved)/float64(d.Size)), true
		}
	}
	if known {
		nodeFill.send(ch, fill, label(j.Domain))
	}
}
