package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/test/lab/pki"
)

// SiteConfig says what a Site is to be.
type SiteConfig struct {
	Names []string // of the hosts, nil for ha and hb; at most 250, and 8 characters each
	Host  Config   // of every host; its Name is of no interest
}

// Site is a few hosts that see each other over networks of their own, and the same disks, each through a device of its
// own. Certificates are where libvirt has them. Its methods may be called at the same time.
//
// A host of a site has, besides what every Host has, its own /dev (no loop device but those of its disks), /etc,
// machine-wide boot id, and VIRT_COW_HOST_UUID in the environment of what runs on it. Its name is known to the others, as
// is NAME-ctl, its address on Control.
type Site struct {
	Dir   string // the same on all hosts, for what they share; removed by Close
	Hosts []*Host
	Admin *Host          // a machine without libvirtd that reaches all hosts on Mgmt
	CA    *pki.Authority // signed the hosts' certificates

	links []*Link
	mu    sync.Mutex
	disks []*Disk
}

// NewSite makes a site and starts its hosts' libvirtds. Close it. An error that wraps ErrMissing says that this machine
// lacks something.
func NewSite(ctx context.Context, c SiteConfig) (s *Site, err error) {
	if err := Check(); err != nil {
		return nil, err
	}
	if c.Names == nil {
		c.Names = []string{"ha", "hb"}
	}
	if c.Host.Log == nil {
		c.Host.Log = io.Discard
	}
	for _, n := range c.Names {
		if len(n) > 8 || len(c.Names) > 250 {
			return nil, fmt.Errorf("a site of %d hosts, one called %s: at most 250, of 8 characters", len(c.Names), n)
		}
	}
	dir, err := os.MkdirTemp("", "virt-cow-lab-")
	if err != nil {
		return nil, err
	}
	s = &Site{Dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	if err := os.Chmod(dir, 0o711); err != nil { // QEMU may run as somebody else
		return s, err
	}
	if err := os.Mkdir(s.consoles(), 0o777); err != nil {
		return s, err
	}
	if err := os.Chmod(s.consoles(), 0o777); err != nil {
		return s, err
	}
	if s.CA, err = pki.New("virt-cow lab"); err != nil {
		return s, err
	}
	// Its folder is the site's: the supervisor that removes it outlives us.
	s.Admin = &Host{Name: "admin", Dir: dir, site: s, index: -1, uuid: uuid.New(), log: c.Host.Log}
	for i, n := range c.Names {
		id := uuid.NewSHA1(uuid.NameSpaceDNS, []byte(n+".virt-cow.lab"))
		env := append(append([]string(nil), c.Host.Env...), "VIRT_COW_HOST_UUID="+id.String())
		s.Hosts = append(s.Hosts, &Host{
			Name: n, Dir: filepath.Join(dir, "host-"+n), site: s, index: i, uuid: id, qemuUser: c.Host.QEMUUser, log: c.Host.Log, env: env,
		})
	}
	if err := s.Admin.prepare(""); err != nil {
		return s, err
	}
	if err := s.Admin.startSupervisor(); err != nil {
		return s, err
	}
	if err := s.addLinks(ctx); err != nil {
		return s, err
	}
	for _, h := range s.Hosts {
		if err := h.prepare(c.Host.Hook); err != nil {
			return s, err
		}
		if err := h.writeCertificate(nil, nil); err != nil {
			return s, err
		}
	}
	return s, s.each(func(h *Host) error { return h.PowerOn(ctx) })
}

// SiteFor makes a site for a test and closes it with the test. The test is skipped, saying why, where the lab can't
// run, or fails if RequireEnv is set.
func SiteFor(t testing.TB, c SiteConfig) *Site {
	t.Helper()
	if err := Check(); err != nil {
		SkipOrFail(t, err)
	}
	s, err := NewSite(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// each does something to all hosts at once.
func (s *Site) each(do func(*Host) error) error {
	errs := make([]error, len(s.Hosts))
	var wg sync.WaitGroup
	for i, h := range s.Hosts {
		wg.Go(func() {
			if err := do(h); err != nil {
				errs[i] = fmt.Errorf("host %s: %w", h.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// consoles is the folder of the guests' console logs: a guest goes on with its log wherever it runs.
func (s *Site) consoles() string { return filepath.Join(s.Dir, "console") }

// Close ends everything on all hosts, detaches their disks and removes all files. It may be called more than once.
func (s *Site) Close() error {
	err := s.each((*Host).Close)
	s.mu.Lock()
	disks := s.disks
	s.disks = nil
	s.mu.Unlock()
	for _, d := range disks {
		err = errors.Join(err, d.close())
	}
	if s.Admin != nil {
		err = errors.Join(err, s.Admin.Close())
	}
	return errors.Join(err, os.RemoveAll(s.Dir))
}

// PowerCut ends all that runs on a host at once, as a power cut does: its memory, its /run and its network are gone.
// What it had sent to its disks is on them. PowerOn brings it back.
func (h *Host) PowerCut() error {
	if h.site == nil {
		return fmt.Errorf("host %s is alone: only a host of a site can be powered off and on", h.Name)
	}
	h.end(func(supervisor *exec.Cmd, _ io.Closer) { supervisor.Process.Kill() })
	return nil
}

// PowerOn boots a host of a site that PowerCut ended, and starts its libvirtd: with its domains, its disks and its
// network, and a new boot id.
func (h *Host) PowerOn(ctx context.Context) error {
	if h.site == nil || h.pid() != 0 {
		return fmt.Errorf("host %s is alone or is up", h.Name)
	}
	if err := os.WriteFile(filepath.Join(h.Dir, "boot_id"), []byte(uuid.NewString()+"\n"), 0o444); err != nil {
		return err
	}
	if err := h.startSupervisor(); err != nil {
		return err
	}
	if err := h.connect(ctx); err != nil {
		return err
	}
	h.site.mu.Lock()
	disks := h.site.disks
	h.site.mu.Unlock()
	for _, d := range disks {
		if err := d.Attach(h); err != nil {
			return err
		}
	}
	return h.StartLibvirtd(ctx)
}

// UUID is who the host is, to libvirt and, on a site, to virt-cow.
func (h *Host) UUID() uuid.UUID { return h.uuid }
