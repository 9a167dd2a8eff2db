package api

import (
	"context"
	"net/url"
	"strings"
)

// Prepare has volumes served for a domain that is about to start.
func (d *Daemon) Prepare(ctx context.Context, r PrepareRequest) error {
	return d.call(ctx, PathDaemonPrepare, r, &PrepareAnswer{})
}

// Notice tells that something happened to a domain.
func (d *Daemon) Notice(ctx context.Context, r NoticeRequest) error {
	return d.call(ctx, PathDaemonNotice, r, nil)
}

// Volumes lists the catalogue.
func (d *Daemon) Volumes(ctx context.Context) (*VolumeList, error) {
	var l VolumeList
	return &l, d.call(ctx, PathVolumes, nil, &l)
}

// Volume tells of one volume of the catalogue.
func (d *Daemon) Volume(ctx context.Context, name string) (*VolumeInfo, error) {
	return d.info(ctx, volumePath(PathVolume, name), nil)
}

// Create makes a volume.
func (d *Daemon) Create(ctx context.Context, r CreateRequest) (*VolumeInfo, error) {
	return d.info(ctx, PathVolumes, r)
}

// Adopt takes a store into the catalogue.
func (d *Daemon) Adopt(ctx context.Context, r AdoptRequest) (*VolumeInfo, error) {
	return d.info(ctx, PathVolumesAdopt, r)
}

// Delete removes a volume.
func (d *Daemon) Delete(ctx context.Context, name string, r DeleteRequest) (*VolumeInfo, error) {
	return d.info(ctx, volumePath(PathVolumeDelete, name), r)
}

// Scan rebuilds the catalogue.
func (d *Daemon) Scan(ctx context.Context, r ScanRequest) (*ScanReport, error) {
	var s ScanReport
	return &s, d.call(ctx, PathVolumesScan, r, &s)
}

// Start has a volume served though no domain has it.
func (d *Daemon) Start(ctx context.Context, name string) (*VolumeStatus, error) {
	return d.volume(ctx, volumePath(PathVolumeStart, name), struct{}{})
}

// Stop ends what Start began.
func (d *Daemon) Stop(ctx context.Context, name string) (*VolumeStatus, error) {
	return d.volume(ctx, volumePath(PathVolumeStop, name), struct{}{})
}

// Restart replaces a volume's engine process by a new one and returns once that serves.
func (d *Daemon) Restart(ctx context.Context, name string) (*VolumeStatus, error) {
	return d.volume(ctx, volumePath(PathVolumeRestart, name), struct{}{})
}

// Cache switches a volume's exception cache.
func (d *Daemon) Cache(ctx context.Context, name string, r CacheRequest) (*VolumeStatus, error) {
	return d.volume(ctx, volumePath(PathVolumeCache, name), r)
}

// Hosts lists the other hosts, and asks each whether it answers.
func (d *Daemon) Hosts(ctx context.Context) (*HostList, error) {
	var l HostList
	return &l, d.call(ctx, PathHosts, nil, &l)
}

// Fenced gives the operator's word that a host is dead.
func (d *Daemon) Fenced(ctx context.Context, r FencedRequest) (*FencedReport, error) {
	var f FencedReport
	return &f, d.call(ctx, PathHostFenced, r, &f)
}

// Backup has a backup begun: it returns once the image node has the job.
func (d *Daemon) Backup(ctx context.Context, r BackupRequest) (*JobStatus, error) {
	return d.job(ctx, PathBackup, r)
}

// BackupJobs lists the image node's jobs.
func (d *Daemon) BackupJobs(ctx context.Context) (*JobList, error) {
	var l JobList
	return &l, d.call(ctx, PathBackupJobs, struct{}{}, &l)
}

// BackupJob tells of a job.
func (d *Daemon) BackupJob(ctx context.Context, r JobRequest) (*JobStatus, error) {
	return d.job(ctx, PathBackupJob, r)
}

// CancelBackup has the image node cancel a job.
func (d *Daemon) CancelBackup(ctx context.Context, r JobRequest) (*JobStatus, error) {
	return d.job(ctx, PathBackupCancel, r)
}

func (d *Daemon) job(ctx context.Context, path string, in any) (*JobStatus, error) {
	var s JobStatus
	if err := d.call(ctx, path, in, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

func volumePath(pattern, name string) string {
	return strings.Replace(pattern, "{name}", url.PathEscape(name), 1)
}

func (d *Daemon) info(ctx context.Context, path string, in any) (*VolumeInfo, error) {
	var v VolumeInfo
	if err := d.call(ctx, path, in, &v); err != nil {
		return nil, err
	}
	return &v, nil
}
