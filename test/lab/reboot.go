package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Reset plays a reset of the host: all that runs on it is killed at once, what was in memory (/run) is gone, and the
// kernel's boot id is another one. Nothing is started again. What the host had written to its disks stays, flushed or
// not: that is less than a power cut.
func (h *Host) Reset(ctx context.Context) error {
	h.mu.Lock()
	guests, started := h.guests, h.started
	h.started = nil
	h.mu.Unlock()
	for _, g := range guests {
		g.hangUp()
	}
	// All but the caller and the namespace's first process, the supervisor.
	if _, err := h.Run(ctx, "busybox", "kill", "-KILL", "-1"); err != nil {
		return err
	}
	for _, p := range started {
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			return fmt.Errorf("process %d outlives its SIGKILL", p.PID)
		}
	}
	if err := h.awaitNobody(ctx); err != nil {
		return err
	}
	boot := filepath.Join(h.Dir, "boot_id")
	if err := os.WriteFile(boot, []byte(uuid.NewString()+"\n"), 0o444); err != nil {
		return err
	}
	_, err := h.Run(ctx, "busybox", "sh", "-ec", `umount -l /run; mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mkdir `+strings.Join(runDirs, " ")+`; mount -o bind `+boot+` /proc/sys/kernel/random/boot_id`)
	return err
}

// awaitNobody waits until the supervisor is alone: processes that somebody else started are its children by now.
func (h *Host) awaitNobody(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stateChange)
	defer cancel()
	for {
		procs, err := filepath.Glob(h.Path("/proc/[0-9]*"))
		if err != nil || len(procs) == 1 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("still there after their SIGKILL: %v", procs)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
