package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/blockdev"
	"github.com/virt-cow/virt-cow/internal/cut"
	"github.com/virt-cow/virt-cow/internal/domainxml"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// backupPlan is what of a domain is to be backed up.
type backupPlan struct {
	domain libvirtx.Domain
	alone  bool // there is no domain: a volume's name and UUID stand for it
	disks  []plannedDisk
	left   []api.LeftDisk
}

// plannedDisk is a disk that is.
type plannedDisk struct{ target, volume, uuid string }

// planBackup finds out what is to be backed up, and refuses what can't be, unless it is to be left out.
func (d *Daemon) planBackup(ctx context.Context, r api.BackupRequest) (*backupPlan, error) {
	if r.Volume != "" {
		return d.planVolume(ctx, r)
	}
	c, err := d.libvirt()
	if err != nil {
		return nil, err
	}
	x, err := c.Lookup(ctx, r.Domain)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", r.Domain, err)
	}
	return d.planDomain(ctx, c, x, r)
}

// planVolume is for one volume: of the domain that has it, or of none.
func (d *Daemon) planVolume(ctx context.Context, r api.BackupRequest) (*backupPlan, error) {
	w, err := d.wantNamed(r.Volume)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	var m *domain
	if v := d.volumes[r.Volume]; v != nil {
		m = v.domain
	}
	d.mu.Unlock()
	if m != nil {
		c, err := d.libvirt()
		if err != nil {
			return nil, err
		}
		return d.planDomain(ctx, c, m.ident(), r)
	}
	id, err := d.uuidOf(w.Volume)
	if err != nil {
		return nil, err
	}
	u, err := uuid.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", w.Volume, err)
	}
	return &backupPlan{
		domain: libvirtx.Domain{Name: w.Volume, UUID: u}, alone: true, disks: []plannedDisk{{"vda", w.Volume, id}},
	}, nil
}

// uuidOf is a volume's.
func (d *Daemon) uuidOf(volume string) (string, error) {
	e, err := d.inventory.Lookup(volume)
	if err != nil {
		return "", err
	}
	return e.UUID, nil
}

func (d *Daemon) planDomain(ctx context.Context, c libvirtx.Conn, x libvirtx.Domain, r api.BackupRequest) (*backupPlan, error) {
	text, err := c.XML(ctx, x)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", x.Name, err)
	}
	all, err := domainxml.Disks(text, d.config.RunDir)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", x.Name, err)
	}
	for _, target := range r.Exclude {
		if !slices.ContainsFunc(all, func(disk domainxml.Disk) bool { return disk.Target == target }) {
			return nil, bad("domain %s has no disk %s that could be left out", x.Name, target)
		}
	}
	p := &backupPlan{domain: x}
	var refused []string
	for _, disk := range all {
		why := disk.Why()
		switch {
		case slices.Contains(r.Exclude, disk.Target):
			why = "it was to be left out"
		case r.Volume != "" && disk.Volume != r.Volume:
			why = "only volume " + r.Volume + " was asked for"
		case why != "" && !disk.Harmless() && !r.LeaveForeign:
			refused = append(refused, fmt.Sprintf("disk %s: %s", disk.Target, why))
		}
		if why != "" {
			p.left = append(p.left, api.LeftDisk{Target: disk.Target, Why: why})
			continue
		}
		id, err := d.uuidOf(disk.Volume)
		if err != nil {
			return nil, fmt.Errorf("domain %s: disk %s: %w", x.Name, disk.Target, err)
		}
		p.disks = append(p.disks, plannedDisk{disk.Target, disk.Volume, id})
	}
	if refused != nil {
		return nil, unfit("domain %s can't be backed up whole: %s: leave them out with --exclude or --leave-foreign", x.Name, strings.Join(refused, "; "))
	}
	if p.disks == nil {
		return nil, unfit("domain %s has no disk of virt-cow that could be backed up: `virt-cow volume adopt` makes one of a raw disk", x.Name)
	}
	return p, nil
}

// conflict is an error over the state something is in.
func conflict(format string, args ...any) error { return conflictError{fmt.Errorf(format, args...)} }

type conflictError struct{ error }

// unfit is an error over what something is: asking again later is of no use.
func unfit(format string, args ...any) error { return unfitError{fmt.Errorf(format, args...)} }

type unfitError struct{ error }

// volumes are the UUIDs of those that are backed up.
func (p *backupPlan) volumes() (ids []string) {
	for _, disk := range p.disks {
		ids = append(ids, disk.uuid)
	}
	return ids
}

