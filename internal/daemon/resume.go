package daemon

import (
	"context"
	"time"

	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// resumeBackoff paces the attempts to let one guest go on.
var resumeBackoff = libvirtx.Backoff{Min: 250 * time.Millisecond, Max: 5 * time.Second}

// resumes counts the attempts since a guest was last seen to run. Guarded by domain.op.
type resumes struct {
	attempts int
	wait     time.Duration
	last     time.Time
}

// resume lets a guest go on that QEMU paused because one of our disks failed a request. It takes a few attempts:
// without reconnect-delay QEMU connects again in the background, begins only at a request, and fails those that
// come before it is done. So the guest pauses at once again, which is another event.
func (m *domain) resume(ctx context.Context, c libvirtx.Conn, v view) error {
	if !v.state.IOError {
		if !v.state.Paused {
			m.resumes = resumes{}
			m.clearIOErrors()
		}
		return nil
	}
	if len(v.disks) == 0 || !m.failedOurs(v) || !m.d.allServed(m, v) {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(m.resumes.wait - time.Since(m.resumes.last)):
	}
	m.clearIOErrors()
	if err := c.Resume(ctx, m.ident()); err != nil {
		return err
	}
	m.d.counters.resumes.Add(1)
	if m.resumes.attempts++; m.resumes.attempts == 1 {
		m.d.log.Info().Str("domain", m.name()).Msg("resuming a guest that an I/O error had paused: its volumes are served again")
	}
	m.resumes.wait, m.resumes.last = resumeBackoff.Next(m.resumes.wait), time.Now()
	return errUnfinished // look whether it stays up
}

// allServed says whether the disks of ours that QEMU has work. What else is wrong with the domain keeps no guest paused.
func (d *Daemon) allServed(m *domain, v view) bool {
	for name := range v.disks {
		vol := d.volumeNamed(name)
		if vol == nil {
			continue // served by hand: nobody here knows
		}
		d.mu.Lock()
		mine, e, gone := vol.domain == m, vol.engine, vol.gone || vol.lost
		d.mu.Unlock()
		if !mine || e == nil || gone { // what is gone to another host fails for good
			return false
		}
		if ready, _ := e.isReady(); !ready {
			return false
		}
	}
	return true
}

// failedOurs says whether the disk that paused the guest was ours. Nobody saw which it was if an earlier daemon
// was there: then it is assumed.
func (m *domain) failedOurs(v view) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.ioErrors) == 0 {
		return true
	}
	for _, disk := range v.disks {
		if m.ioErrors[disk.Alias] {
			return true
		}
	}
	return false
}
