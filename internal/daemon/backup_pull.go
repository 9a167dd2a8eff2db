package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/peer"
)

// PullConfig is how disks are exported that the image node can't see.
type PullConfig struct {
	Listen   string // IP address; "": all
	From, To int    // ports; 0: nothing is exported
	Files    peer.Files
}

// Bounds of what the process of an export is asked. One that takes longer hangs: a disk does not answer.
const (
	exportOpening = time.Minute
	exportLooking = 10 * time.Second
	exportEnding  = 2 * time.Second // once it was killed
)

// exports are those that run.
type exports struct {
	mu         sync.Mutex
	bySnapshot map[string]*export
}

// export is a process, as api.PullSpec has it. It lives no longer than the daemon: its input ends then.
type export struct {
	name    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	asking  sync.Mutex
	hangs   bool                 // under asking: it has not answered
	answers chan *api.PullAnswer // closed when it says no more
	gone    chan struct{}        // closed when it has ended
}

// pull exports a volume as of a cut to the image node. An earlier export of it ends.
func (d *Daemon) pull(ctx context.Context, r api.PeerPull) (*api.PullAnswer, error) {
	if d.config.Backup.Pull.From == 0 {
		return nil, bad("nothing is exported here: pull_ports in [backup] of the configuration is empty")
	}
	spec, err := d.pullSpec(ctx, r)
	if err != nil {
		return nil, err
	}
	if old := d.exportOf(r.Snapshot); old != nil && !old.kill() {
		return nil, conflict("volume %s: the process that exports it hangs, as a disk does not answer: another one would, too", spec.Disk.Volume)
	}
	x, err := d.export(r.Snapshot, spec)
	if err != nil {
		return nil, err
	}
	a, err := x.ask(spec, exportOpening)
	if err != nil || a.Error != "" {
		x.kill()
	}
	return a, err
}

// pullLook has the process of an export look at the volume's header.
func (d *Daemon) pullLook(_ context.Context, r api.PeerPull) (*api.PullAnswer, error) {
	x := d.exportOf(r.Snapshot)
	if x == nil || x.name != r.Export {
		return nil, noVolumeError{errors.New("the export has ended, another one is to be asked for")}
	}
	return x.ask(api.PullLook{Released: r.Cursor}, exportLooking)
}

// standing is who has a volume, by its header.
func (d *Daemon) standing(ctx context.Context, r api.PeerSnapshot) (*api.PeerStanding, error) {
	w, err := d.wantWithUUID(r.Volume)
	if err != nil {
		return nil, err
	}
	h, err := d.inventory.Header(ctx, w.Store)
	switch {
	case err != nil:
		return nil, err
	case h.UUID != r.Volume:
		return nil, errNoVolume(r.Volume)
	}
	s := &api.PeerStanding{Epoch: h.Epoch}
	if o := h.Owner; o != nil {
		s.Owned, s.Address, s.Name = true, o.Address, o.HostName
	}
	return s, nil
}