// manifest tells of a cut that was made. That the domain had the same disks then is made sure of: one may have been plugged in
// between.
func (d *Daemon) manifest(ctx context.Context, b *backup, r *cut.Result) (*api.Manifest, error) {
	p := b.plan
	m := &api.Manifest{
		Version: 1, Domain: p.domain.Name, UUID: p.domain.UUID.String(), Host: d.config.Peers.Self().HostName, Cut: b.job,
		CutAt: r.At.UnixMilli(), HeldMicros: r.Held.Microseconds(), Grade: r.Grade, GradeWhy: r.Why, Left: p.left,
	}
	for i, s := range r.Snapshots {
		disk, err := d.manifestDisk(ctx, p.disks[i], s)
		if err != nil {
			return nil, err
		}
		m.Disks = append(m.Disks, *disk)
	}
	if p.alone {
		return m, nil
	}
	c, err := d.libvirt()
	if err != nil {
		return nil, err
	}
	now, err := d.planDomain(ctx, c, p.domain, b.request)
	if err != nil {
		return nil, fmt.Errorf("after the cut: %w", err)
	}
	if !slices.Equal(now.disks, p.disks) {
		return nil, conflict("domain %s has other disks now than when its backup began: try again", p.domain.Name)
	}
	if m.XML, err = c.XML(ctx, p.domain); err != nil {
		return nil, err
	}
	if m.InactiveXML, err = c.SecretXML(ctx, p.domain); err != nil {
		return nil, err
	}
	files, left, err := stateFiles(m.XML)
	m.Files, m.Left = files, append(m.Left, left...)
	return m, err
}

// manifestDisk tells of one disk.
func (d *Daemon) manifestDisk(ctx context.Context, disk plannedDisk, s cut.Snapshot) (*api.ManifestDisk, error) {
	e := s.Status
	m := &api.ManifestDisk{
		Target: disk.target, Volume: disk.volume, UUID: disk.uuid, Size: e.Size, ChunkSize: s.ChunkSize, Epoch: e.Epoch, Snapshot: s.Snapshot,
		Store: place(e.Store, disk.uuid), Saves: place(s.Store, s.Snapshot),
	}
	if e.UUID != disk.uuid {
		return nil, fmt.Errorf("volume %s: its engine serves %s, not %s", disk.volume, e.UUID, disk.uuid)
	}
	if e.Origin != "" {
		h, err := d.inventory.Header(ctx, e.Store)
		if err != nil {
			return nil, err
		}
		m.Origin = &api.Place{Address: e.Origin, WWID: h.OriginWWID, Size: e.Size}
	}
	if e.Master != "" && (e.Hydration == nil || e.Hydration.State != api.HydrationDone) {
		at := place(e.Master, d.masterUUID(ctx, disk.volume))
		m.Master = &at
	}
	return m, nil
}

// masterUUID is that of the store that is a volume's master, "" if its master is no store, or can't be read here.
func (d *Daemon) masterUUID(ctx context.Context, volume string) string {
	e, err := d.inventory.Lookup(volume)
	path, is := strings.CutPrefix(e.Master, "store:")
	if err != nil || !is {
		return ""
	}
	h, err := d.inventory.Header(ctx, path)
	if err != nil {
		d.log.Warn().Err(err).Str("volume", volume).Msg("its master's UUID is not known: the image node has to find it by its place")
		return ""
	}
	return h.UUID
}

// place tells of a file or device, or of a URI.
func place(address, id string) api.Place {
	p := api.Place{Address: address, UUID: id, WWID: blockdev.WWIDOf(address)}
	if st, err := os.Stat(address); err == nil && st.Mode().IsRegular() {
		p.Size = st.Size()
	}
	return p
}

// maxStateFile bounds one small file of a domain, bytes; all together have to fit into the image node's 16 MiB.
const maxStateFile = 8 << 20

// stateFiles are the NVRAM and the TPM's state of a domain, and what of them can't be kept.
func stateFiles(text string) (files map[string][]byte, left []api.LeftDisk, err error) {
	places, err := domainxml.PlacesOf(text)
	if err != nil {
		return nil, nil, err
	}
	for _, why := range places.Left {
		left = append(left, api.LeftDisk{Target: "state", Why: why})
	}
	paths := map[string]string{}
	if places.NVRAM != "" {
		paths["nvram"] = places.NVRAM
	}
	if places.TPM != "" {
		entries, err := os.ReadDir(places.TPM)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			left = append(left, api.LeftDisk{Target: "tpm", Why: err.Error()})
		}
		for _, e := range entries {
			if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") { // its lock
				paths["tpm/"+e.Name()] = filepath.Join(places.TPM, e.Name())
			}
		}
	}
	files = map[string][]byte{}
	for name, path := range paths {
		b, err := readSmall(path)
		switch {
		case errors.Is(err, os.ErrNotExist): // the domain never ran
		case err != nil:
			left = append(left, api.LeftDisk{Target: name, Why: err.Error()})
		default:
			files[name] = b
		}
	}
	return files, left, nil
}

// readSmall reads a regular file that is not large.
func readSmall(path string) ([]byte, error) {
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	case st.Size() > maxStateFile:
		return nil, fmt.Errorf("%s has %d bytes, and no more than %d can be kept", path, st.Size(), maxStateFile)
	}
	return os.ReadFile(path)
}
