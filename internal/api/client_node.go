package api

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// Node calls the image node of this host.
type Node struct{ c *client }

// NewNode makes a client for the image node with this run folder.
func NewNode(runDir string) *Node { return &Node{newClient(filepath.Join(runDir, NodeSocket))} }

// Status tells of it.
func (n *Node) Status(ctx context.Context) (*NodeStatus, error) {
	var s NodeStatus
	return &s, n.call(ctx, PathNodeStatus, struct{}{}, &s)
}

// BackupJobs lists its jobs.
func (n *Node) BackupJobs(ctx context.Context) (*JobList, error) {
	var l JobList
	return &l, n.call(ctx, PathNodeJobs, struct{}{}, &l)
}

// BackupJob tells of a job.
func (n *Node) BackupJob(ctx context.Context, r JobRequest) (*JobStatus, error) {
	var s JobStatus
	return &s, n.call(ctx, PathNodeJob, r, &s)
}

// CancelBackup cancels a job.
func (n *Node) CancelBackup(ctx context.Context, r JobRequest) (*JobStatus, error) {
	var s JobStatus
	return &s, n.call(ctx, PathNodeCancel, r, &s)
}

func (n *Node) call(ctx context.Context, path string, in, out any) error {
	err := n.c.call(ctx, path, in, out)
	if errors.Is(err, ErrNotRunning) {
		return fmt.Errorf("the image node is %w: start it with `systemctl start virt-cow-image-node`", err)
	}
	return err
}