// pullSpec says where all that a snapshot needs is on this host. What the image node says of places is not gone by.
func (d *Daemon) pullSpec(ctx context.Context, r api.PeerPull) (*api.PullSpec, error) {
	w, err := d.wantWithUUID(r.Volume)
	if err != nil {
		return nil, err
	}
	e, err := d.inventory.Lookup(w.Volume)
	if err != nil {
		return nil, err
	}
	h, err := d.inventory.Header(ctx, e.Store)
	if err != nil {
		return nil, err
	}
	saves := d.stores.Path(r.Snapshot)
	for _, s := range h.Stack {
		if s.UUID == r.Snapshot {
			saves = d.snapshotPath(ctx, s)
		}
	}
	if saves == "" {
		return nil, conflict("volume %s: where the store of its snapshot %s is on this host is not known: `virt-cow volume scan` may find it", e.Name, r.Snapshot)
	}
	snapshot, err := d.inventory.Header(ctx, saves)
	if err != nil {
		return nil, err
	}
	c := d.config.Backup
	node, _, err := peer.ParseAddress(c.Node, peer.DefaultNodePort)
	if err != nil {
		return nil, err
	}
	spec := &api.PullSpec{
		Export: uuid.NewString(), Node: node, Listen: c.Pull.Listen, From: c.Pull.From, To: c.Pull.To,
		CA: c.Pull.Files.CA, Cert: c.Pull.Files.Cert, Key: c.Pull.Files.Key,
		Disk: api.ManifestDisk{
			Volume: e.Name, UUID: r.Volume, Size: r.Size, Snapshot: r.Snapshot, Store: place(e.Store, r.Volume), Saves: place(saves, r.Snapshot),
		},
	}
	if e.Origin != "" {
		spec.Disk.Origin = &api.Place{Address: e.Origin, WWID: h.OriginWWID, Size: r.Size}
	}
	if snapshot.Master != "" {
		at := place(snapshot.Master, "")
		if snapshot.MasterIsStore {
			m, err := d.inventory.Header(ctx, snapshot.Master)
			if err != nil {
				return nil, fmt.Errorf("volume %s: its master: %w", e.Name, err)
			}
			at.UUID = m.UUID
		}
		spec.Disk.Master = &at
	}
	return spec, nil
}

func (d *Daemon) exportOf(snapshot string) *export {
	d.exports.mu.Lock()
	defer d.exports.mu.Unlock()
	return d.exports.bySnapshot[snapshot]
}

// export starts a process. It is nobody's to wait for: one that hangs in the kernel must not keep the daemon.
func (d *Daemon) export(snapshot string, spec *api.PullSpec) (*export, error) {
	x := &export{name: spec.Export, answers: make(chan *api.PullAnswer, 1), gone: make(chan struct{})}
	x.cmd = exec.Command(d.config.Inventory.Program, "--run-dir", d.config.RunDir, "export-cut")
	x.cmd.Dir, x.cmd.Stderr = "/", os.Stderr
	out, err := x.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if x.in, err = x.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := x.cmd.Start(); err != nil {
		return nil, err
	}
	d.exports.mu.Lock()
	if d.exports.bySnapshot == nil {
		d.exports.bySnapshot = map[string]*export{}
	}
	d.exports.bySnapshot[snapshot] = x
	d.exports.mu.Unlock()
	stop := context.AfterFunc(d.root, func() { x.in.Close() })
	go func() {
		defer stop()
		for lines := json.NewDecoder(out); ; {
			a := &api.PullAnswer{}
			if lines.Decode(a) != nil {
				break
			}
			x.answers <- a
		}
		close(x.answers)
		err := x.cmd.Wait()
		d.exports.mu.Lock()
		if d.exports.bySnapshot[snapshot] == x {
			delete(d.exports.bySnapshot, snapshot)
		}
		d.exports.mu.Unlock()
		close(x.gone)
		d.log.Info().AnErr("end", err).Str("volume", spec.Disk.Volume).Str("snapshot", snapshot).Msg("export ended")
	}()
	return x, nil
}

// ask gives the process a line, and waits for its answer. One that does not answer is killed.
func (x *export) ask(line any, patience time.Duration) (*api.PullAnswer, error) {
	x.asking.Lock()
	defer x.asking.Unlock()
	if x.hangs {
		return nil, errors.New("the export hangs: a disk does not answer")
	}
	b, err := json.Marshal(line)
	if err != nil {
		return nil, err
	}
	if _, err := x.in.Write(append(b, '\n')); err != nil { // a pipe has room for it
		return nil, fmt.Errorf("the export has ended: %w", err)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a, open := <-x.answers:
		if !open {
			return nil, errors.New("the export has ended without an answer: journalctl -u virt-cow has the reason")
		}
		return a, nil
	case <-timer.C:
		x.hangs = true
		_ = x.cmd.Process.Kill()
		return nil, fmt.Errorf("no answer in %s: a disk does not answer", patience)
	}
}

// kill ends a process, and says whether it did.
func (x *export) kill() bool {
	_ = x.cmd.Process.Kill() // one that has ended can't be
	select {
	case <-x.gone:
		return true
	case <-time.After(exportEnding):
		return false
	}
}
