package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/virt-cow/virt-cow/internal/api"
	"github.com/virt-cow/virt-cow/internal/cowfmt"
	"github.com/virt-cow/virt-cow/internal/domainxml"
	"github.com/virt-cow/virt-cow/internal/libvirtx"
)

// ErrNoDomain says that a backup holds no domain.
var ErrNoDomain = errors.New("it is a backup of a volume and has no domain: `virt-cow restore disk` restores its disk")

// Options say how a domain is restored.
type Options struct {
	Name         string            // "" for the old one
	Disks        map[string]string // by target: the file or block device it is written to, absolute
	States       map[string]string // by target: where its volume's state store is made, "": in the folder for stores
	Folder       string            // where the other disks go, each as a new file
	KeepIdentity bool              // as domainxml.Plan has it
	Force        bool              // write over what is there
	RunDir       string            // with the engines' sockets
}

// Volumes are the daemon's.
type Volumes interface {
	Volume(ctx context.Context, name string) (*api.VolumeInfo, error)
	Adopt(ctx context.Context, r api.AdoptRequest) (*api.VolumeInfo, error)
	Delete(ctx context.Context, name string, r api.DeleteRequest) (*api.VolumeInfo, error)
}

// Plan is what a restore is to do. Nothing of it is done yet.
type Plan struct {
	Backup string
	Domain libvirtx.Domain
	Disks  []Disk
	Places domainxml.Places // of the restored domain
	State  []string         // names of the files with its state in the backup

	Left     []api.LeftDisk   // what the backup does not hold
	Dropped  []domainxml.Disk // as domainxml.Restored has them, and the two below
	Unplaced []string
	Shared   []string

	options    Options
	definition string // the backup's
}

// Disk is a disk to restore.
type Disk struct {
	Target string
	Size   int64  // bytes
	Path   string // of the raw disk
	State  string // as in Options
	Volume string // its name
	Device bool   // Path is a block device: it is written over
	There  bool   // Path is there: a file is replaced by another one
}

// NewPlan makes a plan and looks at nothing but the names of volumes. Errors wrap ErrNoDomain, and libvirtx.ErrBadXML if the
// definition is none.
func NewPlan(ctx context.Context, backup string, m *api.Manifest, volumes Volumes, o Options) (*Plan, error) {
	if m.InactiveXML == "" {
		return nil, fmt.Errorf("backup %s: %w", backup, ErrNoDomain)
	}
	p := &Plan{Backup: backup, Left: slices.Clone(m.Left), options: o, definition: m.InactiveXML}
	if err := p.targets(m); err != nil {
		return nil, err
	}
	name := cmp.Or(o.Name, m.Domain)
	for _, d := range m.Disks {
		volume, err := freeName(ctx, volumes, name, d.Target)
		if err != nil {
			return nil, err
		}
		path := cmp.Or(o.Disks[d.Target], filepath.Join(o.Folder, volume+".raw"))
		p.Disks = append(p.Disks, Disk{Target: d.Target, Size: d.Size, Path: path, State: o.States[d.Target], Volume: volume})
	}
	r, err := domainxml.Restore(m.InactiveXML, p.definitionPlan(nil))
	if err != nil {
		return nil, fmt.Errorf("backup %s: its definition: %w", backup, err)
	}
	p.Domain, p.Places = r.Domain, r.Places
	p.Dropped, p.Unplaced, p.Shared = r.Dropped, r.Unplaced, r.Shared
	p.state(m)
	return p, nil
}

// state chooses the files with state. The definition may have no place for one: it is what the domain was to be at its next start.
func (p *Plan) state(m *api.Manifest) {
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		place, is := p.Places.Of(name)
		switch {
		case !is:
		case place == "":
			p.Left = append(p.Left, api.LeftDisk{Target: name, Why: "the definition has no place for it"})
		default:
			p.State = append(p.State, name)
		}
	}
}

// targets refuses options about disks that the backup has not.
func (p *Plan) targets(m *api.Manifest) error {
	var have []string
	for _, d := range m.Disks {
		have = append(have, d.Target)
	}
	for _, given := range []map[string]string{p.options.Disks, p.options.States} {
		for target := range given {
			if !slices.Contains(have, target) {
				return fmt.Errorf("backup %s has no disk %s: it has %s", p.Backup, target, strings.Join(have, ", "))
			}
		}
	}
	return nil
}

// definitionPlan is the plan for the definition, with what the volumes have become; before, with something in their place.
func (p *Plan) definitionPlan(made map[string]*api.VolumeInfo) domainxml.Plan {
	d := domainxml.Plan{
		RunDir: p.options.RunDir, Disks: map[string]domainxml.Volume{}, Name: p.options.Name, KeepIdentity: p.options.KeepIdentity, UUID: p.Domain.UUID,
	}
	for _, disk := range p.Disks {
		v := domainxml.Volume{Volume: disk.Volume, UUID: uuid.New(), Store: "/", Socket: filepath.Join(p.options.RunDir, disk.Volume+".sock")}
		if m := made[disk.Target]; m != nil {
			v.UUID, v.Store = uuid.MustParse(m.UUID), m.Store
		}
		d.Disks[disk.Target] = v
	}
	return d
}

// freeName is a name for a disk's volume that no volume of this host has: DOMAIN-TARGET, or that with a number.
func freeName(ctx context.Context, volumes Volumes, domain, target string) (string, error) {
	plain := strings.Map(func(r rune) rune {
		if cowfmt.ValidName("x"+string(r)) != nil {
			return '-'
		}
		return r
	}, domain)
	plain = strings.TrimLeft(plain, "._-")
	for n := 1; ; n++ {
		end := "-" + target
		if n > 1 {
			end += fmt.Sprintf("-%d", n)
		}
		name := plain[:max(0, min(len(plain), cowfmt.MaxName-len(end)))] + end
		if plain == "" {
			name = "restored" + end
		}
		if err := cowfmt.ValidName(name); err != nil {
			return "", err
		}
		if _, err := volumes.Volume(ctx, name); notFound(err) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
}

// notFound says whether the daemon knows no such volume.
func notFound(err error) bool {
	var r *api.RemoteError
	return errors.As(err, &r) && r.Code == http.StatusNotFound
}
