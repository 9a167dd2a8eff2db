package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// VirtCow is the program on a host.
type VirtCow struct {
	Program string // path of the binary, good inside and outside
	RunDir  string // on the host

	host   *Host
	daemon *Process
}

// VirtCow says which binary the host has.
func (h *Host) VirtCow(program string) *VirtCow {
	return &VirtCow{Program: program, RunDir: "/run/virt-cow", host: h}
}

// stateChange bounds the wait for something that is bound to happen soon, on a busy machine.
const stateChange = 3 * time.Minute

// Run runs a command of the program on the host and returns both its outputs; the error quotes them.
func (v *VirtCow) Run(ctx context.Context, args ...string) (string, error) {
	return v.host.Run(ctx, v.Program, args...)
}

// StartDaemon starts the daemon and waits until it is connected to libvirt.
func (v *VirtCow) StartDaemon(ctx context.Context) (*Process, error) {
	p, err := v.host.Start(v.Program, "daemon")
	if err != nil {
		return nil, err
	}
	v.daemon = p
	ctx, cancel := context.WithTimeout(ctx, stateChange)
	defer cancel()
	for {
		s, err := v.Status(ctx)
		if err == nil && s.Libvirt.Connected {
			return p, nil
		}
		select {
		case <-p.Done():
			return nil, fmt.Errorf("daemon ended: %w", p.Err())
		case <-ctx.Done():
			return nil, fmt.Errorf("daemon is not ready: %w", errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Daemon is the daemon started last.
func (v *VirtCow) Daemon() *Process { return v.daemon }

// Status asks the daemon, from outside.
func (v *VirtCow) Status(ctx context.Context) (*api.DaemonStatus, error) {
	return api.NewDaemon(v.host.Path(v.RunDir)).Status(ctx)
}

// Volume is what the daemon says of one volume, nil if it knows none of that name.
func (v *VirtCow) Volume(ctx context.Context, name string) (*api.VolumeStatus, error) {
	s, err := v.Status(ctx)
	if err != nil {
		return nil, err
	}
	for i := range s.Volumes {
		if s.Volumes[i].Volume == name {
			return &s.Volumes[i], nil
		}
	}
	return nil, nil
}

// Await polls a volume until ok accepts it; nil is a volume the daemon does not know. While no daemon answers
// it goes on.
func (v *VirtCow) Await(ctx context.Context, name, what string, ok func(*api.VolumeStatus) bool) (*api.VolumeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, stateChange)
	defer cancel()
	for {
		s, err := v.Volume(ctx, name)
		if err == nil && ok(s) {
			return s, nil
		}
		select {
		case <-ctx.Done():
			b, _ := json.Marshal(s)
			return s, fmt.Errorf("volume %s: still not after %s: %s: %s %w", name, stateChange, what, b, errors.Join(err))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Attached accepts a volume that its guest has and an engine serves.
func Attached(s *api.VolumeStatus) bool {
	return s != nil && s.State == api.VolumeAttached && s.Engine != nil && s.Engine.Connections > 0
}

// CutLoose accepts a volume whose hydration is done.
func CutLoose(s *api.VolumeStatus) bool {
	return s != nil && s.Engine != nil && s.Engine.Hydration != nil && s.Engine.Hydration.State == api.HydrationDone
}

// StoreInfo is what the program says of a store; the header's owner is nil after a clean close.
type StoreInfo struct {
	Name     string          `json:"name"`
	UUID     string          `json:"uuid"`
	Size     int64           `json:"size"`
	Data     int64           `json:"dataOffset"`
	CutLoose bool            `json:"cutLoose"`
	Owner    json.RawMessage `json:"owner"`
	Cache    string          `json:"cache"`
	Grants   int             `json:"grants"`
	Stack    int             `json:"stack"` // its snapshots
}

// StoreInfo asks the program of a store.
func (v *VirtCow) StoreInfo(ctx context.Context, store string) (*StoreInfo, error) {
	out, err := v.host.Command(ctx, v.Program, "--json", "store", "info", store).Output()
	if err != nil {
		return nil, fmt.Errorf("store info %s: %w", store, err)
	}
	var i StoreInfo
	return &i, json.Unmarshal(out, &i)
}

// DiskIn is the device by which a guest has a store's volume.
func (v *VirtCow) DiskIn(ctx context.Context, g *Guest, store string) (string, error) {
	i, err := v.StoreInfo(ctx, store)
	if err != nil {
		return "", err
	}
	id, err := uuid.Parse(i.UUID)
	if err != nil {
		return "", err
	}
	return g.Disk(ctx, libvirtx.Serial(id))
}

// MakeMaster makes a raw file with an ext4 of this size, in MiB, with files on it: names and contents.
func MakeMaster(ctx context.Context, path string, sizeMiB int, files map[string][]byte) error {
	tree, err := os.MkdirTemp(filepath.Dir(path), "tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	for name, content := range files {
		p := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, content, 0o644); err != nil {
			return err
		}
	}
	out, err := exec.CommandContext(ctx, mustLook("mke2fs"), "-q", "-t", "ext4", "-d", tree, path, fmt.Sprintf("%dM", sizeMiB)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs %s: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Checksum is the SHA-256 of a file.
func Checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
